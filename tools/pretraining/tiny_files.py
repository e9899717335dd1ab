"""The files of weights/tiny: a diffusers folder in float16, and the vocabulary of its captions."""

import json
from pathlib import Path

import torch
from torch import nn

from anomaly.drawn.defects import DEFECTS, STAINS
from anomaly.drawn.products import PRODUCTS
from anomaly.files.atomic_files import write_tensors
from ldm.config import ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from ldm.text_encoder import TextEncoder
from ldm.tokenizer import Tokenizer, vocabulary
from ldm.unet import UNet
from ldm.vae import VAE

Merges = list[tuple[str, str]]


def caption_words() -> list[str]:
    """Every word of the captions, and the names a user of the demo may write."""
    words = "a photo of with mask small large center top bottom left right".split()
    return [*words, *PRODUCTS, *DEFECTS, *STAINS, "huge"]


def _split(word: str, merges: Merges) -> list[str]:
    """A word's tokens: the earliest merge first, as in BPE."""
    tokens = [*word[:-1], word[-1] + "</w>"]
    while True:
        pairs = enumerate(zip(tokens, tokens[1:]))
        found = [(merges.index(pair), i) for i, pair in pairs if pair in merges]
        if not found:
            return tokens
        i = min(found)[1]
        tokens[i:i + 2] = [tokens[i] + tokens[i + 1]]


def caption_merges() -> Merges:
    """Merges that make one token of each caption word.

    A word's merges go behind those of the words before it, and so take no letters from these.
    """
    merges: Merges = []
    for word in caption_words():
        tokens = _split(word, merges)
        while len(tokens) > 1:
            merges.append((tokens[0], tokens[1]))
            tokens = _split(word, merges)
    return merges


def caption_tokenizer(context_length: int = 77) -> Tokenizer:
    """CLIP's tokenizer over the captions' own vocabulary."""
    merges = caption_merges()
    return Tokenizer(vocabulary(merges), merges, context_length)


def _unet_json(config: UNetConfig) -> dict:
    down = ["CrossAttnDownBlock2D" if has else "DownBlock2D" for has in config.cross_attention]
    up = ["CrossAttnUpBlock2D" if has else "UpBlock2D" for has in config.cross_attention[::-1]]
    return {"_class_name": "UNet2DConditionModel", "in_channels": 4, "out_channels": 4,
            "sample_size": config.sample_size, "block_out_channels": list(config.channels),
            "down_block_types": down, "up_block_types": up,
            "layers_per_block": config.layers_per_block, "attention_head_dim": config.heads[0],
            "cross_attention_dim": config.context_dim, "norm_num_groups": config.norm_groups}


def _vae_json(config: VAEConfig, cells: int) -> dict:
    levels = len(config.channels)
    return {"_class_name": "AutoencoderKL", "in_channels": 3, "out_channels": 3,
            "sample_size": cells * config.factor, "block_out_channels": list(config.channels),
            "layers_per_block": config.layers_per_block,
            "down_block_types": ["DownEncoderBlock2D"] * levels,
            "up_block_types": ["UpDecoderBlock2D"] * levels,
            "latent_channels": config.latent_channels, "norm_num_groups": config.norm_groups,
            "scaling_factor": config.scaling_factor}


def _text_json(config: TextConfig) -> dict:
    size = config.vocab_size
    return {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model",
            "vocab_size": size, "hidden_size": config.width, "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads, "intermediate_size": config.mlp_width,
            "max_position_embeddings": config.context_length, "hidden_act": "quick_gelu",
            "bos_token_id": size - 2, "eos_token_id": size - 1, "pad_token_id": size - 1}


def _scheduler_json(config: ScheduleConfig) -> dict:
    return {"_class_name": "DDIMScheduler", "num_train_timesteps": config.train_timesteps,
            "beta_start": config.beta_start, "beta_end": config.beta_end,
            "beta_schedule": "scaled_linear", "clip_sample": False, "set_alpha_to_one": False,
            "steps_offset": 1,
            "prediction_type": "v_prediction" if config.v_prediction else "epsilon"}


INDEX = {"_class_name": "StableDiffusionPipeline", "_diffusers_version": "0.42.1",
         "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"],
         "text_encoder": ["transformers", "CLIPTextModel"],
         "tokenizer": ["transformers", "CLIPTokenizer"],
         "scheduler": ["diffusers", "DDIMScheduler"],
         "feature_extractor": [None, None], "safety_checker": [None, None]}


def _weights(module: nn.Module, path: Path, prefix: str = "") -> None:
    write_tensors(path, {prefix + k: v.to("cpu", torch.float16)
                         for k, v in module.state_dict().items()}, {"format": "pt"})


def write_checkpoint(folder: Path, unet: UNet, vae: VAE, text_encoder: TextEncoder,
                     schedule: ScheduleConfig) -> None:
    """Write the folder that load, and diffusers' own pipeline, read."""
    merges, text = caption_merges(), text_encoder.config
    texts = {"unet/config.json": _unet_json(unet.config),
             "vae/config.json": _vae_json(vae.config, unet.config.sample_size),
             "text_encoder/config.json": _text_json(text),
             "scheduler/scheduler_config.json": _scheduler_json(schedule),
             "tokenizer/vocab.json": vocabulary(merges), "model_index.json": INDEX,
             "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer",
                                                 "model_max_length": text.context_length}}
    for name, content in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        written = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        (folder / name).write_text(written, encoding="utf-8")
    (folder / "tokenizer/merges.txt").write_text(
        "#version: 0.2\n" + "".join(f"{a} {b}\n" for a, b in merges), encoding="utf-8")
    _weights(unet, folder / "unet/diffusion_pytorch_model.safetensors")
    _weights(vae, folder / "vae/diffusion_pytorch_model.safetensors")
    # The prefix that transformers before 5.6 and most published folders have.
    _weights(text_encoder, folder / "text_encoder/model.safetensors", "text_model.")
