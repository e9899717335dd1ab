"""Load a Stable Diffusion 1.x folder in diffusers layout: strict, memory-mapped, never a pickle.

    FOLDER/unet/{config.json, diffusion_pytorch_model.safetensors}      vae/ the same
    FOLDER/text_encoder/{config.json, model.safetensors}                scheduler/scheduler_config.json
    FOLDER/tokenizer/{vocab.json, merges.txt}  or  tokenizer.json       (the second since transformers 5)

A `.fp16.safetensors` file is taken where there is no plain one. The modules are built on the meta device
and receive the file's tensors one by one, so that no memory is spent on random initial weights.
"""

import hashlib
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from ldm.model import StableDiffusion
from ldm.schedule import Schedule
from ldm.text_encoder import TextEncoder
from ldm.tokenizer import Tokenizer
from ldm.unet import UNet
from ldm.vae import VAE
from weights import layouts
from weights.configs import read_json, schedule_config, text_config, unet_config, vae_config

PARTS = {"unet": "diffusion_pytorch_model", "vae": "diffusion_pytorch_model", "text_encoder": "model"}


def weight_file(folder: Path, part: str) -> Path:
    """The part's .safetensors file; FileNotFoundError says what lies there instead."""
    for suffix in (".safetensors", ".fp16.safetensors"):
        path = folder / part / (PARTS[part] + suffix)
        if path.is_file():
            return path
    expected = f"{folder / part / PARTS[part]}.safetensors"
    pickles = sorted((folder / part).glob("*.bin")) if (folder / part).is_dir() else []
    if pickles:
        raise FileNotFoundError(
            f"{expected}: not found, only {pickles[0].name}, a pickle, which is never loaded; convert it "
            f"once: from diffusers import StableDiffusionPipeline; StableDiffusionPipeline."
            f"from_pretrained({str(folder)!r}).save_pretrained({str(folder) + '-safetensors'!r})")
    raise FileNotFoundError(f"{expected}: not found; expected a Stable Diffusion 1.x folder "
                            f"in diffusers layout")


def fingerprint(path: str | Path) -> str:
    """sha256 over the three weight files: tells whether a run and a checkpoint belong together."""
    digest = hashlib.sha256()
    for part in PARTS:
        with open(weight_file(Path(path), part), "rb") as file:
            while block := file.read(1 << 24):
                digest.update(block)
    return digest.hexdigest()


def _copy_into(module: nn.Module, path: Path, layout: list, device: str) -> None:
    """Fill a module built on the meta device from a file: every tensor once, nothing left, no reshape."""
    expected = {key: tuple(tensor.shape) for key, tensor in module.state_dict().items()}
    loaded, extra = {}, []
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for published in file.keys():
                key = layouts.rename(published, layout)
                if key is None:
                    continue
                if key not in expected:
                    extra.append(published)
                    continue
                shape = tuple(file.get_slice(published).get_shape())
                if shape != expected[key]:
                    raise ValueError(f"{path}: {published} has shape {shape}, expected {expected[key]}; "
                                     f"the config.json beside it belongs to another model")
                tensor = file.get_tensor(published)
                if key in loaded or not tensor.is_floating_point():
                    fault = "has two names" if key in loaded else f"is {tensor.dtype}, not float"
                    raise ValueError(f"{path}: {published} {fault}; expected published weights")
                loaded[key] = tensor.to(torch.float32)
    except SafetensorError as err:
        raise ValueError(f"{path}: not a whole safetensors file ({err}); download it again") from None
    missing = [key for key in expected if key not in loaded]
    if missing or extra:
        raise ValueError(f"{path}: {len(missing)} tensors missing (first: {missing[:2]}), {len(extra)} "
                         f"unexpected (first: {extra[:2]}); expected the weights of the config.json beside it")
    module.load_state_dict(loaded, strict=True, assign=True)


def _tokenizer(folder: Path, context_length: int, vocab_size: int) -> Tokenizer:
    if (folder / "vocab.json").is_file():
        vocab, merges_file = read_json(folder / "vocab.json"), folder / "merges.txt"
        if not merges_file.is_file():
            raise FileNotFoundError(f"{merges_file}: not found beside vocab.json; copy it from the model")
        lines = merges_file.read_text(encoding="utf-8", errors="replace").splitlines()
        merges = [line for line in lines if line and not line.startswith("#version")]
    else:
        model = read_json(folder / "tokenizer.json").get("model")
        model = model if isinstance(model, dict) else {}
        vocab, merges = model.get("vocab", {}), model.get("merges", [])
    try:
        # Pairs, or strings with a space, as in merges.txt and in files of tokenizers before 0.20.
        merges = [tuple(merge.split() if isinstance(merge, str) else merge) for merge in merges]
        beyond = [token for token, token_id in vocab.items() if not 0 <= token_id < vocab_size]
        if beyond:
            raise ValueError(f"{beyond[0]!r} has id {vocab[beyond[0]]}, but the text encoder knows "
                             f"{vocab_size} tokens")
        return Tokenizer(vocab, merges, context_length)
    except Exception as err:    # the tokenizers package raises bare Exception for a bad vocabulary
        reason = str(err).partition("\n")[0]
        raise ValueError(f"{folder}: not a CLIP tokenizer ({reason})") from None


def load(path: str | Path, device: str | torch.device = "cpu") -> StableDiffusion:
    """A diffusers folder -> StableDiffusion in float32 on the device.

    Raises FileNotFoundError or ValueError, naming the file, for anything that is missing, damaged or not
    Stable Diffusion 1.x.
    """
    folder = Path(path)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected a Stable Diffusion 1.x folder "
                                f"in diffusers layout")
    with torch.device("meta"):
        unet = UNet(unet_config(folder / "unet/config.json"))
        vae = VAE(vae_config(folder / "vae/config.json"))
        text_encoder = TextEncoder(text_config(folder / "text_encoder/config.json"))
    if unet.config.context_dim != text_encoder.config.width:
        raise ValueError(f"{folder}: the U-Net reads a context of width {unet.config.context_dim}, the text "
                         f"encoder gives {text_encoder.config.width}; they belong to different models")
    schedule = Schedule(schedule_config(folder / "scheduler/scheduler_config.json"))
    tokenizer = _tokenizer(folder / "tokenizer", text_encoder.config.context_length,
                           text_encoder.config.vocab_size)
    for part, module, layout in (("unet", unet, layouts.UNET), ("vae", vae, layouts.VAE),
                                 ("text_encoder", text_encoder, layouts.TEXT_ENCODER)):
        _copy_into(module, weight_file(folder, part), layout, device)
    return StableDiffusion(tokenizer, text_encoder, unet, vae, schedule)
