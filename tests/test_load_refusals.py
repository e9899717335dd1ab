"""What load refuses, in one line that names the file, says what it is and what to do."""

import json
import shutil
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from models_on_disk import TEXT, UNET, VAE_FILE, edit_json, edit_tensors, refusal
from weights import load


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    message = refusal(tmp_path / "nowhere", FileNotFoundError)
    assert message.startswith(f"{tmp_path / 'nowhere'}: no such file or folder; expected")


@pytest.mark.parametrize("name", [UNET, VAE_FILE, TEXT, "unet/config.json", "vae/config.json",
                                  "text_encoder/config.json", "scheduler/scheduler_config.json",
                                  "tokenizer/merges.txt"])
def test_a_missing_file_is_refused_by_name(folder, name):
    (folder / name).unlink()
    assert refusal(folder, FileNotFoundError).startswith(f"{folder / name}: not found")


def test_a_missing_tokenizer_is_refused(folder):
    shutil.rmtree(folder / "tokenizer")
    assert str(folder / "tokenizer") in refusal(folder, FileNotFoundError)


class ModelCheckpoint:
    """Stands for a class of Lightning's that is not installed where the file is converted."""

    def __init__(self, best):
        self.best = best


def save_lightning(path, tensors):
    """As trainers do: weights under state_dict beside callbacks, optimizers and a configuration."""
    name = "lightning_stand_in"
    ModelCheckpoint.__module__ = ModelCheckpoint.__name__ = ModelCheckpoint.__qualname__ = name
    sys.modules[name] = type("", (), {name: ModelCheckpoint})()
    try:
        torch.save({"epoch": 3, "state_dict": tensors,
                    "callbacks": {ModelCheckpoint: {"best": torch.zeros(2)}},
                    "hyper_parameters": ModelCheckpoint(0.5),
                    "optimizer_states": [{"state": {}}]}, path)
    finally:
        del sys.modules[name]


PICKLES = {
    "a Lightning checkpoint": save_lightning,
    "a zip, as torch.save writes": lambda path, tensors: torch.save(tensors, path),
    "bare, as torch.save wrote before 1.6": lambda path, tensors: torch.save(
        tensors, path, _use_new_zipfile_serialization=False),
    "nested in a state_dict, beside numbers": lambda path, tensors: torch.save(
        {"global_step": 875000, "state_dict": tensors}, path),
}


BINS = {UNET: "unet/diffusion_pytorch_model.bin", VAE_FILE: "vae/diffusion_pytorch_model.fp16.bin",
        TEXT: "text_encoder/pytorch_model.bin"}


@pytest.mark.parametrize("name", BINS)
@pytest.mark.parametrize("kind", PICKLES)
def test_a_folder_of_pickles_is_refused_with_lines_that_convert_it(folder, sd, kind, name):
    tensors = load_file(folder / name)
    (folder / name).unlink()
    pickle = folder / BINS[name]
    PICKLES[kind](pickle, tensors)
    message = refusal(folder, FileNotFoundError)
    assert message.startswith(f"{pickle}: is a pickle")
    exec(message.split("in Python: ")[1], {})
    found = load(folder)
    for a, b in ((found.unet, sd.unet), (found.vae, sd.vae), (found.text_encoder, sd.text_encoder)):
        assert all(torch.equal(p, q) for p, q in zip(a.parameters(), b.parameters(), strict=True))


@pytest.mark.parametrize("kind", PICKLES)
@pytest.mark.parametrize("name", ["model.ckpt", "model.pt", "model.safetensors"])
def test_a_single_pickle_is_refused_with_lines_that_convert_it(single_files, tmp_path, kind, name):
    path = tmp_path / name
    PICKLES[kind](path, load_file(single_files["SD 1.5"]))
    message = refusal(path)
    assert message.startswith(f"{path}: is a pickle")
    exec(message.split("in Python: ")[1], {})
    converted = "model.safetensors"
    if name == converted:
        converted = "model-converted.safetensors"
    assert load(tmp_path / converted).native_size == 512


def header(text, length=None, data=b"\0" * 64):
    """The bytes of a safetensors file with this header."""
    text = text.encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def tensors(**offsets):
    return header(json.dumps({
        name: {"dtype": "F32", "shape": [(b - a) // 4], "data_offsets": [a, b]}
        for name, (a, b) in offsets.items()}))


NOT_WHOLE, CUT_OFF = "not a whole safetensors file", "is cut off or not safetensors"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
DAMAGED = {     # what lies on the disk: what the message says
    "cut off": (lambda whole: whole[:-1000], NOT_WHOLE),
    "half a header": (lambda whole: whole[:100], f"{CUT_OFF} (its header should have"),
    "nothing": (lambda whole: b"", "is empty (0 bytes)"),
    "three bytes": (lambda whole: b"abc", CUT_OFF),
    "zero bytes": (lambda whole: b"\0" * len(whole), "starts with zero bytes"),
    "a git-lfs pointer": (
        lambda whole: POINTER.encode(),
        "is a git-lfs pointer of 63 bytes, not the file itself; run git lfs pull"),
    "a web page": (lambda whole: b"<!doctype html><html>404</html>", "is a web page"),
    "noise": (lambda whole: bytes(range(1, 250)), f"{CUT_OFF} (it starts with"),
    "a header longer than the file": (lambda whole: header("{}", 2 ** 62), CUT_OFF),
    "a header that is not JSON": (lambda whole: header("{oh no"), NOT_WHOLE),
    "a header nested deeply": (lambda whole: header("{\"a\":" * 50_000), NOT_WHOLE),
    "overlapping tensors": (lambda whole: tensors(a=(0, 64), b=(32, 64)), NOT_WHOLE),
    "a tensor beyond the end": (lambda whole: tensors(a=(0, 64), b=(64, 640)), NOT_WHOLE),
    "a gap": (lambda whole: tensors(a=(0, 32), b=(48, 64)), NOT_WHOLE),
    "no tensors": (lambda whole: header("{}", data=b""), "holds no tensors"),
}


@pytest.mark.parametrize("fault", DAMAGED)
def test_a_damaged_file_is_refused_by_what_it_is(folder, single_files, tmp_path, fault):
    damage, expected = DAMAGED[fault]
    for name in (UNET, VAE_FILE, TEXT):
        whole = (folder / name).read_bytes()
        (folder / name).write_bytes(damage(whole))
        message = refusal(folder)
        assert message.startswith(f"{folder / name}: {expected}") and "; " in message
        (folder / name).write_bytes(whole)
    path = tmp_path / "single.safetensors"
    path.write_bytes(damage(single_files["SD 1.5"].read_bytes()))
    assert refusal(path).startswith(f"{path}: {expected}")


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
    assert {"missing": "1 tensors missing", "extra": "extra tensor more.weight; save the file wi",
            "shape": "has shape"}[fault] in message


@pytest.mark.parametrize("name", [UNET, VAE_FILE, TEXT])
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_weights_that_are_not_finite_are_refused_as_such(folder, name, value, dtype):
    def change(found):
        key = sorted(found)[len(found) // 2]
        found = {k: v.to(dtype) for k, v in found.items()}
        found[key].view(-1)[-1] = value
        return found

    edit_tensors(folder / name, change)
    assert refusal(folder).startswith(
        f"{folder / name}: the checkpoint's weights are not finite (NaN or inf in ")


def test_a_shape_is_not_made_to_fit_by_broadcasting_or_reshaping(folder):
    edit_tensors(folder / VAE_FILE, lambda found: {
        **found, "quant_conv.weight": found["quant_conv.weight"].flatten(1)})
    assert "quant_conv.weight has shape (8, 8), which does not give" in refusal(folder)


@pytest.mark.parametrize("name", ["unet/config.json", "vae/config.json", "text_encoder/config.json",
                                  "scheduler/scheduler_config.json", "tokenizer/vocab.json"])
@pytest.mark.parametrize("text", ["", "{", '{"a":\n 1,\n}', "[]", "null", "\udcff"])
def test_a_json_file_that_holds_no_object_is_refused_by_name(folder, name, text):
    (folder / name).write_bytes(text.encode("utf-8", "surrogateescape"))
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("name, key, value", [
    ("unet/config.json", "layers_per_block", 100_000),      # would take hours to build
    ("text_encoder/config.json", "num_hidden_layers", 100_000),
    ("unet/config.json", "in_channels", 9),
    ("unet/config.json", "in_channels", 8),
    ("unet/config.json", "use_linear_projection", 1.5),
    ("unet/config.json", "in_channels", "4"),
    ("unet/config.json", "in_channels", [4]),
    ("vae/config.json", "scaling_factor", float("inf")),
    ("vae/config.json", "scaling_factor", True),
    ("unet/config.json", "upcast_attention", "yes"),
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
    ("unet/config.json", "cross_attention_dim", [32, 16, 32]),
    ("unet/config.json", "layers_per_block", [1, 2, 1]),
    ("unet/config.json", "sample_size", [16, 24]),
    ("unet/config.json", "only_cross_attention", [True, False, False]),
    ("unet/config.json", "mid_block_type", None),       # no middle block
    ("unet/config.json", "flip_sin_to_cos", None),
    ("vae/config.json", "use_quant_conv", None),
    ("vae/config.json", "_class_name", "AutoencoderTiny"),
    ("vae/config.json", "latent_channels", 16),
    ("vae/config.json", "scaling_factor", 0),
    ("vae/config.json", "norm_num_groups", 5),
    ("vae/config.json", "use_quant_conv", False),
    ("vae/config.json", "shift_factor", 0.1159),
    ("text_encoder/config.json", "hidden_act", "relu"),
    ("text_encoder/config.json", "hidden_act", ["gelu"]),
    ("text_encoder/config.json", "num_attention_heads", 5),
    ("text_encoder/config.json", "hidden_size", "32"),
    ("scheduler/scheduler_config.json", "prediction_type", "sample"),
    ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", True),
    ("scheduler/scheduler_config.json", "rescale_betas_zero_snr", "yes"),
    ("scheduler/scheduler_config.json", "beta_end", 0.0001),
])
def test_a_config_of_another_model_is_refused_by_file(folder, name, key, value):
    edit_json(folder / name, **{key: value})
    assert str(folder / name) in refusal(folder)


@pytest.mark.parametrize("key, value, shown", [
    ("beta_schedule", "linear", "'linear'"), ("beta_schedule", "squaredcos_cap_v2", "'squared"),
    ("trained_betas", [0.02] * 1000, "[0.02, 0.02, 0.02, 0.02, 0.02, 0.02, ...]"),
    ("trained_betas", [0.00085], "[0.00085]"), ("trained_betas", 0.5, "0.5"),
    *(("num_train_timesteps", n, str(n)) for n in (1, 10, 500, 2000))])
def test_a_noise_schedule_that_is_not_supported_is_named_by_key_and_value(
        folder, key, value, shown):
    path = folder / "scheduler/scheduler_config.json"
    edit_json(path, **{key: value})
    message = refusal(folder)
    assert message.startswith(f"{path}: {key} is {shown}") and len(message) < 400
    assert message.endswith("; use a checkpoint of the published noise schedule, and its "
                            "scheduler_config.json")


@pytest.mark.parametrize(
    "name", ["unet/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt"])
def test_a_git_lfs_pointer_in_place_of_a_text_file_is_refused_as_one(folder, name):
    (folder / name).write_text(POINTER)
    assert f"{folder / name}: is a git-lfs pointer of 63 bytes" in refusal(folder)


def test_a_linear_projection_that_the_weights_do_not_have_is_refused(folder):
    edit_json(folder / "unet/config.json", use_linear_projection=True)
    assert "proj_in.weight has shape (32, 32, 1, 1), which does not give" in refusal(folder)


@pytest.mark.parametrize("channels, kind", [
    (9, "an inpainting model"), (8, "an image-editing model (InstructPix2Pix)"),
    (5, "a depth-to-image model")])
def test_a_unet_that_reads_more_than_latents_is_refused_by_what_it_is(
        folder, single_files, tmp_path, channels, kind):
    edit_json(folder / "unet/config.json", in_channels=channels)
    said = f"reads {channels} channels, so this is {kind}"
    assert f"{said}; use a text-to-image model" in refusal(folder)
    key, path = "model.diffusion_model.input_blocks.0.0.weight", tmp_path / "single.safetensors"
    found = load_file(single_files["SD 1.5"])
    save_file({**found, key: torch.zeros(32, channels, 3, 3)}, path)
    assert f"{path}: the U-Net {said}" in refusal(path)


@pytest.mark.parametrize("name", [
    "StableDiffusionXLPipeline", "StableDiffusion3Pipeline", "FluxPipeline",
    "StableDiffusionInpaintPipeline", "StableDiffusionDepth2ImgPipeline",
    "StableDiffusionInstructPix2PixPipeline"])
def test_a_folder_of_another_pipeline_is_refused_by_its_name(folder, name):
    (folder / "model_index.json").write_text(json.dumps({"_class_name": name}))
    assert f"{folder}: holds a {name} (model_index.json); expected" in refusal(folder)


KEYS_OF_OTHERS = {
    "a Stable Diffusion XL checkpoint": [
        "conditioner.embedders.0.transformer.text_model.x",
        "model.diffusion_model.input_blocks.0.0.weight"],
    "a Stable Diffusion 3 checkpoint": [
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
    "a Flux checkpoint": ["double_blocks.0.img_attn.qkv.weight", "single_blocks.0.linear1.weight"],
    "a LoRA, an addition to a checkpoint": [
        "lora_unet_down_blocks_0_attentions_0_proj_in.lora_down.weight"],
    "a LoRA, an addition": ["unet.down_blocks.0.attentions.0.proj_in.lora_A.weight"],
    "a ControlNet": [
        "control_model.input_blocks.0.0.weight", "control_model.zero_convs.0.0.weight"],
    "a textual-inversion embedding": ["emb_params"],
    "a VAE alone": ["encoder.conv_in.weight", "decoder.up.0.block.0.conv1.weight"],
    "a text encoder alone": ["text_model.embeddings.token_embedding.weight"],
    "a Stable Diffusion XL checkpoint; use": [
        "model.diffusion_model.label_emb.0.0.weight",
        "model.diffusion_model.input_blocks.0.0.weight"],
    "a U-Net alone; give": ["input_blocks.0.0.weight", "middle_block.0.in_layers.0.weight"],
    "a U-Net alone": ["down_blocks.0.resnets.0.conv1.weight", "conv_in.weight"],
    "saved with state_dict. before its tensors' names; save it without": [
        "state_dict.model.diffusion_model.input_blocks.0.0.weight"],
    "not a Stable Diffusion checkpoint (1 tensors, first: ['classifier.weight'])": [
        "classifier.weight"],
}


@pytest.mark.parametrize("what", KEYS_OF_OTHERS)
def test_a_file_of_another_kind_is_refused_by_what_it_is(tmp_path, what):
    path = tmp_path / "other.safetensors"
    save_file({key: torch.zeros(2, 4, 1, 1) for key in KEYS_OF_OTHERS[what]}, path)
    message = refusal(path)
    verb = "" if what.startswith("not") else "is "
    assert message.startswith(f"{path}: {verb}{what}") and "; " in message


@pytest.mark.parametrize("lost, said", [
    (["first_stage_model."], "no VAE (first_stage_model)"),
    (["cond_stage_model."], "no text encoder (cond_stage_model)"),
    (["model.diffusion_model."], "no U-Net (model.diffusion_model)"),
    (["cond_", "first_"], "no VAE (first_stage_model) and no text encoder (cond_stage_model)")])
def test_a_single_file_without_a_part_is_refused_by_what_it_lacks(
        single_files, tmp_path, lost, said):
    path = tmp_path / "single.safetensors"
    save_file({key: tensor for key, tensor in load_file(single_files["SD 1.5"]).items()
               if not key.startswith(tuple(lost))}, path)
    assert refusal(path).startswith(f"{path}: has {said}; give the folder with unet, vae and")


@pytest.mark.parametrize("shard, index", [
    ("-00001-of-00002", "index"), (".fp16-00001-of-00001", "index.fp16")])
def test_a_folder_of_shards_is_refused_with_the_way_to_join_them(folder, shard, index):
    (folder / UNET).rename(folder / f"unet/diffusion_pytorch_model{shard}.safetensors")
    (folder / f"unet/diffusion_pytorch_model.safetensors.{index}.json").write_text("{}")
    assert "the weights are in shards; save the model again" in refusal(folder, FileNotFoundError)


def test_missing_and_extra_tensors_of_a_single_file_are_counted_and_named(single_files, tmp_path):
    path = tmp_path / "single.safetensors"
    found = load_file(single_files["SD 2.1-v"])
    for key in ("out.2.bias", "input_blocks.10.0.in_layers.0.weight"):
        del found[f"model.diffusion_model.{key}"]
    more = {"model.diffusion_model.more": torch.zeros(2), "stray": torch.zeros(2)}
    save_file({**found, **more}, path)
    message = refusal(path)
    assert "2 tensors missing" in message and "conv_out.bias" in message
    assert "2 unexpected" in message and all(name in message for name in more)


@pytest.mark.parametrize("key, tensor", [
    ("cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight", torch.zeros(95, 32)),
    ("cond_stage_model.model.transformer.resblocks.1.attn.in_proj_weight", torch.tensor(0.0)),
    ("cond_stage_model.model.transformer.resblocks.1.attn.in_proj_bias", torch.zeros(2)),
    ("first_stage_model.encoder.mid.attn_1.q.weight", torch.zeros(24)),
    ("first_stage_model.encoder.mid.attn_1.q.weight", torch.zeros(24, 24, 3, 3)),
])
def test_a_tensor_of_which_no_piece_fits_is_refused(single_files, tmp_path, key, tensor):
    path = tmp_path / "single.safetensors"
    save_file({**load_file(single_files["SD 2.1-v"]), key: tensor}, path)
    assert f"{path}: {key} has shape {tuple(tensor.shape)}, which does not give" in refusal(path)


def test_a_context_of_another_width_is_refused(single_files, tmp_path):
    path = tmp_path / "single.safetensors"
    key = "model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight"
    save_file({**load_file(single_files["SD 1.5"]), key: torch.zeros(32, 1280)}, path)
    assert refusal(path).startswith(f"{path}: the U-Net reads a context of width [1280] (shape of ")
    found = load_file(single_files["SD 1.5"])
    save_file({name: tensor for name, tensor in found.items() if name != key}, path)
    assert f"of width unknown (shape of {key}); expected [16, 32]" in refusal(path)


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


