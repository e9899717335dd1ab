"""The making of the embedded checkpoint, at a size that a test can afford."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from commands import TOOLS
from ldm.config import ScheduleConfig, VAEConfig
from ldm.schedule import Schedule
from ldm.unet import UNet
from ldm.vae import VAE
from pretraining import autoencoder, diffusion, picture_set, state, tiny_files
from weights import load


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    return picture_set.picture_set(tmp_path_factory.mktemp("pictures"), 0, 24, 64)


def small_vae(seed=0):
    torch.manual_seed(seed)
    return VAE(VAEConfig(
        channels=(8, 16, 16), layers_per_block=1, norm_groups=4, scaling_factor=1.0))


def small_text_encoder():
    vocab_size = len(tiny_files.vocabulary(tiny_files.caption_merges()))
    return diffusion.TextEncoder(diffusion.text_config(vocab_size))


def test_pictures_are_drawn_once_and_are_those_of_the_generator(drawn, tmp_path):
    picture = picture_set.draw_picture(0, 17, 64)
    assert np.array_equal(drawn.images[17], picture.image)
    assert np.array_equal(drawn.masks[17], picture.mask)
    assert drawn.captions[17] == picture.caption and len(drawn.captions) == 24


def test_folding_makes_the_latents_standard_and_changes_no_picture(drawn):
    vae = small_vae()
    image = autoencoder.to_float(drawn.images[:6])
    with torch.no_grad():
        mean, std = vae.encode(image)
        before = vae.decode(mean)
        latents = autoencoder.encode_all(vae, drawn.images, "cpu")
        autoencoder.fold(vae, latents)
        after_mean, after_std = vae.encode(image)
        after = vae.decode(after_mean)
    sigma = latents.float().std(dim=(0, 2, 3))
    assert torch.allclose(after_std, std / sigma[:, None, None], rtol=1e-4)
    assert torch.allclose(after, before, atol=1e-4)
    standard = autoencoder.encode_all(vae, drawn.images, "cpu").float()
    assert torch.allclose(standard.mean(dim=(0, 2, 3)), torch.zeros(4), atol=1e-2)
    assert torch.allclose(standard.std(dim=(0, 2, 3)), torch.ones(4), atol=1e-2)


def test_noise_hides_a_whole_picture_where_sampling_starts():
    """Even the mean of a channel, its largest Fourier coefficient, which SD's own betas show."""
    drawn = np.stack([picture_set.draw_picture(5, i, 128).image for i in range(48)])
    latents = autoencoder.encode_all(load("tiny").vae, drawn, "cpu").float()
    variance = 32 ** 2 * latents.mean(dim=(2, 3)).var(dim=0).max()     # the noise's is 1
    for config, hidden in ((diffusion.SCHEDULE, True), (ScheduleConfig(), False)):
        schedule = Schedule(config)
        signal = schedule.alphas_cumprod[schedule.timesteps(diffusion.STEPS)[0][0]]
        assert bool(signal / (1 - signal) * variance < 0.2) == hidden


def test_pictures_of_masks_have_more_turns_and_those_of_strokes_most():
    captions = ["a photo of wood", "a photo of mask with large hole", "",
                "a photo of wood with small scratch", "a photo of mask with small scratch top left"]
    expected = [0, *[1] * diffusion.MASK_TURNS, 2, 3, *[4] * diffusion.STROKE_TURNS]
    assert diffusion.turns(captions).tolist() == expected
    assert 1 < diffusion.MASK_TURNS < diffusion.STROKE_TURNS


def test_each_caption_word_is_one_token_and_the_ids_are_those_of_transformers(tmp_path):
    from transformers import CLIPTokenizer
    tokenizer = tiny_files.caption_tokenizer()
    assert [w for w in tiny_files.caption_words() if len(tokenizer.tokens(w)) != 1] == []
    unet, vae = diffusion.UNet(diffusion.UNET), small_vae()
    tiny_files.write_checkpoint(tmp_path, unet, vae, small_text_encoder(), diffusion.SCHEDULE)
    reference = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    for prompt in ("a photo of wood with large red stain top left", "", "a photo of *",
                   "Unknown words, 12!"):
        expected = reference(prompt, padding="max_length", max_length=77)["input_ids"]
        assert tokenizer([prompt])[0].tolist() == expected


def test_at_the_start_every_word_reaches_every_end_token_and_the_unet_ignores_it():
    tokenizer = tiny_files.caption_tokenizer()
    text_encoder, unet = small_text_encoder(), UNet(diffusion.UNET)
    diffusion.initialise(unet)
    diffusion.initialise_text(text_encoder)
    ids = tokenizer(["a photo of nut with hole top left", "a photo of nut with hole top right"])
    with torch.no_grad():
        left, right = text_encoder.encode(text_encoder.embed(ids))
        away = (left - right).norm(dim=1) / left.norm(dim=1)
        assert away[8] > 0.5 and away[9:].min() > 0.25 and torch.equal(left[:8], right[:8])
        noise = torch.randn(1, 4, 32, 32)
        assert torch.equal(unet(noise, torch.tensor([500]), left[None]), torch.zeros_like(noise))


def test_a_small_defect_counts_as_a_large_one_up_to_a_bound():
    cells = torch.zeros(4, 1, 32, 32)
    cells[0, :, :16], cells[1, :, :8, :16], cells[2, :, 0, 0] = 1, 1, 1
    extra = (diffusion.weights(cells, torch.ones(4)) - 1).mean(dim=(1, 2, 3))
    share, most = diffusion.DEFECT_SHARE, diffusion.MOST / 1024
    assert torch.allclose(extra, torch.tensor([share, share, most, 0.0]))
    assert torch.equal(diffusion.weights(cells, torch.ones(4))[0, 0, 20:], torch.ones(12, 32))


def test_where_noise_hides_the_picture_a_defect_counts_as_everything_else():
    """The best answer to pure noise is the mean picture, with half a defect if half have one."""
    cells = torch.ones(1, 1, 4, 4)
    quarter, whole = (diffusion.weights(cells, torch.tensor([signal])) - 1
                      for signal in (0.25, 1.0))
    assert torch.allclose(quarter / whole, torch.full_like(cells, 0.25))
    signal = Schedule(diffusion.SCHEDULE).alphas_cumprod[-1:]
    assert float(diffusion.weights(cells, signal).max()) < 1.01


def test_shares_of_cells_are_means_over_their_pixels():
    masks = np.zeros((1, 8, 8), dtype=bool)
    masks[0, 0, 0:3] = True
    found = diffusion.shares(masks, 2)
    assert found.tolist() == [[[3 / 16, 0], [0, 0]]]


def test_the_rate_rises_holds_and_falls_to_nothing():
    rates = [state.rate(step, 10_000) for step in range(10_000)]
    assert rates[0] == 1 / state.WARM_UP and max(rates) == 1 and rates[5000] == 1
    assert rates[-1] < 1e-4 and all(a >= b for a, b in zip(rates[7400:], rates[7401:]))


def train(folder, drawn, stops):
    """Six steps of the VAE, in pieces that end at the given steps."""
    for stop in stops:
        vae = small_vae()
        stage = state.Stage(folder / "vae.pt", {"vae": vae}, 1e-3, 0.9)
        for losses in state.pieces(stage, stop, float("inf"), folder / "loss.csv", "vae", every=2):
            losses.append(autoencoder.train_step(vae, stage, drawn, 0, 6, "cpu"))
    stage.use_averages()
    return vae.state_dict(), (folder / "loss.csv").read_text().split()


def test_pieces_end_where_an_unbroken_run_does(drawn, tmp_path):
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    whole, losses = train(tmp_path / "a", drawn, [6])
    parts, again = train(tmp_path / "b", drawn, [2, 4, 6])
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    assert [line.split(",")[:3] for line in losses] == [line.split(",")[:3] for line in again]
    assert len(losses) == 3


def test_it_learns_to_reconstruct(drawn):
    vae = small_vae()
    stage = state.Stage(Path("/nowhere"), {"vae": vae}, 3e-3, 0.9)
    first = np.mean([autoencoder.train_step(vae, stage, drawn, 0, 1000, "cpu") for _ in range(3)])
    for _ in range(120):
        last = autoencoder.train_step(vae, stage, drawn, 0, 1000, "cpu")
    assert last < 0.75 * first


def test_one_command_makes_a_checkpoint_that_diffusers_runs(tmp_path, monkeypatch):
    from diffusers import StableDiffusionPipeline
    monkeypatch.setattr(TOOLS["pretrain_tiny"], "PREVIEW", ["with large hole center"])
    monkeypatch.setattr(TOOLS["pretrain_tiny"], "PRODUCTS", {"wood": None})
    monkeypatch.setattr(autoencoder, "CONFIG", replace(autoencoder.CONFIG, channels=(8, 16, 16)))
    out = tmp_path / "tiny"
    argv = ["--pictures", "16", "--vae-steps", "2", "--unet-steps", "2", "--device", "cpu",
            "--state", str(tmp_path / "state"), "--out", str(out)]
    TOOLS["pretrain_tiny"].main(argv)
    assert (tmp_path / "state/preview.jpg").exists()
    sd = load(out)
    assert sd.native_size == 128 and sd.schedule.config.v_prediction
    pipeline = StableDiffusionPipeline.from_pretrained(
        out, safety_checker=None, dtype=torch.float32)
    with torch.no_grad():
        expected = pipeline.text_encoder(sd.tokenizer(["a photo of wood"]))[0]
        assert torch.allclose(sd.context("a photo of wood"), expected, atol=1e-5)
    before = {p: p.read_bytes() for p in (tmp_path / "state").glob("*.pt")}
    # Beside the first run's state, not over it.
    TOOLS["pretrain_tiny"].main([*argv, "--from", str(out)])
    assert all(path.read_bytes() == content for path, content in before.items())
    assert torch.equal(load(out).vae.quant_conv.weight, sd.vae.quant_conv.weight)
    assert not torch.equal(load(out).unet.conv_in.weight, sd.unet.conv_in.weight)
    committed = (out / "unet/diffusion_pytorch_model.safetensors").read_bytes()
    monkeypatch.setattr(TOOLS["pretrain_tiny"], "pieces", lambda *a, **k: iter(()))
    # Ends before its last step.
    TOOLS["pretrain_tiny"].main([*argv, "--seed", "1", "--from", str(out)])
    assert (out / "unet/diffusion_pytorch_model.safetensors").read_bytes() == committed
    assert load(tmp_path / "state/unfinished").native_size == 128
