"""The pretraining pictures on disk: drawn once, read through memory maps."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from anomaly.drawn.scenes import draw_picture

BLOCK = 500


@dataclass(frozen=True)
class PictureSet:
    """images (n, p, p, 3) uint8, masks (n, p, p) bool, n captions."""

    images: np.ndarray
    masks: np.ndarray
    captions: list[str]


def _block(first: int, count: int, seed: int, pixels: int) -> PictureSet:
    drawn = [draw_picture(seed, i, pixels) for i in range(first, first + count)]
    return PictureSet(np.stack([p.image for p in drawn]), np.stack([p.mask for p in drawn]),
                      [p.caption for p in drawn])


def picture_set(folder: Path, seed: int, count: int, pixels: int) -> PictureSet:
    """The first `count` pictures of a seed: drawn into the folder if they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{kind}-{seed}-{count}-{pixels}.{end}" for kind, end in (
        ("images", "npy"), ("masks", "npy"), ("captions", "json"))]
    if not paths[2].exists():
        parts = [path.with_suffix(".part") for path in paths]
        shapes = ((count, pixels, pixels, 3), np.uint8), ((count, pixels, pixels), bool)
        images, masks = (np.lib.format.open_memmap(part, mode="w+", dtype=kind, shape=shape)
                         for part, (shape, kind) in zip(parts, shapes))
        starts = list(range(0, count, BLOCK))
        sizes = [min(BLOCK, count - start) for start in starts]
        captions = []
        with ProcessPoolExecutor() as pool:
            blocks = pool.map(partial(_block, seed=seed, pixels=pixels), starts, sizes)
            for start, size, block in zip(starts, sizes, blocks):
                images[start:start + size], masks[start:start + size] = block.images, block.masks
                captions += block.captions
        del images, masks
        parts[2].write_text(json.dumps(captions))
        for part, path in zip(parts, paths):
            os.replace(part, path)
    return PictureSet(np.load(paths[0], mmap_mode="r"), np.load(paths[1], mmap_mode="r"),
                      json.loads(paths[2].read_text()))
