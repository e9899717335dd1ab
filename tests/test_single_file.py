"""The original single file, and what decides between eps and v, for all three families."""

import json

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextConfig, CLIPTextModel

from benchmarks import parity
from benchmarks.original_layout import unet_key, vae_key
from benchmarks.random_models import FULL, SMALL
from ldm.config import SD2_TEXT, SD2_UNET, UNetConfig
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from models_on_disk import edit_json, refusal
from weights import fingerprint, layouts, load
from weights.checkpoint import FAMILIES

UNET_PREFIX = "model.diffusion_model."


def altered(path, tmp_path, change):
    """A copy of a single file with its tensors changed."""
    save_file(change(load_file(path)), tmp_path / "altered.safetensors")
    return tmp_path / "altered.safetensors"


@pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)
def test_every_part_in_every_layout_equals_diffusers(family, single_files, tmp_path, monkeypatch):
    """As bench.py parity at full size: both folders, and the single file as diffusers reads it."""
    monkeypatch.setattr(parity, "measure", lambda path, read: None)
    found = {layout: differences for layout, differences, _ in parity.compare(family, tmp_path)}
    assert list(found) == ["folder", "old folder, .fp16.", "single file"]
    for differences in found.values():
        assert len(differences) == 8 and max(differences.values()) <= 1e-4


def test_the_published_sizes_of_sd_2_have_the_published_keys_shapes_and_counts():
    with torch.device("meta"):
        built = UNet(SD2_UNET), TextEncoder(SD2_TEXT)
        published = (UNet2DConditionModel(**FULL[2].unet),
                     CLIPTextModel(CLIPTextConfig(**FULL[2].text, vocab_size=49408)))
    for module, reference, count in zip(built, published, (865_910_724, 340_387_840)):
        found, expected = module.state_dict(), reference.state_dict()
        assert {k: v.shape for k, v in found.items()} == {k: v.shape for k, v in expected.items()}
        assert sum(p.numel() for p in module.parameters()) == count
    assert FAMILIES[1024][0] == SD2_UNET and FAMILIES[768][0] == UNetConfig()


def test_every_published_key_of_the_single_file_has_its_place(single_files):
    """686 tensors of the U-Net, 248 of the VAE, as in the published files."""
    with torch.device("meta"):
        keys = list(UNet2DConditionModel(**FULL[0].unet).state_dict())
    assert len(keys) == 686
    for key in keys:
        part, (slot,) = layouts.single_file_slots(UNET_PREFIX + unet_key(key), 12)
        assert (part, slot.name) == ("unet", key)
    keys = list(load(single_files["SD 1.5"]).vae.state_dict())
    assert len(keys) == 248
    for key in keys:
        part, (slot,) = layouts.single_file_slots("first_stage_model." + vae_key(key), 12)
        assert (part, slot.name) == ("vae", key)


@pytest.mark.parametrize("name", [family.name for family in SMALL])
def test_a_single_file_and_its_folder_load_to_the_same_tensors(single_files, name):
    single, folder = load(single_files[name]), load(single_files[name].parent / name)
    for part in ("unet", "vae", "text_encoder"):
        found, expected = getattr(single, part).state_dict(), getattr(folder, part).state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    texts = ["a photo of a crack", "hello!", "é 😀"]
    assert torch.equal(single.tokenizer(texts), folder.tokenizer(texts))


def test_merges_without_text_model_in_their_keys_load(single_files, tmp_path):
    path = altered(single_files["SD 1.5"], tmp_path, lambda found: {
        key.replace("transformer.text_model.", "transformer."): tensor
        for key, tensor in found.items()})
    assert torch.equal(load(path).context("crack"), load(single_files["SD 1.5"]).context("crack"))


# What the published files hold beside the weights: latent-diffusion's buffers, OpenCLIP's head.
PUBLISHED = [
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod", "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod", "posterior_variance", "posterior_log_variance_clipped",
    "posterior_mean_coef1", "posterior_mean_coef2", "model_ema.decay", "model_ema.num_updates",
    "first_stage_model.loss.logvar", *(f"cond_stage_model.model.{name}" for name in (
        "text_projection", "logit_scale", "attn_mask", "text_model.embeddings.position_ids"))]
C, V = "cond_stage_model.", "first_stage_model."
LEFTOVERS = [
    C + "logit_scale", C + "text_projection", C + "transformer.text_projection.weight",
    C + "transformer.vision_model.post_layernorm.bias", C + "transformer.visual_projection.weight",
    C + "model.visual.conv1.weight", V + "model_ema.decay", V + "model_ema.encoderconv_inweight",
    "logvar", "denoiser.sigmas", "denoiser.log_sigmas", "global_step", UNET_PREFIX + "betas",
    UNET_PREFIX + "sqrt_alphas_cumprod", "loss.discriminator.main.0.weight",
    "embedding_manager.string_to_param_dict.x"]


def test_what_published_files_hold_beside_the_weights_is_left_out(single_files, tmp_path):
    plain = load(single_files["SD 2.1-v"])
    path = altered(single_files["SD 2.1-v"], tmp_path, lambda found: {
        **found, **{key: torch.full((3,), torch.nan) for key in PUBLISHED}})
    assert torch.equal(load(path).context("crack"), plain.context("crack"))
    assert load(path).remarks == plain.remarks


@pytest.mark.parametrize("key", LEFTOVERS)
def test_what_other_tools_leave_in_a_file_is_left_out_and_named(single_files, tmp_path, key):
    path = altered(single_files["SD 1.5"], tmp_path, lambda found: {**found, key: torch.ones(())})
    sd, plain = load(path), load(single_files["SD 1.5"])
    assert sd.remarks == (f"{path}: {key} left out, no weights of its parts", *plain.remarks)
    assert torch.equal(sd.context("crack"), plain.context("crack"))


@pytest.mark.parametrize("key", [
    UNET_PREFIX + "input_blocks.1.1.adapter.weight", V + "quantize.embedding.weight",
    C + "transformer.text_model.encoder.layers.2.layer_norm1.bias", "scaled_fp8", "a\nb"])
def test_an_extra_tensor_of_no_known_use_is_refused_by_name(single_files, tmp_path, key):
    path = altered(single_files["SD 1.5"], tmp_path, lambda found: {**found, key: torch.ones(2)})
    shown = key.replace("\n", "\\n")
    assert refusal(path) == f"{path}: extra tensor {shown}; save the file without it"


def test_a_vae_under_a_shorter_prefix_loads(single_files, tmp_path):
    path = altered(single_files["SD 1.5"], tmp_path, lambda found: {
        key.replace(V, "vae."): tensor for key, tensor in found.items()})
    found, plain = load(path).vae.state_dict(), load(single_files["SD 1.5"]).vae.state_dict()
    assert all(torch.equal(found[key], plain[key]) for key in plain)


@pytest.mark.parametrize("lost", [0, 1, 300])
def test_averaged_weights_are_left_out_and_named_whole_or_not(single_files, tmp_path, lost):
    """Those of merges are often still the model's that they began with; diffusers leaves them."""
    def with_ema(found):
        averaged = {"model_ema." + "".join(key.split(".")[1:]): 2 * tensor     # LitEma's names
                    for key, tensor in found.items() if key.startswith(UNET_PREFIX)}
        return {**found, **dict([*averaged.items()][lost:])}

    plain = load(single_files["SD 1.5"])        # which has model_ema.decay alone
    assert not any("model_ema" in remark for remark in plain.remarks)
    sd = load(altered(single_files["SD 1.5"], tmp_path, with_ema))
    assert "model.* is taken, as by diffusers, and model_ema.* left out" in sd.remarks[0]
    found, expected = sd.unet.state_dict(), plain.unet.state_dict()
    assert all(torch.equal(found[key], expected[key]) for key in found)


def test_the_fingerprint_of_a_single_file_is_its_own(single_files, tmp_path):
    path = altered(single_files["SD 1.5"], tmp_path,
                   lambda found: found | {"betas": torch.zeros(1000)})
    assert len(fingerprint(path)) == 64 and fingerprint(path) != fingerprint(single_files["SD 1.5"])


def answering(value):
    """A change of the tensors: the U-Net then gives this value everywhere, whatever it reads."""
    def change(found):
        zero = torch.zeros_like(found[UNET_PREFIX + "out.2.weight"])
        return {**found, UNET_PREFIX + "out.2.weight": zero,
                UNET_PREFIX + "out.2.bias": torch.full((4,), value)}
    return change


@pytest.mark.parametrize("value, v", [(0.5, False), (-0.4, False), (-0.6, True), (-2.0, True)])
@pytest.mark.parametrize("name, size", [("SD 1.5", 512), ("SD 2.1-v", 768)])
def test_without_a_yaml_the_output_decides(single_files, tmp_path, name, size, value, v):
    """The probe's input is 0.5 everywhere: v if the mean of the output is more than 1 below."""
    sd = load(altered(single_files[name], tmp_path, answering(value)))
    assert sd.schedule.config.v_prediction == v
    assert sd.native_size == (size if v else 512)
    said = f"prediction type {'v' if v else 'eps'}: no file beside it says so"
    assert sd.remarks[-1].startswith(said)


def test_an_output_that_is_not_finite_decides_nothing(single_files, tmp_path):
    huge = torch.full_like(load(single_files["SD 2.1-v"]).unet.conv_out.weight, 3e38)
    path = altered(single_files["SD 2.1-v"], tmp_path, lambda found: {
        **found, UNET_PREFIX + "out.2.weight": huge})
    assert f"{path}: nothing says whether it predicts eps or v" in refusal(path)
    assert load(path, prediction_type="v").schedule.config.v_prediction


YAML = "model:\n  base_learning_rate: 1.0e-4\n  params:\n{}    linear_start: 0.00085\n"


@pytest.mark.parametrize("line, v", [
    ('    parameterization: "v"\n', True), ("    parameterization: v  # 768\n", True),
    ('    parameterization: "eps"\n', False), ('    # parameterization: "v"\n', False),
    ("", False)])
@pytest.mark.parametrize("suffix", [".yaml", ".yml"])
def test_the_yaml_beside_a_single_file_wins_over_the_output(
        single_files, tmp_path, line, v, suffix):
    path = altered(single_files["SD 2.1-v"], tmp_path, answering(0.5 if v else -2.0))
    path.with_suffix(suffix).write_text(YAML.format(line))
    sd = load(path)
    assert sd.schedule.config.v_prediction == v
    assert sd.remarks[-1] == f"prediction type {'v' if v else 'eps'}: {path.with_suffix(suffix)}"


def test_a_yaml_in_flow_style_is_read_and_a_pointer_refused(single_files, tmp_path):
    path = altered(single_files["SD 2.1-v"], tmp_path, answering(0.5))
    yaml = path.with_suffix(".yaml")
    yaml.write_text('model: {params: {linear_start: 0.1, parameterization: "v"}}\n')
    assert load(path).schedule.config.v_prediction
    yaml.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    assert "altered.yaml: is a git-lfs pointer" in refusal(path)


def test_a_yaml_of_another_parameterization_is_refused(single_files, tmp_path):
    path = altered(single_files["SD 2.1-v"], tmp_path, answering(0.5))
    path.with_suffix(".yaml").write_text(YAML.format("    parameterization: x0\n"))
    assert "altered.yaml: parameterization is 'x0', expected eps or v" in refusal(path)


def marked(single_files, tmp_path, value, *markers):
    """An SD 1.5 whose U-Net answers value, with empty tensors of these names."""
    return altered(single_files["SD 1.5"], tmp_path, lambda found: {
        **answering(value)(found), **{marker: torch.tensor([]) for marker in markers}})


def test_a_tensor_v_pred_states_v_unless_a_yaml_or_what_is_asked_says_eps(single_files, tmp_path):
    path = marked(single_files, tmp_path, 0.5, "v_pred")
    assert load(path).remarks == ("prediction type v: its tensor v_pred",)
    assert load(path, prediction_type="eps").remarks == ("prediction type eps: as given",)
    path.with_suffix(".yaml").write_text(YAML.format('    parameterization: "eps"\n'))
    assert not load(path).schedule.config.v_prediction


def test_a_tensor_ztsnr_states_a_schedule_that_only_v_models_have(single_files, tmp_path):
    for sd in (load(marked(single_files, tmp_path, 0.5, "v_pred", "ztsnr")),
               load(marked(single_files, tmp_path, -2.0, "ztsnr"))):
        assert sd.schedule.alphas_cumprod[-1] == 0 and sd.schedule.config.v_prediction
        assert "by its tensor ztsnr the noise schedule ends in noise alone" in sd.remarks[0]
    path = marked(single_files, tmp_path, 0.5, "ztsnr")
    said = "the noise schedule ends in noise alone (zero terminal SNR), but the prediction type is"
    assert f"{path}: {said} eps" in refusal(path)
    assert load(path, prediction_type="v").schedule.config.zero_snr


@pytest.mark.parametrize("asked", ["eps", "v"])
def test_what_is_asked_wins_over_every_file(single_files, asked):
    for path in (single_files["SD 2.1-v"], single_files["SD 1.5"].parent / "SD 2.1-v"):
        sd = load(path, prediction_type=asked)
        assert sd.schedule.config.v_prediction == (asked == "v")
        assert sd.remarks[-1] == f"prediction type {asked}: as given"


@pytest.mark.parametrize("family", SMALL, ids=lambda family: family.name)
def test_a_folder_states_its_prediction_type_and_its_size(written, family):
    folder = written[family.name].parent / family.name
    sd = load(folder)
    v = family.name == "SD 2.1-v"
    assert (sd.schedule.config.v_prediction, sd.native_size) == (v, 768 if v else 512)
    assert sd.remarks == (
        f"prediction type {'v' if v else 'eps'}: {folder / 'scheduler/scheduler_config.json'}",)


def test_a_scheduler_that_states_none_predicts_eps_as_in_diffusers(folder):
    scheduler = folder / "scheduler/scheduler_config.json"
    edit_json(scheduler, prediction_type="v_prediction")
    assert load(folder).schedule.config.v_prediction
    found = json.loads(scheduler.read_text())
    del found["prediction_type"]
    scheduler.write_text(json.dumps(found))
    sd = load(folder)
    assert not sd.schedule.config.v_prediction
    assert sd.remarks[-1] == f"prediction type eps: {scheduler} states none, diffusers' default"


def test_another_prediction_type_is_refused(checkpoint):
    with pytest.raises(ValueError, match="prediction_type: found 'x0', expected auto, eps or v"):
        load(checkpoint, prediction_type="x0")
