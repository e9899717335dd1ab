"""Published names -> names in ldm/, for both published layouts of Stable Diffusion 1 and 2.

ldm's attribute names are the key segments that diffusers writes today, so most keys of a folder
need nothing. The original single file has every part under a prefix and every key under an older
name: the tables below.
"""

import re
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor


class Slot(NamedTuple):
    """Where a published tensor, or a piece of it, goes."""

    name: str                                   # in the module of ldm/
    piece: Callable[[Tensor], Tensor] | None = None     # None: the tensor as it is

    def take(self, tensor: Tensor) -> Tensor | None:
        """The piece; None if the tensor has no such piece."""
        try:
            return tensor if self.piece is None else self.piece(tensor)
        except (IndexError, RuntimeError):      # too few dimensions, or rows
            return None


# A diffusers folder: (published, ldm, reason). A row with None is never loaded.
FOLDER_TEXT: list[tuple[str, str | None, str]] = [
    ("text_model.", "", "written by transformers before 5.6 and by most published folders"),
    ("embeddings.position_ids", None, "0..76; merges cast it to float16 and corrupt it"),
]
# diffusers 0.6 to 0.10 saved the published folders with these names.
FOLDER_VAE: list[tuple[str, str | None, str]] = [
    (f"{side}.mid_block.attentions.0.{old}.", f"{side}.mid_block.attentions.0.{new}.", "old name")
    for side in ("encoder", "decoder") for old, new in (
        ("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))]
FOLDER = {"unet": [], "vae": FOLDER_VAE, "text_encoder": FOLDER_TEXT}

# The original single file: prefix -> part. Older merges lack the "text_model." of SD 1.x, as newer
# folders do.
OPEN_CLIP = "cond_stage_model.model."
PREFIXES = {"model.diffusion_model.": "unet", "first_stage_model.": "vae", "vae.": "vae",
            "cond_stage_model.transformer.": "text_encoder",    # SD 1.x: CLIP, its folder's names
            OPEN_CLIP: "text_encoder"}                          # SD 2.x: OpenCLIP
# What the published files hold beside the weights of the three parts: the schedule's tables,
# training state, the parts of OpenCLIP that SD leaves out, a stray of waifu-diffusion 1.4.
TABLES = r"betas|\w*alphas_cumprod(_prev)?|posterior_\w+"
IGNORED = re.compile(
    rf"{TABLES}|model_ema\..*|first_stage_model\.loss\..*|{re.escape(OPEN_CLIP)}"
    r"(text_projection|logit_scale|attn_mask|text_model\.embeddings\.position_ids)")
# What other tools leave in a file of either layout, at any depth: CLIP's head and its half for
# pictures, averages, schedules, markers, a trainer's parts. It is left out, and said so.
LEFTOVER = re.compile(
    r"(.*\.)?((model_ema|loss|vision_model|visual|embedding_manager|safety_checker)\..*|"
    rf"{TABLES}|logvar|(log_)?sigmas|v_pred|ztsnr|global_step|position_ids|logit_scale|"
    r"text_projection(\.weight)?|visual_projection\.weight)")

UNET = """
time_embed.0            time_embedding.linear_1
time_embed.2            time_embedding.linear_2
input_blocks.0.0        conv_in
input_blocks.1.0        down_blocks.0.resnets.0
input_blocks.1.1        down_blocks.0.attentions.0
input_blocks.2.0        down_blocks.0.resnets.1
input_blocks.2.1        down_blocks.0.attentions.1
input_blocks.3.0.op     down_blocks.0.downsamplers.0.conv
input_blocks.4.0        down_blocks.1.resnets.0
input_blocks.4.1        down_blocks.1.attentions.0
input_blocks.5.0        down_blocks.1.resnets.1
input_blocks.5.1        down_blocks.1.attentions.1
input_blocks.6.0.op     down_blocks.1.downsamplers.0.conv
input_blocks.7.0        down_blocks.2.resnets.0
input_blocks.7.1        down_blocks.2.attentions.0
input_blocks.8.0        down_blocks.2.resnets.1
input_blocks.8.1        down_blocks.2.attentions.1
input_blocks.9.0.op     down_blocks.2.downsamplers.0.conv
input_blocks.10.0       down_blocks.3.resnets.0
input_blocks.11.0       down_blocks.3.resnets.1
middle_block.0          mid_block.resnets.0
middle_block.1          mid_block.attentions.0
middle_block.2          mid_block.resnets.1
output_blocks.0.0       up_blocks.0.resnets.0
output_blocks.1.0       up_blocks.0.resnets.1
output_blocks.2.0       up_blocks.0.resnets.2
output_blocks.2.1.conv  up_blocks.0.upsamplers.0.conv
output_blocks.3.0       up_blocks.1.resnets.0
output_blocks.3.1       up_blocks.1.attentions.0
output_blocks.4.0       up_blocks.1.resnets.1
output_blocks.4.1       up_blocks.1.attentions.1
output_blocks.5.0       up_blocks.1.resnets.2
output_blocks.5.1       up_blocks.1.attentions.2
output_blocks.5.2.conv  up_blocks.1.upsamplers.0.conv
output_blocks.6.0       up_blocks.2.resnets.0
output_blocks.6.1       up_blocks.2.attentions.0
output_blocks.7.0       up_blocks.2.resnets.1
output_blocks.7.1       up_blocks.2.attentions.1
output_blocks.8.0       up_blocks.2.resnets.2
output_blocks.8.1       up_blocks.2.attentions.2
output_blocks.8.2.conv  up_blocks.2.upsamplers.0.conv
output_blocks.9.0       up_blocks.3.resnets.0
output_blocks.9.1       up_blocks.3.attentions.0
output_blocks.10.0      up_blocks.3.resnets.1
output_blocks.10.1      up_blocks.3.attentions.1
output_blocks.11.0      up_blocks.3.resnets.2
output_blocks.11.1      up_blocks.3.attentions.2
out.0                   conv_norm_out
out.2                   conv_out
"""
# Inside a residual block; inside a transformer the names are the same.
UNET_RESNET = """
in_layers.0             norm1
in_layers.2             conv1
emb_layers.1            time_emb_proj
out_layers.0            norm2
out_layers.3            conv2
skip_connection         conv_shortcut
"""
# The decoder counts its levels from the finest, diffusers from the coarsest: up.3 is up_blocks.0.
VAE = """
encoder.conv_in         encoder.conv_in
encoder.down.0.block.0  encoder.down_blocks.0.resnets.0
encoder.down.0.block.1  encoder.down_blocks.0.resnets.1
encoder.down.0.downsample.conv  encoder.down_blocks.0.downsamplers.0.conv
encoder.down.1.block.0  encoder.down_blocks.1.resnets.0
encoder.down.1.block.1  encoder.down_blocks.1.resnets.1
encoder.down.1.downsample.conv  encoder.down_blocks.1.downsamplers.0.conv
encoder.down.2.block.0  encoder.down_blocks.2.resnets.0
encoder.down.2.block.1  encoder.down_blocks.2.resnets.1
encoder.down.2.downsample.conv  encoder.down_blocks.2.downsamplers.0.conv
encoder.down.3.block.0  encoder.down_blocks.3.resnets.0
encoder.down.3.block.1  encoder.down_blocks.3.resnets.1
encoder.mid.block_1     encoder.mid_block.resnets.0
encoder.mid.attn_1      encoder.mid_block.attentions.0
encoder.mid.block_2     encoder.mid_block.resnets.1
encoder.norm_out        encoder.conv_norm_out
encoder.conv_out        encoder.conv_out
quant_conv              quant_conv
post_quant_conv         post_quant_conv
decoder.conv_in         decoder.conv_in
decoder.mid.block_1     decoder.mid_block.resnets.0
decoder.mid.attn_1      decoder.mid_block.attentions.0
decoder.mid.block_2     decoder.mid_block.resnets.1
decoder.up.3.block.0    decoder.up_blocks.0.resnets.0
decoder.up.3.block.1    decoder.up_blocks.0.resnets.1
decoder.up.3.block.2    decoder.up_blocks.0.resnets.2
decoder.up.3.upsample.conv  decoder.up_blocks.0.upsamplers.0.conv
decoder.up.2.block.0    decoder.up_blocks.1.resnets.0
decoder.up.2.block.1    decoder.up_blocks.1.resnets.1
decoder.up.2.block.2    decoder.up_blocks.1.resnets.2
decoder.up.2.upsample.conv  decoder.up_blocks.1.upsamplers.0.conv
decoder.up.1.block.0    decoder.up_blocks.2.resnets.0
decoder.up.1.block.1    decoder.up_blocks.2.resnets.1
decoder.up.1.block.2    decoder.up_blocks.2.resnets.2
decoder.up.1.upsample.conv  decoder.up_blocks.2.upsamplers.0.conv
decoder.up.0.block.0    decoder.up_blocks.3.resnets.0
decoder.up.0.block.1    decoder.up_blocks.3.resnets.1
decoder.up.0.block.2    decoder.up_blocks.3.resnets.2
decoder.norm_out        decoder.conv_norm_out
decoder.conv_out        decoder.conv_out
"""
VAE_RESNET = """
norm1                   norm1
conv1                   conv1
norm2                   norm2
conv2                   conv2
nin_shortcut            conv_shortcut
"""
# 1x1 convolutions in the single file, [c, c, 1, 1], Linear in diffusers.
VAE_ATTENTION = """
norm                    group_norm
q                       to_q
k                       to_k
v                       to_v
proj_out                to_out.0
"""
TEXT = """
token_embedding         embeddings.token_embedding
positional_embedding    embeddings.position_embedding.weight
ln_final                final_layer_norm
transformer.resblocks   encoder.layers
"""
# in_proj is q, k and v in one tensor, in this order.
TEXT_LAYER = """
ln_1                    layer_norm1
ln_2                    layer_norm2
mlp.c_fc                mlp.fc1
mlp.c_proj              mlp.fc2
attn.out_proj           self_attn.out_proj
attn.in_proj_weight     self_attn.{q,k,v}_proj.weight
attn.in_proj_bias       self_attn.{q,k,v}_proj.bias
"""


def _look_up(table: str, key: str) -> tuple[str, str]:
    """The row that the key starts with, in whole segments: (second column, rest); or KeyError."""
    for row in table.split("\n")[1:-1]:
        old, new = row.split()
        if key == old or key.startswith(old + "."):
            return new, key[len(old):]
    raise KeyError(key)


def folder_slots(key: str, part: str) -> list[Slot]:
    """Where a key of a folder's file goes; [] if nowhere, and rightly so."""
    for old, new, _ in FOLDER[part]:
        if key.startswith(old):
            if new is None:
                return []
            key = new + key[len(old):]
    return [Slot(key)]


def _unet_slots(key: str) -> list[Slot]:
    name, rest = _look_up(UNET, key)
    if ".resnets." in name:
        inner, rest = _look_up(UNET_RESNET, rest[1:])
        name = f"{name}.{inner}"
    return [Slot(name + rest)]


def _vae_slots(key: str) -> list[Slot]:
    name, rest = _look_up(VAE, key)
    if ".resnets." in name or ".attentions." in name:
        inner, rest = _look_up(VAE_RESNET if ".resnets." in name else VAE_ATTENTION, rest[1:])
        name = f"{name}.{inner}"
    convolution = ".attentions." in name and "group_norm" not in name and rest == ".weight"
    return [Slot(name + rest, (lambda t: t.flatten(1)) if convolution else None)]


def _third(i: int) -> Callable[[Tensor], Tensor]:
    return lambda t: t.chunk(3)[i]


def _open_clip_slots(key: str, layers: int) -> list[Slot]:
    name, rest = _look_up(TEXT, key)
    if name != "encoder.layers":
        return [Slot(name + rest)]
    number, _, inside = rest[1:].partition(".")
    if number == str(layers):       # "penultimate": the last layer is in the file and is not run
        return []
    inner, rest = _look_up(TEXT_LAYER, inside)
    name = f"{name}.{number}.{inner}"
    if "{q,k,v}" not in name:
        return [Slot(name + rest)]
    return [Slot(name.replace("{q,k,v}", q), _third(i)) for i, q in enumerate("qkv")]


def single_file_slots(key: str, layers: int) -> tuple[str, list[Slot]]:
    """The part of a key of the single file and where it goes there; [] if nowhere, and rightly so.

    A key of no part counts as the U-Net's, where it has no place. layers: of the text encoder.
    """
    if IGNORED.fullmatch(key):
        return "unet", []
    prefix = next((prefix for prefix in PREFIXES if key.startswith(prefix)), None)
    if prefix is None:
        return "unet", [Slot(key)]      # a name that no module has: it is found to be extra
    part, name = PREFIXES[prefix], key.removeprefix(prefix)
    try:
        if part == "unet":
            return part, _unet_slots(name)
        if part == "vae":
            return part, _vae_slots(name)
        if prefix == OPEN_CLIP:
            return part, _open_clip_slots(name, layers)
        return part, folder_slots(name, part)
    except KeyError:        # no row of a table has it
        return part, [Slot(key)]
