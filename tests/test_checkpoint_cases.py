"""The situations of files that users reported, as scripts beside the project: skipped without them.

DEFECT_CASES: the folder that holds checkpoints/; by default shared/cases beside the project.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import ROOT
from models_on_disk import SMALL_FAMILIES
from weights import load

CASES = Path(os.environ.get("DEFECT_CASES") or ROOT.parent / "shared/cases") / "checkpoints"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"{CASES} is not there")
NOT_FINITE = "the checkpoint's weights are not finite (NaN or inf in "
SCHEDULE = "; use a checkpoint of the published noise schedule, and its scheduler_config.json"
# What load says of each variant: part of its refusal, or of its remarks.
FOLDERS = {
    **dict.fromkeys(("upcast_null", "linear_null", "zsnr", "trained_betas", "sample_size_null",
                     "sample_size_pair", "newer_keys", "stale_index", "mixed_dtypes", "hub"),
                    "loads; prediction type v: "),
    "prediction_null": "scheduler_config.json states none, diffusers' default",
    "scheduler_class_only": "states no beta_schedule; the published one is taken",
    "ddim_defaults": "beta_schedule is 'linear', but only 'scaled_linear' is supported" + SCHEDULE,
    "one_timestep": "num_train_timesteps is 1, but only 1000 is supported" + SCHEDULE,
    "ten_timesteps": "num_train_timesteps is 10, but only 1000 is supported" + SCHEDULE,
    "bf16_variant": ".bf16.safetensors: taken, because there is no diffusion_pytorch_model",
    "non_ema_only": ".non_ema.safetensors: taken, because there is no diffusion_pytorch_model",
    "fp16_shards": "the weights are in shards; save the model again",
    "tiny_vae_taesd": "_class_name is 'AutoencoderTiny', but only 'AutoencoderKL' is supported",
    "nan_decoder": NOT_FINITE + "decoder.mid_block.resnets.0.conv1.weight",
    "nan_text": "text_encoder/model.safetensors: " + NOT_FINITE,
    "fp8": "conv_in.weight is F8_E4M3, expected one of F64, F32, F16, BF16",
    "zero_length": "v_pred left out, no weights of its parts",
    "text_projection": "text_projection.weight left out, no weights of its parts",
    "hub_dangling": "unet/diffusion_pytorch_model.safetensors: is a link to ",
    "hub_dangling_config": "unet/config.json: is a link to ",
}
SINGLE_FILES = {
    **dict.fromkeys(("one", "two", "one_bf16", "one_vae_prefix", "two_without_last_layer",
                     "two_without_projection", "two_hf_text"), "loads; prediction type eps: "),
    "one_no_vae": "has no VAE (first_stage_model); give",
    "one_no_clip": "has no text encoder (cond_stage_model); give",
    "one_state_dict_prefix": "is saved with state_dict. before its tensors' names; save it without",
    "one_v_pred_marker": "prediction type v: its tensor v_pred",
    "one_text_projection": "cond_stage_model.transformer.text_projection.weight left out",
    "one_logit_scale": "cond_stage_model.logit_scale left out",
    "one_logvar": "logvar left out",
    "one_vae_ema": "first_stage_model.model_ema.decay and 1 more left out",
    "one_sigmas": "denoiser.sigmas left out",
    "one_unet_buffers": "model.diffusion_model.betas left out",
    "one_vision": "transformer.vision_model.embeddings.class_embedding left out",
    "one_nan": NOT_FINITE + "first_stage_model.decoder.conv_out.weight",
    "one_fp8": "is F8_E4M3, expected one of F64, F32, F16, BF16",
    "one_fp8_scaled": "is F8_E4M3, expected one of F64, F32, F16, BF16",
    "one_stale_ema": "model.* is taken, as by diffusers, and model_ema.* left out",
}


def ended(script, *arguments):
    """The process of a script of the cases, at its end."""
    paths = os.pathsep.join([".", "tools", "tests", str(CASES)])
    return subprocess.run([sys.executable, CASES / f"{script}.py", *arguments], cwd=ROOT, text=True,
                          capture_output=True, env={**os.environ, "PYTHONPATH": paths})


def said(script, *arguments):
    """What it prints, if it ends well."""
    done = ended(script, *arguments)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.parametrize("script, right", [
    ("stale_ema", "ok "), ("sd1_predicts_v", "ok the U-Net says v: True | taken: "),
    ("single_file_extras", "no VAE: has no VAE (first_stage_model); "),
    ("upcast_null", "upcast_attention null: loads\nuse_linear_projection null: loads")])
def test_a_case_ends_right(script, right):
    printed = said(script)
    assert right in printed and "FAULT" not in printed


@pytest.mark.parametrize("script, right", [
    ("stale_state", r"\n2 \['train_embed.py: .*/again/state/.*: was there before and is never"),
    ("changed_picture", r"\n2 \['train_embed.py: .*/img/0.png: another picture than the one"),
    ("foreign_embedding", r"\nsample 2 .*: learned on another.*\nsample 2 .*: learned on another")])
def test_a_case_of_a_run_is_refused(script, right):
    """stale_state looks for results afterwards, and fails: there are none."""
    printed = ended(script).stdout
    assert re.search(right, printed), printed


def outcome(path):
    try:
        return "; ".join(("loads", *load(path).remarks))
    except (ValueError, FileNotFoundError) as err:
        assert "\n" not in str(err) and str(path) in str(err)
        return str(err)


def test_every_variant_of_a_folder_ends_right(tmp_path):
    said("folder_variants", "weights/tiny", tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(FOLDERS)
    for name, right in FOLDERS.items():
        inner = "models--sd--tiny" if name.startswith("hub") else ""
        assert right in (found := outcome(tmp_path / name / inner)), f"{name}: {found}"


def test_every_variant_of_a_single_file_ends_right(tmp_path, monkeypatch):
    monkeypatch.setattr("weights.checkpoint.FAMILIES", SMALL_FAMILIES)
    said("single_file_variants", tmp_path)
    names = {path.stem for path in tmp_path.glob("*.safetensors") if " " not in path.name}
    assert names == set(SINGLE_FILES)
    for name, right in SINGLE_FILES.items():
        found = outcome(tmp_path / f"{name}.safetensors")
        assert right in found, f"{name}: {found}"
