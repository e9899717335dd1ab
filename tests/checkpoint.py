"""A small random Stable Diffusion 1.x folder, built and saved by diffusers and transformers.

    python tests/checkpoint.py FOLDER

drives the tools on a machine without a published checkpoint. It has learned nothing: what it paints is
noise. Biases and norms are random too, so that a part left out is seen.
"""

import json
import sys
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

MERGES = ["p h", "ph o", "pho t", "phot o</w>", "o f</w>", "c r", "a c", "cr ac", "crac k</w>", "t h",
          "th e</w>", "b r", "br e", "bre a", "brea k</w>", "i n", "in g</w>", "e r</w>"]


def byte_vocabulary(merges: list[str]) -> dict[str, int]:
    """A byte-level vocabulary in CLIP's format: 256 characters, the same at a word's end, merges, ends."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    chars = [chr(b) for b in visible] + [chr(256 + n) for n in range(len(hidden))]
    tokens = chars + [c + "</w>" for c in chars] + [m.replace(" ", "") for m in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return {token: i for i, token in enumerate(tokens)}


def randomise(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Move every bias and norm off its initial 0 or 1."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def small_unet(**changes) -> UNet2DConditionModel:
    """Three levels, the last without attention, as in SD; sizes can be changed."""
    torch.manual_seed(0)
    sizes = dict(
        sample_size=16, block_out_channels=(32, 64, 64), layers_per_block=1, norm_num_groups=8,
        cross_attention_dim=32, attention_head_dim=4,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"))
    return randomise(UNet2DConditionModel(**{**sizes, **changes}), 1)


def small_vae(**changes) -> AutoencoderKL:
    """f = 4."""
    torch.manual_seed(2)
    sizes = dict(
        block_out_channels=(16, 32, 32), layers_per_block=1, norm_num_groups=8, latent_channels=4,
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        sample_size=64)
    sizes = {**sizes, **changes}
    levels = len(sizes["block_out_channels"])
    sizes["down_block_types"] = ("DownEncoderBlock2D",) * levels
    sizes["up_block_types"] = ("UpDecoderBlock2D",) * levels
    return randomise(AutoencoderKL(**sizes), 3)


def small_text_encoder(**changes) -> CLIPTextModel:
    """Context length 77 over the byte-level vocabulary."""
    torch.manual_seed(4)
    size = len(byte_vocabulary(MERGES))
    sizes = dict(vocab_size=size, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
                 num_attention_heads=4, bos_token_id=size - 2, eos_token_id=size - 1)
    return randomise(CLIPTextModel(CLIPTextConfig(**{**sizes, **changes})), 5)


def make_prompt_matter(unet: UNet2DConditionModel, gain: float = 6.0) -> UNet2DConditionModel:
    """Scale up what the cross-attentions add: in a random U-Net the prompt hardly reaches the output."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_out" in name:
                parameter.mul_(gain)
    return unet


def save_checkpoint(folder: Path) -> Path:
    """Write a diffusers folder: unet, vae, text_encoder, tokenizer, scheduler."""
    folder = Path(folder)
    make_prompt_matter(small_unet()).save_pretrained(folder / "unet")
    small_vae().save_pretrained(folder / "vae")
    small_text_encoder().save_pretrained(folder / "text_encoder")
    DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
                  steps_offset=1, set_alpha_to_one=False).save_pretrained(folder / "scheduler")
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer/vocab.json").write_text(json.dumps(byte_vocabulary(MERGES)))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "\n".join(MERGES) + "\n")
    return folder


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python tests/checkpoint.py FOLDER")
    print(save_checkpoint(Path(sys.argv[1])))
