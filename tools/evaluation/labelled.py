"""Photographs as a detector sees them: shrunk to its scale, with what is marked in them."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly.dataset import Example, read_example
from anomaly.files.photographs import read_photograph
from anomaly.scores.detection import Scored


@dataclass(frozen=True)
class Labelled:
    """A photograph in cells: squares of its pixels, as many a side as make it small enough."""

    path: Path
    object: str
    defect: str             # "": none
    pixels: np.ndarray      # (h, w, 3) uint8
    marked: np.ndarray      # (h, w): how many of the photograph's pixels in each cell are marked
    counted: np.ndarray     # (h, w): how many there are
    side: int               # of a cell, in pixels

    @property
    def key(self) -> str:
        """object/defect."""
        return f"{self.object}/{self.defect}"

    def scored(self, scores: np.ndarray) -> Scored:
        """With a detector's map, of as many scores as 16 bits hold: they are ranked faster."""
        return Scored(np.round(scores * 65535) / 65535, self.marked, self.counted)


def in_cells(values: np.ndarray, side: int) -> np.ndarray:
    """Sums over squares of side pixels, (h, w) -> (ceil(h / side), ceil(w / side))."""
    rows, columns = (np.arange(0, n, side) for n in values.shape)
    sums = np.add.reduceat(np.add.reduceat(values.astype(np.int32), rows, 0), columns, 1)
    return sums.astype(np.float32)


def labelled(object_: str, defect: str, example: Example | Path, resolution: int) -> Labelled:
    """A photograph with its mask, or a path: one without defect."""
    if isinstance(example, Path):
        path, photograph = example, read_photograph(example)
        mask = np.zeros(photograph.shape[:2], bool)
    else:
        path, (photograph, mask) = example.image, read_example(example)
    side = -(-max(mask.shape) // resolution)
    pixels = np.asarray(Image.fromarray(photograph).convert("RGB").reduce(side))
    return Labelled(path, object_, defect, pixels, in_cells(mask, side),
                    in_cells(np.ones_like(mask), side), side)


def with_other_mask(image: Labelled, other: Labelled) -> Labelled:
    """The control: the picture with the mask of another, at the same relative place."""
    height, width = image.marked.shape
    mask = Image.fromarray((other.marked > 0).astype(np.uint8)).resize((width, height),
                                                                       Image.Resampling.NEAREST)
    return replace(image, marked=np.asarray(mask))
