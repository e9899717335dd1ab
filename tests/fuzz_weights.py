"""A subject of fuzz.py: checkpoints of both layouts, their configurations and tokenizers."""

from functools import partial
from pathlib import Path

from fuzz import Place, bytes_changed, json_damaged, tensors_damaged

import weights.checkpoint
from models_on_disk import SMALL_FAMILIES, TEXT, UNET, VAE_FILE, write_small
from weights import load

FILES = {UNET: tensors_damaged, VAE_FILE: tensors_damaged, TEXT: tensors_damaged,
         "unet/config.json": json_damaged, "vae/config.json": json_damaged,
         "text_encoder/config.json": json_damaged, "scheduler/scheduler_config.json": json_damaged,
         "tokenizer/merges.txt": bytes_changed}


def places(root: Path) -> list[Place]:
    """A single file and every file of a folder, of both families."""
    weights.checkpoint.FAMILIES = SMALL_FAMILIES
    found, files = [], write_small(root)
    for name in ("SD 1.5", "SD 2.1-v"):
        single, folder = files[name], root / name
        found += 3 * [Place(single, tensors_damaged, partial(load, single), single)]
        found += [Place(folder / file, damage, partial(load, folder), folder)
                  for file, damage in FILES.items()]
    return found
