"""Loading a diffusers folder: every tensor, old layouts, the sizes and constants of its configs."""

import json
import shutil
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from benchmarks.random_models import MERGES
from ldm.config import TextConfig, UNetConfig, VAEConfig
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.vae import VAE
from models_on_disk import TEXT, UNET, VAE_FILE, edit_json, edit_tensors, refusal
from weights import fingerprint, load
from weights.configs import schedule_config, text_config, unet_config, vae_config


def shapes(module):
    return {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}


def parts(sd):
    return {UNET: sd.unet, VAE_FILE: sd.vae, TEXT: sd.text_encoder}


def test_every_tensor_of_a_folder_saved_by_diffusers_is_loaded(sd, checkpoint):
    for name, module in parts(sd).items():
        found, expected = module.state_dict(), load_file(checkpoint / name)
        assert found.keys() == expected.keys()
        for key in expected:
            assert torch.equal(found[key], expected[key]), f"{name}: {key}"
            assert found[key].dtype == torch.float32
        assert not module.training and not any(p.requires_grad for p in module.parameters())


def test_sizes_come_from_the_config_files(sd):
    assert sd.unet.config == UNetConfig(
        channels=(32, 64, 64), cross_attention=(True, True, False), layers_per_block=1,
        heads=(4, 4, 4), context_dim=32, norm_groups=8, sample_size=16)
    assert sd.vae.config == VAEConfig(channels=(16, 32, 32), layers_per_block=1, norm_groups=8)
    assert (sd.native_size, sd.size_multiple) == (64, 16)


@pytest.fixture(scope="module")
def full_size():
    """SD 1.5's U-Net, VAE and text encoder, built by diffusers and transformers without memory."""
    with torch.device("meta"):
        return (
            UNet2DConditionModel(cross_attention_dim=768, sample_size=64),
            AutoencoderKL(block_out_channels=(128, 256, 512, 512), layers_per_block=2,
                          latent_channels=4, sample_size=512,
                          down_block_types=("DownEncoderBlock2D",) * 4,
                          up_block_types=("UpDecoderBlock2D",) * 4),
            CLIPTextModel(CLIPTextConfig(vocab_size=49408, hidden_size=768, intermediate_size=3072,
                                         num_hidden_layers=12, num_attention_heads=12)))


def test_full_size_keys_shapes_and_counts_are_those_of_sd_1_5(full_size):
    with torch.device("meta"):
        built = UNet(UNetConfig()), VAE(VAEConfig()), TextEncoder(TextConfig())
    for module, reference, count in zip(built, full_size, (859_520_964, 83_653_863, 123_060_480)):
        assert shapes(module) == shapes(reference)
        assert sum(p.numel() for p in module.parameters()) == count


def test_full_size_config_files_give_the_published_sizes(full_size, tmp_path):
    unet, vae, text_encoder = full_size
    unet.save_config(tmp_path)
    assert unet_config(tmp_path / "config.json") == UNetConfig()
    vae.save_config(tmp_path)
    assert vae_config(tmp_path / "config.json") == VAEConfig()
    text_encoder.config.save_pretrained(tmp_path)
    assert text_config(tmp_path / "config.json") == TextConfig()


@pytest.mark.parametrize("changes", [
    {"attention_head_dim": [2, 8, 16]}, {"upcast_attention": None, "use_linear_projection": None},
    {"only_cross_attention": [False] * 3, "transformer_layers_per_block": [1, 1, 1]},
    {"layers_per_block": [1] * 3, "cross_attention_dim": [32] * 3, "sample_size": [16, 16]},
    {"mid_block_only_cross_attention": False, "attention_type": None, "center_input_sample": None},
    {"attention_head_dim": None, "num_attention_heads": None, "class_embeddings_concat": None}])
def test_a_config_means_what_it_means_in_diffusers(folder, checkpoint, changes):
    """Nulls, and lists of one repeated value; an attention_head_dim counts heads on every level."""
    edit_json(folder / "unet/config.json", **changes)
    heads = changes.get("attention_head_dim", [4, 4, 4]) or [8, 8, 8]
    assert load(folder).unet.config == replace(load(checkpoint).unet.config, heads=tuple(heads))
    if heads == [8, 8, 8]:      # where diffusers 0.42 fails, and its own default is meant
        edit_json(folder / "unet/config.json", attention_head_dim=8)
    reference = UNet2DConditionModel.from_pretrained(folder / "unet").eval()
    torch.manual_seed(0)
    x_t, t, context = torch.randn(1, 4, 8, 8), torch.tensor([501]), torch.randn(1, 7, 32)
    with torch.no_grad():
        found, expected = load(folder).unet(x_t, t, context), reference(x_t, t, context).sample
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_the_scaling_factor_and_the_betas_come_from_their_files(folder):
    edit_json(folder / "vae/config.json", scaling_factor=0.5)
    edit_json(folder / "scheduler/scheduler_config.json", beta_start=0.001, beta_end=0.02)
    sd = load(folder)
    assert sd.vae.config.scaling_factor == 0.5
    assert float(sd.schedule.alphas_cumprod[0]) == pytest.approx(0.999)


def test_trained_betas_and_a_zero_terminal_snr_load_where_they_are_the_schedules_own(folder, sd):
    reference = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                              rescale_betas_zero_snr=True)
    betas = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear").betas
    scheduler = folder / "scheduler/scheduler_config.json"
    edit_json(scheduler, trained_betas=betas.tolist())
    assert load(folder).schedule.config == sd.schedule.config
    edit_json(scheduler, rescale_betas_zero_snr=True, prediction_type="v_prediction")
    torch.testing.assert_close(load(folder).schedule.alphas_cumprod, reference.alphas_cumprod,
                               rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("null", [False, True])
def test_keys_that_files_lack_or_have_as_null_take_their_published_values(folder, null):
    for name, keys in (("vae/config.json", ["scaling_factor", "act_fn", "norm_num_groups"]),
                       ("unet/config.json", ["attention_head_dim", "upcast_attention", "norm_eps",
                                             "in_channels", "sample_size"]),
                       ("scheduler/scheduler_config.json",
                        ["prediction_type", "beta_start", "beta_end", "num_train_timesteps",
                         "beta_schedule", "trained_betas", "rescale_betas_zero_snr"])):
        found = json.loads((folder / name).read_text())
        kept = {k: v for k, v in found.items() if k not in keys}
        (folder / name).write_text(json.dumps({**kept, **(dict.fromkeys(keys) if null else {})}))
    edit_json(folder / "vae/config.json", norm_num_groups=8)    # the small model's, not 32
    sd = load(folder)
    assert sd.vae.config.scaling_factor == 0.18215 and sd.unet.config.heads == (8, 8, 8)
    assert sd.unet.config.sample_size == 64
    assert "states no beta_schedule; the published one is taken" in sd.remarks[0]
    assert sd.remarks[1].endswith("scheduler_config.json states none, diffusers' default")
    config = schedule_config(folder / "scheduler/scheduler_config.json")
    assert (config.train_timesteps, config.beta_start, config.beta_end) == (1000, 0.00085, 0.012)


@pytest.mark.parametrize("ids", [torch.arange(77)[None], torch.full((1, 77), 3.0).half()])
def test_the_text_model_prefix_is_accepted_and_position_ids_are_not_loaded(folder, sd, ids):
    edit_tensors(folder / TEXT, lambda found: {
        **{f"text_model.{key}": tensor for key, tensor in found.items()},
        "text_model.embeddings.position_ids": ids})
    found, expected = load(folder).text_encoder.state_dict(), sd.text_encoder.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    text = sd.tokenizer(["a photo of crack"])
    encoder = load(folder).text_encoder
    assert torch.equal(encoder.encode(encoder.embed(text)), sd.context("a photo of crack"))


def test_the_old_names_of_the_vaes_attention_load_to_the_same_outputs(folder, sd):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def renamed(key):
        for new, name in old.items():
            key = key.replace(f"attentions.0.{new}.", f"attentions.0.{name}.")
        return key

    edit_tensors(folder / VAE_FILE, lambda found: {renamed(k): v for k, v in found.items()})
    assert sum(".proj_attn." in key for key in load_file(folder / VAE_FILE)) == 4
    torch.manual_seed(0)
    vae, image = load(folder).vae, torch.rand(1, 3, 16, 24) * 2 - 1
    with torch.no_grad():
        for found, expected in zip(vae.encode(image), sd.vae.encode(image)):
            assert torch.equal(found, expected)
        latents = sd.vae.encode(image)[0]
        assert torch.equal(vae.decode(latents), sd.vae.decode(latents))
    reference = AutoencoderKL.from_pretrained(folder / "vae").eval()    # diffusers reads them too
    with torch.no_grad():
        expected = reference.encode(image).latent_dist.mean * 0.18215
    assert (vae.encode(image)[0] - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_half_precision_files_load_as_float32_where_there_is_no_plain_one(folder):
    halves = {}
    for name in (UNET, VAE_FILE, TEXT):
        halves[name] = {key: tensor.half() for key, tensor in load_file(folder / name).items()}
        save_file(halves[name], folder / name.replace(".safetensors", ".fp16.safetensors"))
        (folder / name).unlink()
    for name, module in parts(load(folder)).items():
        for key, tensor in module.state_dict().items():
            assert tensor.dtype == torch.float32
            assert torch.equal(tensor, halves[name][key].float())


def test_the_plain_file_wins_over_the_half_precision_one_and_that_over_others(folder, sd):
    zeros = {key: 0 * tensor.half() for key, tensor in load_file(folder / UNET).items()}
    save_file(zeros, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(load(folder).unet.conv_in.weight, sd.unet.conv_in.weight)
    shutil.copy(folder / UNET, folder / "unet/diffusion_pytorch_model.bf16.safetensors")
    (folder / UNET).rename(folder / "unet/diffusion_pytorch_model.non_ema.safetensors")
    assert not load(folder).unet.conv_in.weight.any()
    (folder / "unet/diffusion_pytorch_model.fp16.safetensors").unlink()
    said = "only config.json, diffusion_pytorch_model.bf16.safetensors, diffusion_pytorch_model.n"
    assert f"{folder / UNET}: not found, {said}" in refusal(folder, FileNotFoundError)


@pytest.mark.parametrize("variant", ["bf16", "non_ema", "fp32"])
def test_the_only_variant_of_a_part_is_taken_and_named(folder, sd, variant):
    path = (folder / VAE_FILE).rename(folder / VAE_FILE.replace(".safe", f".{variant}.safe"))
    found = load(folder)
    assert torch.equal(found.vae.quant_conv.weight, sd.vae.quant_conv.weight)
    said = f"{path}: taken, because there is no diffusion_pytorch_model.safetensors"
    assert found.remarks == (said, *sd.remarks[:-1], found.remarks[-1])


@pytest.mark.parametrize("name", ["text_projection.weight", "logit_scale", "v_pred",
                                  "vision_model.embeddings.class_embedding"])
def test_what_other_tools_leave_in_a_folders_file_is_left_out_and_named(folder, sd, name):
    edit_tensors(folder / TEXT, lambda found: {**found, name: torch.tensor([])})
    found = load(folder)
    assert found.remarks[0] == f"{folder / TEXT}: {name} left out, no weights of its parts"
    assert torch.equal(found.context("crack"), sd.context("crack"))


def test_a_tokenizer_saved_again_by_transformers_5_loads(folder, sd):
    saved = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    shutil.rmtree(folder / "tokenizer")
    saved.save_pretrained(folder / "tokenizer")
    texts = ["a photo of crack", "the breaking é 😀 <|endoftext|>"]
    assert torch.equal(load(folder).tokenizer(texts), sd.tokenizer(texts))


def test_merges_written_as_strings_load_as_well_as_pairs(folder, sd):
    """tokenizer.json as the tokenizers package wrote it before 0.20."""
    vocab = json.loads((folder / "tokenizer/vocab.json").read_text())
    (folder / "tokenizer/vocab.json").unlink()
    (folder / "tokenizer/tokenizer.json").write_text(
        json.dumps({"model": {"type": "BPE", "vocab": vocab, "merges": MERGES}}))
    texts = ["a photo of crack", "the breaking"]
    assert torch.equal(load(folder).tokenizer(texts), sd.tokenizer(texts))


@pytest.mark.parametrize("name", [UNET, VAE_FILE, TEXT])
def test_the_fingerprint_changes_with_a_byte_of_any_weight_file(folder, checkpoint, name):
    assert fingerprint(folder) == fingerprint(checkpoint)
    whole = bytearray((folder / name).read_bytes())
    whole[-1] ^= 1
    (folder / name).write_bytes(whole)
    assert fingerprint(folder) != fingerprint(checkpoint)


def test_the_fingerprint_does_not_depend_on_the_folders_name(folder, tmp_path):
    expected = fingerprint(folder)
    assert fingerprint(folder.rename(tmp_path / "another name")) == expected
    assert len(expected) == 64
