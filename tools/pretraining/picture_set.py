"""The pretraining pictures on disk: drawn once, read through memory maps."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from anomaly.drawn.scenes import draw_picture
from anomaly.files.atomic_files import replacing

BLOCK = 500


ARRAYS = ("images", "clean", "masks", "shapes")


@dataclass(frozen=True)
class PictureSet:
    """n pictures, as in Picture: images and clean (n, p, p, 3) uint8, masks and shapes (n, p, p)
    bool, n captions of the images and n of the shapes."""

    images: np.ndarray
    clean: np.ndarray
    masks: np.ndarray
    shapes: np.ndarray
    captions: list[str]
    shape_captions: list[str]


def _block(first: int, count: int, seed: int, pixels: int) -> PictureSet:
    drawn = [draw_picture(seed, i, pixels) for i in range(first, first + count)]
    arrays = [np.stack([getattr(p, name) for p in drawn])
              for name in ("image", "clean", "mask", "shape")]
    return PictureSet(*arrays, [p.caption for p in drawn], [p.shape_caption for p in drawn])


def picture_set(folder: Path, seed: int, count: int, pixels: int) -> PictureSet:
    """The first `count` pictures of a seed: drawn into the folder if they are not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = [folder / f"{kind}-{seed}-{count}-{pixels}.npy" for kind in ARRAYS]
    written = folder / f"captions-{seed}-{count}-{pixels}.json"
    if not written.exists():
        colour, flags = ((count, pixels, pixels, 3), np.uint8), ((count, pixels, pixels), bool)
        parts = [np.lib.format.open_memmap(path.with_suffix(".part"), mode="w+", dtype=kind,
                                           shape=shape)
                 for path, (shape, kind) in zip(arrays, (colour, colour, flags, flags))]
        starts = list(range(0, count, BLOCK))
        sizes = [min(BLOCK, count - start) for start in starts]
        captions = []
        with ProcessPoolExecutor() as pool:
            blocks = pool.map(partial(_block, seed=seed, pixels=pixels), starts, sizes)
            for start, size, block in zip(starts, sizes, blocks):
                for name, part in zip(ARRAYS, parts):
                    part[start:start + size] = getattr(block, name)
                captions += zip(block.captions, block.shape_captions)
        del parts
        for path in arrays:
            os.replace(path.with_suffix(".part"), path)
        with replacing(written) as temporary:
            temporary.write_text(json.dumps(captions))
    loaded = [np.load(path, mmap_mode="r") for path in arrays]
    return PictureSet(*loaded, *map(list, zip(*json.loads(written.read_text()))))
