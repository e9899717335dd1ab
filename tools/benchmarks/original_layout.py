"""Write a diffusers folder as the original single file: the way back, with a map of its own.

weights/layouts.py lists the single file's names row by row; here they follow from the positions of
the blocks. The benchmark has diffusers read the file first, so that our loader is not tested
against our own map.
"""

import re
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

RESNET = {"norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1",
          "norm2": "out_layers.0", "conv2": "out_layers.3", "conv_shortcut": "skip_connection"}
ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
LAYER = {"layer_norm1": "ln_1", "self_attn.out_proj": "attn.out_proj", "layer_norm2": "ln_2",
         "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
ENDS = {"time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
        "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2"}


def _renamed(name: str, names: dict[str, str]) -> str:
    """name with the first segments that the dict knows replaced."""
    for new, old in names.items():
        if name == new or name.startswith(new + "."):
            return old + name[len(new):]
    return name


def unet_key(key: str) -> str:
    """A key of unet/diffusion_pytorch_model.safetensors -> the original's, without its prefix."""
    block = re.match(r"(down|up)_blocks\.(\d)"
                     r"\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", key)
    if block is None:
        middle = re.match(r"mid_block\.(resnets|attentions)\.(\d)\.(.*)", key)
        if middle is not None:
            kind, j, rest = middle.groups()
            number = 1 if kind == "attentions" else 2 * int(j)
            return f"middle_block.{number}.{_renamed(rest, RESNET) if kind == 'resnets' else rest}"
        return _renamed(key, ENDS)
    way, i, kind, j, rest = block.groups()
    i, j = int(i), int(j)
    if kind == "downsamplers":
        return f"input_blocks.{3 * (i + 1)}.0.{rest.replace('conv', 'op', 1)}"
    if kind == "upsamplers":        # behind the attention, where the level has one
        return f"output_blocks.{3 * i + 2}.{1 if i == 0 else 2}.{rest}"
    number = f"input_blocks.{3 * i + j + 1}" if way == "down" else f"output_blocks.{3 * i + j}"
    return f"{number}.0.{_renamed(rest, RESNET)}" if kind == "resnets" else f"{number}.1.{rest}"


def vae_key(key: str) -> str:
    """A key of vae/diffusion_pytorch_model.safetensors -> the original's, without its prefix."""
    key = key.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    key = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", key)
    attention = re.match(r"(.*)\.mid_block\.attentions\.0\.(.*)", key)
    if attention is not None:
        return f"{attention[1]}.mid.attn_1.{_renamed(attention[2], ATTENTION)}"
    key = re.sub(r"encoder\.down_blocks\.(\d)", r"encoder.down.\1", key)
    key = re.sub(r"decoder\.up_blocks\.(\d)", lambda m: f"decoder.up.{3 - int(m[1])}", key)
    key = key.replace(".resnets.", ".block.").replace("downsamplers.0", "downsample")
    return key.replace("upsamplers.0", "upsample")


def open_clip(text: dict[str, Tensor]) -> dict[str, Tensor]:
    """SD 2.x: transformers' keys -> OpenCLIP's, with the last layer that SD does not run."""
    width = text["final_layer_norm.weight"].shape[0]
    layers = 1 + max(int(key.split(".")[2]) for key in text if key.startswith("encoder.layers."))
    out = {"token_embedding.weight": text["embeddings.token_embedding.weight"],
           "positional_embedding": text["embeddings.position_embedding.weight"],
           "ln_final.weight": text["final_layer_norm.weight"],
           "ln_final.bias": text["final_layer_norm.bias"],
           "text_projection": torch.randn(width, width), "logit_scale": torch.tensor(4.6)}
    for n in range(layers):
        layer = {key.removeprefix(f"encoder.layers.{n}."): tensor for key, tensor in text.items()
                 if key.startswith(f"encoder.layers.{n}.")}
        for kind in ("weight", "bias"):
            projections = [layer.pop(f"self_attn.{q}_proj.{kind}") for q in "qkv"]
            out[f"transformer.resblocks.{n}.attn.in_proj_{kind}"] = torch.cat(projections)
        for key, tensor in layer.items():
            out[f"transformer.resblocks.{n}.{_renamed(key, LAYER)}"] = tensor
    last = {key: tensor for key, tensor in out.items() if f"resblocks.{layers - 1}." in key}
    for key, tensor in last.items():
        key = key.replace(f"resblocks.{layers - 1}.", f"resblocks.{layers}.")
        out[key] = torch.randn_like(tensor)
    return out


def write_original(folder: Path, path: Path, second: bool) -> None:
    """The weights of a diffusers folder -> one original file; second: SD 2.x, with OpenCLIP."""
    out = {f"model.diffusion_model.{unet_key(key)}": tensor for key, tensor in
           load_file(folder / "unet/diffusion_pytorch_model.safetensors").items()}
    for key, tensor in load_file(folder / "vae/diffusion_pytorch_model.safetensors").items():
        square = ".attentions.0.to_" in key and key.endswith("weight")
        out[f"first_stage_model.{vae_key(key)}"] = tensor[:, :, None, None] if square else tensor
    text = load_file(folder / "text_encoder/model.safetensors")
    if second:
        out |= {f"cond_stage_model.model.{key}": tensor for key, tensor in open_clip(text).items()}
    else:
        prefix = "cond_stage_model.transformer.text_model."
        out |= {prefix + key: tensor for key, tensor in text.items()}
        out[f"{prefix}embeddings.position_ids"] = torch.arange(77)[None]
    betas = torch.linspace(0.00085 ** 0.5, 0.012 ** 0.5, 1000, dtype=torch.float64) ** 2
    out["betas"], out["alphas_cumprod"] = betas.float(), torch.cumprod(1 - betas, dim=0).float()
    out["model_ema.decay"] = torch.tensor(0.9999)
    save_file({key: tensor.contiguous() for key, tensor in out.items()}, path)
