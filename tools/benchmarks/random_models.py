"""Random Stable Diffusions, built by diffusers and transformers: for the benchmarks and the tests.

They have learned nothing and paint noise. Biases and norms are random too: a part left out shows.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from ldm.tokenizer import vocabulary
from pretraining.tiny_files import INDEX
from weights.tokenizers import PUBLISHED, read_merges

MERGES = ["p h", "ph o", "pho t", "phot o</w>", "o f</w>", "c r", "a c", "cr ac", "crac k</w>",
          "t h", "th e</w>", "b r", "br e", "bre a", "brea k</w>", "i n", "in g</w>", "e r</w>"]


def byte_vocabulary(merges: list[str]) -> dict[str, int]:
    """A byte-level vocabulary as CLIP's: 256 characters, the same at a word's end, merges, ends."""
    return vocabulary([tuple(merge.split()) for merge in merges])


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
    sizes = {
        "sample_size": 16, "block_out_channels": (32, 64, 64), "layers_per_block": 1,
        "norm_num_groups": 8, "cross_attention_dim": 32, "attention_head_dim": 4,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D")}
    return randomise(UNet2DConditionModel(**{**sizes, **changes}), 1)


def small_vae(**changes) -> AutoencoderKL:
    """f = 4."""
    torch.manual_seed(2)
    sizes = {"block_out_channels": (16, 32, 32), "layers_per_block": 1, "norm_num_groups": 8,
             "latent_channels": 4, "sample_size": 64, **changes}
    levels = len(sizes["block_out_channels"])
    return randomise(AutoencoderKL(
        **sizes, down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels), 3)


def small_text_encoder(**changes) -> CLIPTextModel:
    """Context length 77 over the byte-level vocabulary."""
    torch.manual_seed(4)
    size = len(byte_vocabulary(MERGES))
    sizes = {"vocab_size": size, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
             "num_attention_heads": 4, "bos_token_id": size - 2, "eos_token_id": size - 1}
    return randomise(CLIPTextModel(CLIPTextConfig(**{**sizes, **changes})), 5)


def make_prompt_matter(unet: UNet2DConditionModel, gain: float = 6.0) -> UNet2DConditionModel:
    """Scale up what cross-attentions add: random U-Nets hardly carry the prompt to the output."""
    with torch.no_grad():
        for name, parameter in unet.named_parameters():
            if "attn2.to_out" in name:
                parameter.mul_(gain)
    return unet


def write_tokenizer(folder: Path, merges: list[str]) -> None:
    """folder/tokenizer as in published folders: vocab.json and merges.txt."""
    (folder / "tokenizer").mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer/vocab.json").write_text(json.dumps(byte_vocabulary(merges)))
    (folder / "tokenizer/merges.txt").write_text("#version: 0.2\n" + "\n".join(merges) + "\n")


def write_scheduler(folder: Path, prediction_type: str = "epsilon") -> None:
    """folder/scheduler with the constants of every published Stable Diffusion 1 and 2."""
    scheduler = DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        steps_offset=1, set_alpha_to_one=False, prediction_type=prediction_type)
    scheduler.save_pretrained(folder / "scheduler")


def save_checkpoint(folder: Path) -> Path:
    """Write a diffusers folder: unet, vae, text_encoder, tokenizer, scheduler."""
    folder = Path(folder)
    make_prompt_matter(small_unet()).save_pretrained(folder / "unet")
    small_vae().save_pretrained(folder / "vae")
    small_text_encoder().save_pretrained(folder / "text_encoder")
    write_scheduler(folder)
    write_tokenizer(folder, MERGES)
    return folder


@dataclass(frozen=True)
class Family:
    """One published model: where its sizes differ from diffusers' and transformers' defaults."""

    name: str
    unet: dict
    text: dict
    vae: dict
    prediction_type: str = "epsilon"

    @property
    def second(self) -> bool:
        """SD 2.x: OpenCLIP's text encoder."""
        return self.text["hidden_act"] == "gelu"


def _families(unet: dict, unet_2: dict, text: dict, text_2: dict, vae: dict) -> list[Family]:
    base = unet | unet_2 | {"use_linear_projection": True}
    clip, open_clip = text | {"hidden_act": "quick_gelu"}, text_2 | {"hidden_act": "gelu"}
    return [Family("SD 1.5", unet | {"attention_head_dim": 8, "sample_size": 64}, clip, vae),
            Family("SD 2.1-base", base | {"sample_size": 64}, open_clip, vae),
            Family("SD 2.1-v", base | {"sample_size": 96, "upcast_attention": True}, open_clip, vae,
                   "v_prediction")]


# The published sizes, and the same structure at a thousandth of the weight for the tests.
FULL = _families(
    unet={"cross_attention_dim": 768},
    unet_2={"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]},
    text={"hidden_size": 768, "intermediate_size": 3072,
          "num_hidden_layers": 12, "num_attention_heads": 12},
    text_2={"hidden_size": 1024, "intermediate_size": 4096,
            "num_hidden_layers": 23, "num_attention_heads": 16},
    vae={"block_out_channels": (128, 256, 512, 512), "norm_num_groups": 32})
SMALL = _families(
    unet={"cross_attention_dim": 16, "block_out_channels": (32, 32, 64, 64)},
    unet_2={"cross_attention_dim": 32, "attention_head_dim": [2, 4, 8, 8]},
    text={"hidden_size": 16, "intermediate_size": 48,
          "num_hidden_layers": 2, "num_attention_heads": 2},
    text_2={"hidden_size": 32, "intermediate_size": 96,
            "num_hidden_layers": 3, "num_attention_heads": 4},
    vae={"block_out_channels": (8, 16, 24, 24), "norm_num_groups": 4})


def write_folder(family: Family, folder: Path) -> None:
    """A random model of the family as a diffusers folder, float32, with CLIP's own tokenizer."""
    torch.manual_seed(0)
    unet = make_prompt_matter(randomise(UNet2DConditionModel(**family.unet), 1))
    unet.save_pretrained(folder / "unet", max_shard_size="20GB")
    del unet
    levels = len(family.vae["block_out_channels"])
    vae = AutoencoderKL(
        **family.vae, layers_per_block=2, latent_channels=4,
        sample_size=8 * family.unet["sample_size"],
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels)
    randomise(vae, 2).save_pretrained(folder / "vae")
    text = CLIPTextModel(CLIPTextConfig(**family.text, vocab_size=49408))
    randomise(text, 3).save_pretrained(folder / "text_encoder", max_shard_size="20GB")
    write_scheduler(folder, family.prediction_type)
    write_tokenizer(folder, read_merges(PUBLISHED))
    (folder / "model_index.json").write_text(json.dumps(INDEX))
