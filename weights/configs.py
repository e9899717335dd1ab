"""The config.json files of a diffusers folder -> the dataclasses of ldm/config.py.

A key that would change the computation as ldm does not implement it is refused by name. null is
the default, wherever it is that or an error in diffusers.
"""

import json
from math import isclose
from pathlib import Path
from reprlib import repr as short
from typing import Any, TypeVar

from ldm.config import ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from weights.files import refuse_dangling, refuse_pointer

Sizes = TypeVar("Sizes", UNetConfig, VAEConfig, TextConfig)
# A text-to-image U-Net reads 4 channels; the others are told apart by this number alone.
IN_CHANNELS = {9: "an inpainting model", 8: "an image-editing model (InstructPix2Pix)",
               5: "a depth-to-image model", 7: "an upscaler"}
# Keys of newer architectures: absent or at this value in every SD 1.x and 2.x file.
UNET_FIXED = {
    "out_channels": 4, "center_input_sample": False, "flip_sin_to_cos": True, "freq_shift": 0,
    "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "act_fn": "silu", "norm_eps": 1e-5,
    "transformer_layers_per_block": 1, "encoder_hid_dim": None, "dual_cross_attention": False,
    "class_embed_type": None, "addition_embed_type": None, "num_class_embeds": None,
    "resnet_time_scale_shift": "default", "resnet_skip_time_act": False,
    "resnet_out_scale_factor": 1.0, "time_embedding_type": "positional", "time_embedding_dim": None,
    "time_embedding_act_fn": None, "timestep_post_act": None, "time_cond_proj_dim": None,
    "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default",
    "class_embeddings_concat": False, "mid_block_only_cross_attention": False,
    "cross_attention_norm": None, "num_attention_heads": None,
    "reverse_transformer_layers_per_block": None, "encoder_hid_dim_type": None,
    "addition_time_embed_dim": None, "projection_class_embeddings_input_dim": None,
}
VAE_FIXED = {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3,
             "latent_channels": 4, "act_fn": "silu", "shift_factor": None, "latents_mean": None,
             "latents_std": None, "use_quant_conv": True, "use_post_quant_conv": True,
             "mid_block_add_attention": True}
# Counts of modules, which are built before the weights are compared with them.
MOST = {"layers_per_block": 16, "num_hidden_layers": 128, "block_out_channels": 2 ** 15}
TEXT_FIXED = {"layer_norm_eps": 1e-5}
# 1000: sampling counts timesteps from 901 down in 10 steps, and may make 500.
SCHEDULE_FIXED = {"beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
NO_OR_YES = (False, True)
# Keys that diffusers takes as one value or as a list of one value a level (sample_size: a side).
ONE_OR_LIST = ("only_cross_attention", "transformer_layers_per_block", "layers_per_block",
               "cross_attention_dim", "sample_size")
MODELS = "use a Stable Diffusion 1.x or 2.x text-to-image model"
SCHEDULES = "use a checkpoint of the published noise schedule, and its scheduler_config.json"


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises FileNotFoundError, or ValueError naming the file and the place."""
    refuse_dangling(path)
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{path}: not found; expected a Stable Diffusion folder in diffusers layout "
            f"(unet/, vae/, text_encoder/, tokenizer/, scheduler/)") from None
    refuse_pointer(path, content[:64].decode("latin-1"))
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise ValueError(
            f"{path}: not JSON ({err}); copy the file from the published model") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found a JSON {type(found).__name__}, expected an object")
    return found


def _value(found: dict[str, Any], key: str, default: Any = None) -> Any:
    """found[key], or the default where that is absent or null."""
    value = found.get(key)
    if key in ONE_OR_LIST and isinstance(value, list) and value[1:] == value[:-1]:
        value = value[0] if value else None
    return default if value is None else value


def _require(found: dict[str, Any], fixed: dict[str, Any], path: Path, remedy: str) -> None:
    for key, expected in fixed.items():
        # What is on by default is left out of the network by a null.
        off = key in found and found[key] is None and (expected is True or key == "mid_block_type")
        if off or _value(found, key, expected) != expected:
            raise ValueError(f"{path}: {key} is {short(found[key])}, but only {expected!r} is "
                             f"supported; {remedy}")


def _count(found: dict[str, Any], key: str, path: Path, default: int | None = None) -> int:
    """found[key], or the default if there is one: an integer from 1 to MOST of its key."""
    value, most = _value(found, key, default), MOST.get(key, 2 ** 20)
    if type(value) is not int or not 0 < value <= most:
        raise ValueError(f"{path}: {key} is {value!r}, expected an integer from 1 to {most}")
    return value


def _counts(found: dict[str, Any], key: str, path: Path) -> tuple[int, ...]:
    """found[key], a list of such integers, not empty."""
    values, most = found.get(key), MOST.get(key, 2 ** 20)
    if not (isinstance(values, list) and values
            and all(type(value) is int and 0 < value <= most for value in values)):
        raise ValueError(f"{path}: {key} is {short(values)}, expected integers from 1 to {most}")
    return tuple(values)


def _is_second(found: dict[str, Any], key: str, two: tuple[str | bool, ...], path: Path) -> bool:
    """True if found[key] is the second of the two that it may be; without, it is the first."""
    value = _value(found, key, two[0])
    if not isinstance(value, (str, bool)) or value not in two:
        raise ValueError(f"{path}: {key} is {value!r}, expected one of {list(two)}")
    return value == two[1]


def check_in_channels(channels: int, where: str) -> None:
    """ValueError that names the kind of model, unless the U-Net reads latents alone."""
    if channels != 4:
        kind = IN_CHANNELS.get(channels, "another model")
        raise ValueError(f"{where}: the U-Net reads {channels} channels, so this is {kind}; "
                         f"use a text-to-image model (4 channels)")


def _levels(found: dict[str, Any], key: str, names: tuple[str, str],
            path: Path) -> tuple[bool, ...]:
    """A list of block type names -> True where the block has attention."""
    plain, attention = names
    types = found.get(key)
    if not isinstance(types, list) or any(name not in names for name in types):
        raise ValueError(
            f"{path}: {key} is {short(types)}, expected a list of {attention} and {plain}")
    return tuple(name == attention for name in types)


def _sized(config_class: type[Sizes], fields: dict[str, Any], path: Path) -> Sizes:
    """The dataclass from its fields; its own complaint gets the file's name in front."""
    try:
        return config_class(**fields)
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from None


def unet_config(path: Path) -> UNetConfig:
    """unet/config.json -> UNetConfig; ValueError for anything but a U-Net of SD 1.x or 2.x."""
    found = read_json(path)
    check_in_channels(_count(found, "in_channels", path, 4), f"{path}: in_channels")
    _require(found, UNET_FIXED, path, MODELS)
    channels = _counts(found, "block_out_channels", path)
    down = _levels(found, "down_block_types", ("DownBlock2D", "CrossAttnDownBlock2D"), path)
    up = _levels(found, "up_block_types", ("UpBlock2D", "CrossAttnUpBlock2D"), path)
    if up != down[::-1]:
        raise ValueError(f"{path}: up_block_types {found['up_block_types']} do not mirror "
                         f"down_block_types {found['down_block_types']}")
    heads = _value(found, "attention_head_dim", 8)      # the published default; it counts heads
    heads = [heads] * len(channels) if type(heads) is int else heads
    return _sized(UNetConfig, {
        "channels": channels, "cross_attention": down,
        "heads": _counts({"attention_head_dim": heads}, "attention_head_dim", path),
        "layers_per_block": _count(found, "layers_per_block", path),
        "context_dim": _count(found, "cross_attention_dim", path),
        "norm_groups": _count(found, "norm_num_groups", path),
        "sample_size": _count(found, "sample_size", path, UNetConfig.sample_size),
        "linear_projection": _is_second(found, "use_linear_projection", NO_OR_YES, path),
        "upcast_attention": _is_second(found, "upcast_attention", NO_OR_YES, path)}, path)


def vae_config(path: Path) -> VAEConfig:
    """vae/config.json -> VAEConfig."""
    found = read_json(path)
    _require(found, VAE_FIXED, path, MODELS)
    scaling = _value(found, "scaling_factor", VAEConfig.scaling_factor)
    if type(scaling) not in (int, float) or not 0 < scaling < float("inf"):
        raise ValueError(f"{path}: scaling_factor is {scaling!r}, expected a positive number")
    return _sized(VAEConfig, {
        "channels": _counts(found, "block_out_channels", path),
        "layers_per_block": _count(found, "layers_per_block", path),
        "norm_groups": _count(found, "norm_num_groups", path, 32),      # absent from v1-4
        "scaling_factor": float(scaling)}, path)


def text_config(path: Path) -> TextConfig:
    """text_encoder/config.json -> TextConfig."""
    found = read_json(path)
    _require(found, TEXT_FIXED, path, MODELS)
    return _sized(TextConfig, {
        "vocab_size": _count(found, "vocab_size", path),
        "width": _count(found, "hidden_size", path),
        "layers": _count(found, "num_hidden_layers", path),
        "heads": _count(found, "num_attention_heads", path),
        "mlp_width": _count(found, "intermediate_size", path),
        "context_length": _count(found, "max_position_embeddings", path),
        "quick_gelu": not _is_second(found, "hidden_act", ("quick_gelu", "gelu"), path)}, path)


def schedule_config(path: Path) -> ScheduleConfig:
    """scheduler/scheduler_config.json, of whichever scheduler class -> ScheduleConfig."""
    found = read_json(path)
    _require(found, SCHEDULE_FIXED, path, SCHEDULES)
    betas = [_value(found, k, getattr(ScheduleConfig, k)) for k in ("beta_start", "beta_end")]
    if not all(isinstance(b, float) for b in betas) or not 0 < betas[0] < betas[1] < 1:
        raise ValueError(
            f"{path}: beta_start and beta_end are {betas}, expected 0 < start < end < 1")
    # Absent from SD 1.x files, where it means "epsilon", as in diffusers.
    v_prediction = _is_second(found, "prediction_type", ("epsilon", "v_prediction"), path)
    zero_snr = _is_second(found, "rescale_betas_zero_snr", NO_OR_YES, path)
    start, end = betas[0] ** 0.5, betas[1] ** 0.5
    scaled_linear = [(start + (end - start) * i / 999) ** 2 for i in range(1000)]
    trained = _value(found, "trained_betas", scaled_linear)
    if not (isinstance(trained, list) and len(trained) == 1000
            and all(isinstance(b, float) and isclose(b, expected, rel_tol=1e-4)
                    for b, expected in zip(trained, scaled_linear))):
        raise ValueError(f"{path}: trained_betas is {short(trained)}, but only those of "
                         f"beta_start and beta_end are supported; {SCHEDULES}")
    return ScheduleConfig(1000, betas[0], betas[1], v_prediction, zero_snr)
