"""Loading a diffusers folder: every tensor, old layouts, one-line refusals that name the file."""

import json
import shutil

import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from checkpoint import MERGES
from ldm.config import TextConfig, UNetConfig, VAEConfig
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.vae import VAE
from weights import fingerprint, load
from weights.configs import schedule_config, text_config, unet_config, vae_config

UNET = "unet/diffusion_pytorch_model.safetensors"
VAE_FILE = "vae/diffusion_pytorch_model.safetensors"
TEXT = "text_encoder/model.safetensors"


@pytest.fixture
def folder(checkpoint, tmp_path):
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "model")


def edit_json(path, **changes):
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, **changes}))


def edit_tensors(path, change):
    """Rewrite a safetensors file; change takes the dict of tensors and returns another."""
    save_file(change(load_file(path)), path)


def refusal(folder, error=ValueError):
    """The message of the error that load raises: one line."""
    with pytest.raises(error) as caught:
        load(folder)
    assert type(caught.value) is error
    assert "\n" not in str(caught.value)
    return str(caught.value)


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


def test_an_attention_head_dim_of_the_config_counts_heads_on_every_level(folder):
    edit_json(folder / "unet/config.json", attention_head_dim=[2, 8, 16])
    assert load(folder).unet.config.heads == (2, 8, 16)
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


def test_keys_that_old_files_lack_take_their_published_values(folder):
    for name, keys in (("vae/config.json", ["scaling_factor"]),
                       ("unet/config.json", ["attention_head_dim", "upcast_attention"]),
                       ("scheduler/scheduler_config.json",
                        ["prediction_type", "beta_start", "beta_end", "num_train_timesteps"])):
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({k: v for k, v in found.items() if k not in keys}))
    sd = load(folder)
    assert sd.vae.config.scaling_factor == 0.18215 and sd.unet.config.heads == (8, 8, 8)
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


def test_the_plain_file_wins_over_the_half_precision_one(folder, sd):
    zeros = {key: 0 * tensor.half() for key, tensor in load_file(folder / UNET).items()}
    save_file(zeros, folder / "unet/diffusion_pytorch_model.fp16.safetensors")
    assert torch.equal(load(folder).unet.conv_in.weight, sd.unet.conv_in.weight)


def test_a_tokenizer_saved_again_by_transformers_5_loads(folder, sd):
    saved = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    shutil.rmtree(folder / "tokenizer")
    saved.save_pretrained(folder / "tokenizer")
    texts = ["a photo of crack", "the breaking é 😀 <|endoftext|>"]
    assert torch.equal(load(folder).tokenizer(texts), sd.tokenizer(texts))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    message = refusal(tmp_path / "nowhere", FileNotFoundError)
    assert message.startswith(f"{tmp_path / 'nowhere'}: no such folder; expected")


@pytest.mark.parametrize("name", [UNET, VAE_FILE, TEXT, "unet/config.json", "vae/config.json",
                                  "text_encoder/config.json", "scheduler/scheduler_config.json",
                                  "tokenizer/merges.txt"])
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    assert refusal(folder, FileNotFoundError).startswith(f"{folder / name}: not found")


def test_a_missing_tokenizer_is_refused(folder):
    shutil.rmtree(folder / "tokenizer")
    assert str(folder / "tokenizer") in refusal(folder, FileNotFoundError)


def test_a_pickle_is_refused_with_the_way_to_convert_it(folder):
    (folder / UNET).unlink()
    (folder / "unet/diffusion_pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'exit 3'\ntR.")
    message = refusal(folder, FileNotFoundError)
    assert str(folder / UNET) in message and "diffusion_pytorch_model.bin" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("name", [UNET, VAE_FILE, TEXT])
@pytest.mark.parametrize("fault", ["truncated", "half a header", "zero bytes", "git-lfs pointer"])
def test_a_damaged_weight_file_is_refused_by_name(folder, name, fault):
    whole = (folder / name).read_bytes()
    (folder / name).write_bytes({
        "truncated": whole[:-1000], "half a header": whole[:100], "zero bytes": b"",
        "git-lfs pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n",
    }[fault])
    message = refusal(folder)
    assert str(folder / name) in message and "not a whole safetensors file" in message


@pytest.mark.parametrize("name", [UNET, VAE_FILE, TEXT])
@pytest.mark.parametrize("fault", ["missing", "extra", "shape"])
def test_tensors_that_do_not_match_the_config_are_refused_by_name(folder, name, fault):
    key = {UNET: "conv_in.weight", VAE_FILE: "quant_conv.weight",
           TEXT: "final_layer_norm.weight"}[name]

    def change(found):
        if fault == "missing":
            del found[key]
        elif fault == "extra":
            found["more.weight"] = torch.zeros(2)
        else:
            found[key] = torch.cat([found[key], found[key]])
        return found

    edit_tensors(folder / name, change)
    message = refusal(folder)
    assert str(folder / name) in message and ("more.weight" if fault == "extra" else key) in message
    assert {"missing": "1 tensors missing", "extra": "1 unexpected",
            "shape": "has shape"}[fault] in message


def test_a_shape_is_not_made_to_fit_by_broadcasting_or_reshaping(folder):
    edit_tensors(folder / VAE_FILE, lambda found: {
        **found, "quant_conv.weight": found["quant_conv.weight"].flatten(1)})
    assert "quant_conv.weight has shape (8, 8), expected (8, 8, 1, 1)" in refusal(folder)


@pytest.mark.parametrize("name", ["unet/config.json", "vae/config.json", "text_encoder/config.json",
                                  "scheduler/scheduler_config.json", "tokenizer/vocab.json"])
@pytest.mark.parametrize("text", ["", "{", '{"a":\n 1,\n}', "[]", "null", "\udcff"])
def test_a_json_file_that_holds_no_object_is_refused_by_name(folder, name, text):
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("name, key, value", [
    ("unet/config.json", "in_channels", 9),
    ("unet/config.json", "in_channels", 8),
    ("unet/config.json", "use_linear_projection", True),
    ("unet/config.json", "upcast_attention", True),
    ("unet/config.json", "flip_sin_to_cos", False),
    ("unet/config.json", "freq_shift", 1),
    ("unet/config.json", "norm_eps", 1e-6),
    ("unet/config.json", "only_cross_attention", True),
    ("unet/config.json", "class_embed_type", "timestep"),
    ("unet/config.json", "addition_embed_type", "text_time"),
    ("unet/config.json", "act_fn", "gelu"),
    ("unet/config.json", "transformer_layers_per_block", [1, 2, 10]),
    ("unet/config.json", "down_block_types", ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"]),
    ("unet/config.json", "up_block_types",
     ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"]),
    ("unet/config.json", "block_out_channels", [32, 64]),
    ("unet/config.json", "block_out_channels", "32"),
    ("unet/config.json", "norm_num_groups", 7),
    ("unet/config.json", "attention_head_dim", 5),
    ("unet/config.json", "attention_head_dim", [4, 4]),
    ("unet/config.json", "cross_attention_dim", None),
    ("vae/config.json", "latent_channels", 16),
    ("vae/config.json", "scaling_factor", 0),
    ("vae/config.json", "norm_num_groups", 5),
    ("vae/config.json", "use_quant_conv", False),
    ("vae/config.json", "shift_factor", 0.1159),
    ("text_encoder/config.json", "hidden_act", "gelu"),
    ("text_encoder/config.json", "num_attention_heads", 5),
    ("text_encoder/config.json", "hidden_size", "32"),
    ("scheduler/scheduler_config.json", "prediction_type", "v_prediction"),
    ("scheduler/scheduler_config.json", "beta_schedule", "linear"),
    ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True),
    ("scheduler/scheduler_config.json", "beta_end", 0.0001),
])
def test_a_config_of_another_model_is_refused_by_file(folder, name, key, value):
    edit_json(folder / name, **{key: value})
    assert str(folder / name) in refusal(folder)


def test_a_config_of_another_model_is_refused_by_key_and_value(folder):
    edit_json(folder / "unet/config.json", in_channels=9)
    assert "in_channels is 9, but only 4 is supported" in refusal(folder)
    edit_json(folder / "unet/config.json", in_channels=4)
    edit_json(folder / "scheduler/scheduler_config.json", prediction_type="v_prediction")
    assert "prediction_type is 'v_prediction', but only 'epsilon'" in refusal(folder)


def test_a_text_encoder_of_another_width_is_refused(folder):
    edit_json(folder / "text_encoder/config.json", hidden_size=64)
    message = refusal(folder)
    assert str(folder) in message and "width 32" in message and "gives 64" in message


def test_a_vocabulary_that_is_not_clips_is_refused(folder):
    vocab = json.loads((folder / "tokenizer/vocab.json").read_text())
    (folder / "tokenizer/vocab.json").write_text(json.dumps({**vocab, "one more": len(vocab)}))
    assert str(folder / "tokenizer") in refusal(folder)
    del vocab["<|endoftext|>"]
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocab))
    message = refusal(folder)
    assert str(folder / "tokenizer") in message and "<|endoftext|>" in message


def write_vocabulary(folder, vocab):
    (folder / "tokenizer/vocab.json").write_text(json.dumps(vocab))


def without_vocabulary(folder, content):
    """The tokenizer folder as transformers 5 leaves it, with this tokenizer.json."""
    (folder / "tokenizer/vocab.json").unlink()
    (folder / "tokenizer/tokenizer.json").write_text(json.dumps(content))


TOKENIZER_FAULTS = {
    "an id beyond the word table": lambda folder: write_vocabulary(
        folder, {**json.loads((folder / "tokenizer/vocab.json").read_text()), "!": 100_000}),
    "an id that is no number": lambda folder: write_vocabulary(
        folder, {"<|startoftext|>": 0, "<|endoftext|>": "x"}),
    "a merge of three": lambda folder: (folder / "tokenizer/merges.txt").write_text("a b c\n"),
    "a merge of unknown tokens": lambda folder: (
        folder / "tokenizer/merges.txt").write_text("ab cd\n"),
    "merges in another encoding": lambda folder: (
        folder / "tokenizer/merges.txt").write_bytes(b"\xff\xfe\n"),
    "a tokenizer.json without a model": lambda folder: without_vocabulary(folder, {"model": None}),
    "a tokenizer.json of another kind": lambda folder: without_vocabulary(
        folder, {"model": {"type": "Unigram", "vocab": [["a", -1.0]]}}),
}


@pytest.mark.parametrize("fault", TOKENIZER_FAULTS)
def test_a_faulty_tokenizer_is_refused_in_one_line_that_names_it(folder, fault):
    TOKENIZER_FAULTS[fault](folder)
    assert str(folder / "tokenizer") in refusal(folder)


def test_merges_written_as_strings_load_as_well_as_pairs(folder, sd):
    """tokenizer.json as the tokenizers package wrote it before 0.20."""
    vocab = json.loads((folder / "tokenizer/vocab.json").read_text())
    without_vocabulary(folder, {"model": {"type": "BPE", "vocab": vocab, "merges": MERGES}})
    texts = ["a photo of crack", "the breaking"]
    assert torch.equal(load(folder).tokenizer(texts), sd.tokenizer(texts))


def test_a_tensor_that_comes_under_two_names_is_refused(folder):
    key = "final_layer_norm.bias"
    edit_tensors(folder / TEXT, lambda found: {
        **found, f"text_model.{key}": torch.ones_like(found[key])})
    message = refusal(folder)
    assert str(folder / TEXT) in message and key in message


def test_quantised_weights_are_refused(folder):
    edit_tensors(folder / UNET, lambda found: {
        **found, "conv_in.weight": torch.ones_like(found["conv_in.weight"]).to(torch.int8)})
    message = refusal(folder)
    assert str(folder / UNET) in message and "conv_in.weight" in message


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
