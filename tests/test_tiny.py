"""The embedded checkpoint: its files, diffusers' reading of it, and the tools without arguments."""

import json
from pathlib import Path

import pytest
import torch

from anomaly.drawn import demo
from anomaly.sampler import Guidance, ddim
from commands import ROOT, call
from pretraining import picture_set, tiny_files
from pretraining.autoencoder import encode_all, to_float
from weights import TINY, fingerprint, load

FOLDER = ROOT / "weights" / TINY


@pytest.fixture(scope="module")
def tiny():
    return load(TINY)


def test_it_is_small_and_part_of_the_package(tiny):
    paths = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in paths) <= 25e6
    packaged = {path for pattern in ("tiny/*", "tiny/*/*")
                for path in (ROOT / "weights").glob(pattern)}
    assert set(paths) <= packaged and "tiny/*, tiny/*/*" in (ROOT / "setup.cfg").read_text()
    assert tiny.native_size == 128 and tiny.text_encoder.config.context_length == 77


def test_its_word_is_not_a_path_and_it_says_what_it_is(tiny, tmp_path, monkeypatch):
    assert tiny.remarks[0].startswith("tiny: ") and fingerprint(TINY) == fingerprint(FOLDER)
    assert not any(remark.startswith("tiny: ") for remark in load(FOLDER).remarks)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert fingerprint(TINY) == fingerprint(FOLDER)
    with pytest.raises(FileNotFoundError, match="no unet folder"):
        load(Path("tiny"))


def test_its_vocabulary_is_that_of_the_captions(tiny):
    tokenizer = tiny_files.caption_tokenizer()
    vocab = json.loads((FOLDER / "tokenizer/vocab.json").read_text())
    assert len(vocab) == tiny.text_encoder.config.vocab_size
    for caption in (picture_set.draw_picture(3, i, 16).caption for i in range(40)):
        ids = tiny.tokenizer([caption])
        assert torch.equal(ids, tokenizer([caption]))
        assert int((ids != ids[0, -1]).sum()) == 1 + len(caption.split())   # the start, and words


def test_diffusers_own_pipeline_paints_the_same_picture(tiny):
    from diffusers import StableDiffusionPipeline
    pipe = StableDiffusionPipeline.from_pretrained(FOLDER, safety_checker=None, dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    prompt = "a photo of leather with small red stain top left"
    noise = torch.randn((1, 4, 32, 32), generator=torch.Generator().manual_seed(4))
    theirs = pipe(prompt, latents=noise, num_inference_steps=10, guidance_scale=4.0,
                  output_type="pt").images
    with torch.no_grad():
        guidance = Guidance(4.0, tiny.context(""))
        ours = tiny.vae.decode(ddim(tiny, noise, tiny.context(prompt), guidance, 10))
    ours = (ours / 2 + 0.5).clamp(0, 1)
    assert float((ours - theirs).abs().max()) < 2e-3 and float(ours.std()) > 0.05


@pytest.mark.parametrize("one, other", [
    ("top left", "top right"), ("top left", "bottom left"), ("hole", "glue"),
    ("red stain", "blue stain"), ("stain", "stain center")])
def test_no_word_is_lost_in_its_text_encoder(tiny, one, other):
    """A text encoder trained with its U-Net gives some of these the same end tokens."""
    a, b = (tiny.context(f"a photo of metal with small {words}")[0, 10:] for words in (one, other))
    assert float(((a - b).norm(dim=1) / a.norm(dim=1)).min()) > 0.1


def photographs_only(drawn):
    """Images, masks and captions of those that are not the picture of a mask."""
    some = [i for i, caption in enumerate(drawn.captions) if "mask" not in caption and caption]
    return drawn.images[some], drawn.masks[some], [drawn.captions[i] for i in some]


def decibels(squares):
    return float(10 * torch.log10(4 / squares.mean()))


@torch.no_grad()
def test_its_vae_reconstructs_pictures_it_has_not_seen(tiny, tmp_path):
    drawn = picture_set.picture_set(tmp_path, 1 << 30, 48, 128)
    images, masks, _ = photographs_only(drawn)
    out = tiny.vae.decode(tiny.vae.encode(to_float(images))[0]).clamp(-1, 1)
    squares = (out - to_float(images)).square().mean(dim=1)
    assert decibels(squares) >= 31 and decibels(squares[torch.from_numpy(masks)]) >= 25
    assert float((out - to_float(images)).mean(dim=(2, 3)).abs().mean()) <= 0.02
    # Of all pictures, as the U-Net is trained on them: white masks lie far out in one channel.
    deviations = encode_all(tiny.vae, drawn.images, "cpu").float().std(dim=(0, 2, 3))
    assert float((deviations - 1).abs().max()) < 0.15


@torch.no_grad()
def rise_of_the_loss(tiny, images, captions, others):
    """Unmasked loss with the other captions minus that with their own: mean, its error.

    t and the noise are the same for both.
    """
    x_0 = encode_all(tiny.vae, images, "cpu").float()
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    t = torch.linspace(1, 950, len(x_0)).long()
    t = t[torch.randperm(len(t), generator=torch.Generator().manual_seed(1))]
    x_t, target = tiny.schedule.q_sample(x_0, t, eps), tiny.schedule.target(x_0, t, eps)
    losses = []
    for texts in (captions, others):
        out = tiny.unet(x_t, t, torch.cat([tiny.context(text) for text in texts]))
        losses.append(((out - target) ** 2).mean(dim=(1, 2, 3)))
    rise = (losses[1] - losses[0]).double()
    return float(rise.mean()), float(rise.std() / len(rise) ** 0.5)


def test_the_words_reach_the_picture(tiny, tmp_path):
    unseen = picture_set.picture_set(tmp_path, 1 << 30, 32, 128)
    others = unseen.captions[1:] + unseen.captions[:1]
    worse, error = rise_of_the_loss(tiny, unseen.images, unseen.captions, others)
    assert worse > 2 * error


def test_the_opposite_corners_word_is_wrong(tiny, tmp_path):
    opposite = {"top": "bottom", "bottom": "top", "left": "right", "right": "left"}
    images, _, captions = photographs_only(picture_set.picture_set(tmp_path, 1 << 30, 300, 128))
    some = [i for i, caption in enumerate(captions) if caption.split()[-1] in ("left", "right")]
    captions = [captions[i] for i in some]
    others = [" ".join(opposite.get(word, word) for word in caption.split())
              for caption in captions]
    worse, error = rise_of_the_loss(tiny, images[some], captions, others)
    assert worse > 2 * error


def test_the_tools_run_without_arguments_but_for_the_time(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(demo, "DEFECTIVE", 6)
    monkeypatch.setattr(demo, "NORMALS", 2)
    monkeypatch.chdir(tmp_path)
    assert call("train_embed", "--steps", 2, "--batch-size", 2) == 0
    config = json.loads((tmp_path / "runs/demo/config.json").read_text())
    options = config["options"]
    assert (options["weights"], options["data"], config["size"]) == ("tiny", "demo", 128)
    assert [(d["object"], d["defect"], len(d["train"])) for d in config["defects"]] == [
        (*pair, 2) for pair in sorted(demo.DEMO)]
    assert "tiny: " in capsys.readouterr().err
    assert call("train_embed", "--steps", 3, "--batch-size", 2, "--resume") == 0
    assert call("sample", "--n", 1, "--batch-size", 1, "--steps", 2, "--masks", "train") == 0
    images = sorted((tmp_path / "generated").rglob("test/*/*.png"))
    assert [path.parent.name for path in images] == ["glue", "scratch", "burn"]


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_refusal_draws_no_demo(tmp_path, capsys, more):
    out = tmp_path / "run"
    if not more:
        out.write_text("a file")
    assert call("train_embed", "--out", out, *more) == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ([] if more else ["run"])
    assert len(capsys.readouterr().err.splitlines()) == 1
