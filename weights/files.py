"""Open a weight file, or say in one line what it is instead and what to do; unpickle nothing."""

import re
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

PICKLES = (".ckpt", ".bin", ".pt", ".pth")
PICKLE_STARTS = (b"PK\x03\x04", b"\x80")        # torch.save since 1.6: a zip; before: a bare pickle

# What the keys of a file give away: (pattern of a key, what the file is, what to do).
WHOLE = "use a whole Stable Diffusion 1.x or 2.x text-to-image checkpoint"
FOREIGN = [
    (r"^conditioner\.", "a Stable Diffusion XL checkpoint", WHOLE),
    (r"^model\.diffusion_model\.label_emb\.", "a Stable Diffusion XL checkpoint", WHOLE),
    (r"(^|\.)joint_blocks\.", "a Stable Diffusion 3 checkpoint", WHOLE),
    (r"(^|\.)(double_blocks|single_transformer_blocks)\.", "a Flux checkpoint", WHOLE),
    (r"^transformer_blocks\.\d+\.attn\.add_q_proj\.", "a Stable Diffusion 3 checkpoint", WHOLE),
    (r"(^|[._])lora[._]|^lora",
     "a LoRA, an addition to a checkpoint", "merge it into its checkpoint first"),
    (r"^(control_model|controlnet_\w+)\.", "a ControlNet", WHOLE),
    (r"^(emb_params|string_to_param.*|<.*>)$", "a textual-inversion embedding", WHOLE),
    (r"^state_dict\.", "saved with state_dict. before its tensors' names", "save it without"),
]
# The three parts of a single file and their prefixes. Where there is none, the first of the rows
# below that fits says what the file is.
PREFIXES = {"U-Net": ("model.diffusion_model.",), "VAE": ("first_stage_model.", "vae."),
            "text encoder": ("cond_stage_model.",)}
PARTS_ALONE = [
    (r"^(down_blocks|up_blocks|mid_block|input_blocks|middle_block)\.", "a U-Net alone"),
    (r"^(encoder|decoder)\.(conv_in|mid(_block)?|(up|down)(_blocks)?)\.", "a VAE alone"),
    (r"^(text_model|transformer\.resblocks|embeddings|encoder\.layers)\.", "a text encoder alone"),
]
ALL_THREE = "give the folder with unet, vae and text_encoder, or the single file of all three"


# Python that converts a pickle without running any code of it: torch unpickles tensors and
# containers alone, and other classes (Lightning's callbacks in .ckpt files) become empty stand-ins.
CONVERSION = (
    "import torch, safetensors.torch, zipfile; f = {source!r}; s = torch.serialization; skipped = "
    "type('Skipped', (), dict.fromkeys(('__init__', '__setstate__'), lambda *a, **k: None)); "
    "s.add_safe_globals([(skipped, n) for n in s.get_unsafe_globals_in_checkpoint(f)] "
    "if zipfile.is_zipfile(f) else []); "
    "w = torch.load(open(f, 'rb'), map_location='cpu', weights_only=True); "
    "safetensors.torch.save_file({{k: v.contiguous().clone() for k, v in "
    "w.get('state_dict', w).items() if isinstance(v, torch.Tensor)}}, {target!r})")


def pickle_refusal(path: Path, target: Path | None = None) -> str:
    """The line for a pickle; what follows "in Python: " converts it to target."""
    target = target or path.with_suffix(".safetensors")
    target = path.with_stem(path.stem + "-converted") if target == path else target
    conversion = CONVERSION.format(source=str(path), target=str(target))
    return (f"{path}: is a pickle, which can run code when it is opened and is never loaded; "
            f"use the published .safetensors or convert it once in Python: {conversion}")


def refuse_pointer(path: Path, start: str) -> None:
    """Raise ValueError if a file's first characters are those of a git-lfs pointer."""
    if start.startswith("version https://git-lfs"):
        raise ValueError(f"{path}: is a git-lfs pointer of {path.stat().st_size} bytes, not the "
                         f"file itself; run git lfs pull there, or download it again")


def refuse_dangling(path: Path) -> None:
    """Raise FileNotFoundError for a link to nothing: the hub's cache after a broken download."""
    if path.is_symlink() and not path.exists():
        raise FileNotFoundError(
            f"{path}: is a link to {path.readlink()}, which is not there; download it again")


def refuse_other_formats(path: Path) -> None:
    """Raise ValueError for what its first bytes or its size show to be no safetensors file."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        start = file.read(512)
    again = "download it again"
    if size == 0:
        raise ValueError(f"{path}: is empty (0 bytes); {again}")
    refuse_pointer(path, start.decode("latin-1"))
    json = start[8:9] == b"{"   # behind the header's length, which may look like a pickle's start
    if not json and (start.startswith(PICKLE_STARTS) or path.suffix in PICKLES):
        raise ValueError(pickle_refusal(path))
    if not json and start.lstrip()[:1] == b"<":
        raise ValueError(
            f"{path}: is a web page, not the weights; {again}, with the link to the file itself")
    if not start.strip(b"\0"):
        raise ValueError(f"{path}: starts with zero bytes, not with a safetensors header; {again}")
    header = int.from_bytes(start[:8], "little")
    if not json or header > size - 8:
        found = f"its header should have {header} bytes, the file has {size}" if json else \
            f"it starts with {start[:8]!r}"
        raise ValueError(f"{path}: is cut off or not safetensors ({found}); {again}")


def open_weights(path: Path, device: str) -> safe_open:
    """The file, memory-mapped; ValueError unless it is a whole safetensors file with tensors."""
    refuse_other_formats(path)
    try:
        file: Any = safe_open(path, framework="pt", device=device)      # its methods have no types
    except SafetensorError as err:
        raise ValueError(f"{path}: not a whole safetensors file ({str(err)!r}); "
                         f"download it again") from None
    if not file.keys():
        raise ValueError(f"{path}: holds no tensors; download it again")
    return file


def refuse_foreign(path: Path, keys: list[str]) -> None:
    """Raise ValueError that says what a single file is, if its keys are not those of SD 1 or 2."""
    for pattern, what, remedy in FOREIGN:
        if any(re.search(pattern, key) for key in keys):
            raise ValueError(f"{path}: is {what}; {remedy}")
    missing = [f"no {part} ({prefixes[0][:-1]})" for part, prefixes in PREFIXES.items()
               if not any(key.startswith(prefixes) for key in keys)]
    if not missing:
        return
    if len(missing) < len(PREFIXES):
        raise ValueError(f"{path}: has {' and '.join(missing)}; {ALL_THREE}")
    for pattern, what in PARTS_ALONE:
        if any(re.search(pattern, key) for key in keys):
            raise ValueError(f"{path}: is {what}; {ALL_THREE}")
    raise ValueError(f"{path}: not a Stable Diffusion checkpoint ({len(keys)} tensors, first: "
                     f"{keys[:2]}); {WHOLE}")
