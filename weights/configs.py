"""The config.json files of a diffusers folder -> the dataclasses of ldm/config.py.

A key that would change the computation in a way ldm does not implement is refused by name, never
ignored.
"""

import json
from pathlib import Path

from ldm.config import ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from weights.files import refuse_pointer

# A text-to-image U-Net reads 4 channels; the others are told apart by this number alone.
IN_CHANNELS = {9: "an inpainting model", 8: "an image-editing model (InstructPix2Pix)",
               5: "a depth-to-image model", 7: "an upscaler"}
# Keys of newer architectures: absent or at this value in every SD 1.x and 2.x file.
UNET_FIXED = {
    "out_channels": 4, "center_input_sample": False, "flip_sin_to_cos": True,
    "freq_shift": 0, "mid_block_type": "UNetMidBlock2DCrossAttn", "only_cross_attention": False,
    "downsample_padding": 1, "mid_block_scale_factor": 1, "act_fn": "silu", "norm_eps": 1e-5,
    "transformer_layers_per_block": 1, "encoder_hid_dim": None, "dual_cross_attention": False,
    "class_embed_type": None, "addition_embed_type": None,
    "num_class_embeds": None, "resnet_time_scale_shift": "default",
    "resnet_skip_time_act": False, "resnet_out_scale_factor": 1.0, "time_embedding_type": "positional",
    "time_embedding_dim": None, "time_embedding_act_fn": None, "timestep_post_act": None,
    "time_cond_proj_dim": None, "conv_in_kernel": 3, "conv_out_kernel": 3, "attention_type": "default",
    "class_embeddings_concat": False, "mid_block_only_cross_attention": None,
    "cross_attention_norm": None, "num_attention_heads": None,
    "reverse_transformer_layers_per_block": None, "encoder_hid_dim_type": None,
    "addition_time_embed_dim": None, "projection_class_embeddings_input_dim": None,
}
VAE_FIXED = {
    "in_channels": 3, "out_channels": 3, "latent_channels": 4, "act_fn": "silu", "shift_factor": None,
    "latents_mean": None, "latents_std": None, "use_quant_conv": True, "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
# Counts of modules, which are built before the weights are compared with them.
MOST = {"layers_per_block": 16, "num_hidden_layers": 128, "block_out_channels": 2 ** 15}
LEAST_TIMESTEPS = 2     # sampling skips at least every other one
BOOLEAN = {False: False, True: True}
TEXT_FIXED = {"layer_norm_eps": 1e-5}
SCHEDULE_FIXED = {
    "beta_schedule": "scaled_linear", "trained_betas": None,
    "rescale_betas_zero_snr": False,
}


def read_json(path: Path) -> dict:
    """A JSON object; raises FileNotFoundError, or ValueError naming the file and the place."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found; expected a Stable Diffusion folder in diffusers layout "
                                f"(unet/, vae/, text_encoder/, tokenizer/, scheduler/)") from None
    refuse_pointer(path, content[:64].decode("latin-1"))
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{path}: not JSON ({err}); copy the file from the published model") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path}: found a JSON {type(found).__name__}, expected an object")
    return found


def _require(found: dict, fixed: dict, path: Path) -> None:
    for key, expected in fixed.items():
        if found.get(key, expected) != expected:
            raise ValueError(f"{path}: {key} is {found[key]!r}, but only {expected!r} is supported; "
                             f"use a Stable Diffusion 1.x or 2.x text-to-image model")


def _need(found: dict, key: str, path: Path, kind: type):
    """found[key], which must be there and of that kind; JSON lists of ints come back as tuples."""
    value, most = found.get(key), MOST.get(key, 2 ** 20)
    values = value if kind is tuple and isinstance(value, list) else [value]
    if isinstance(value, list) == (kind is tuple) and values and all(
            type(v) is int and 0 < v <= most for v in values):
        return tuple(values) if kind is tuple else value
    wanted = f"integers from 1 to {most}" if kind is tuple else f"an integer from 1 to {most}"
    raise ValueError(f"{path}: {key} is {value!r}, expected {wanted}")


def _one_of(found: dict, key: str, values: dict, default: str | bool, path: Path):
    """values[found[key]]; ValueError names the choices."""
    value = found.get(key, default)
    if not isinstance(value, (str, bool)) or value not in values:
        raise ValueError(f"{path}: {key} is {value!r}, expected one of {list(values)}")
    return values[value]


def check_in_channels(channels: int, where: str) -> None:
    """ValueError that names the kind of model, unless the U-Net reads latents alone."""
    if channels != 4:
        raise ValueError(f"{where}: the U-Net reads {channels} channels, so this is "
                         f"{IN_CHANNELS.get(channels, 'another model')}; use a text-to-image model (4 channels)")


def _levels(found: dict, key: str, names: tuple[str, str], path: Path) -> tuple[bool, ...]:
    """A list of block type names -> True where the block has attention."""
    plain, attention = names
    types = found.get(key)
    if not isinstance(types, list) or any(name not in names for name in types):
        raise ValueError(f"{path}: {key} is {types!r}, expected a list of {attention} and {plain}")
    return tuple(name == attention for name in types)


def _sized(config_class: type, fields: dict, path: Path):
    """The dataclass from its fields; its own complaint gets the file's name in front."""
    try:
        return config_class(**fields)
    except ValueError as err:
        raise ValueError(f"{path}: {err}") from None


def unet_config(path: Path) -> UNetConfig:
    """unet/config.json -> UNetConfig; raises ValueError for anything but a U-Net of SD 1.x or 2.x."""
    found = read_json(path)
    check_in_channels(_need({"in_channels": 4, **found}, "in_channels", path, int), f"{path}: in_channels")
    _require(found, UNET_FIXED, path)
    channels = _need(found, "block_out_channels", path, tuple)
    down = _levels(found, "down_block_types", ("DownBlock2D", "CrossAttnDownBlock2D"), path)
    up = _levels(found, "up_block_types", ("UpBlock2D", "CrossAttnUpBlock2D"), path)
    if up != down[::-1]:
        raise ValueError(f"{path}: up_block_types {found['up_block_types']} do not mirror "
                         f"down_block_types {found['down_block_types']}")
    heads = found.get("attention_head_dim", 8)      # the key's published default; it counts heads
    heads = [heads] * len(channels) if type(heads) is int else heads
    heads = _need({"attention_head_dim": heads}, "attention_head_dim", path, tuple)
    return _sized(UNetConfig, {
        "channels": channels, "cross_attention": down, "heads": heads,
        "layers_per_block": _need(found, "layers_per_block", path, int),
        "context_dim": _need(found, "cross_attention_dim", path, int),
        "norm_groups": _need(found, "norm_num_groups", path, int),
        "sample_size": _need(found, "sample_size", path, int),
        "linear_projection": _one_of(found, "use_linear_projection", BOOLEAN, False, path),
        "upcast_attention": _one_of(found, "upcast_attention", BOOLEAN, False, path)}, path)


def vae_config(path: Path) -> VAEConfig:
    """vae/config.json -> VAEConfig."""
    found = read_json(path)
    _require(found, VAE_FIXED, path)
    scaling = found.get("scaling_factor", VAEConfig.scaling_factor)
    if type(scaling) not in (int, float) or not 0 < scaling < float("inf"):
        raise ValueError(f"{path}: scaling_factor is {scaling!r}, expected a positive number")
    return _sized(VAEConfig, {
        "channels": _need(found, "block_out_channels", path, tuple),
        "layers_per_block": _need(found, "layers_per_block", path, int),
        "norm_groups": _need({"norm_num_groups": 32, **found}, "norm_num_groups", path, int),   # v1-4
        "scaling_factor": float(scaling)}, path)


def text_config(path: Path) -> TextConfig:
    """text_encoder/config.json -> TextConfig."""
    found = read_json(path)
    _require(found, TEXT_FIXED, path)
    return _sized(TextConfig, {
        "vocab_size": _need(found, "vocab_size", path, int),
        "width": _need(found, "hidden_size", path, int),
        "layers": _need(found, "num_hidden_layers", path, int),
        "heads": _need(found, "num_attention_heads", path, int),
        "mlp_width": _need(found, "intermediate_size", path, int),
        "context_length": _need(found, "max_position_embeddings", path, int),
        "quick_gelu": _one_of(found, "hidden_act", {"quick_gelu": True, "gelu": False}, "quick_gelu", path),
        }, path)


def schedule_config(path: Path) -> ScheduleConfig:
    """scheduler/scheduler_config.json, of whichever scheduler class -> ScheduleConfig."""
    found = read_json(path)
    _require(found, SCHEDULE_FIXED, path)
    default = ScheduleConfig()
    betas = [found.get(key, getattr(default, key)) for key in ("beta_start", "beta_end")]
    if not all(isinstance(b, float) for b in betas) or not 0 < betas[0] < betas[1] < 1:
        raise ValueError(f"{path}: beta_start and beta_end are {betas}, expected 0 < start < end < 1")
    steps = found.get("num_train_timesteps", default.train_timesteps)
    steps = _need({"num_train_timesteps": steps}, "num_train_timesteps", path, int)
    if steps < LEAST_TIMESTEPS:
        raise ValueError(f"{path}: num_train_timesteps is {steps}, expected {LEAST_TIMESTEPS} or more; published models "
                         f"have 1000")
    # Absent from SD 1.x files, where it means "epsilon", as in diffusers.
    v_prediction = _one_of(found, "prediction_type", {"epsilon": False, "v_prediction": True}, "epsilon", path)
    return ScheduleConfig(train_timesteps=steps, beta_start=betas[0], beta_end=betas[1],
                          v_prediction=v_prediction)
