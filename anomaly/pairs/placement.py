"""Where a mask goes in a photograph: with a training mask's size in pixels and relative place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly.crop import box, defect_crop
from anomaly.files.folders import image_files
from anomaly.files.photographs import size_of


@dataclass(frozen=True)
class MaskPatch:
    """A mask cut to its box, with the place it had."""

    mask: np.ndarray            # bool (h, w), touching all four edges
    place: tuple[float, float]  # share of the room left of it and above it, 0..1
    side: int                   # of the training crop around it, in pixels of its photograph
    source: str                 # the file it came from


@dataclass(frozen=True)
class Normal:
    """A defect-free photograph, not decoded yet."""

    path: Path
    height: int
    width: int


def mask_patch(mask: np.ndarray, size: int, source: str) -> MaskPatch:
    """The patch of a full mask (h, w); size is the models' image size, for the crop rule.

    The place is a share of the free room rather than of the photograph, so that a defect that
    touches an edge touches the same edge of every photograph it is moved to.
    """
    left, top, right, bottom = box(mask)
    room = mask.shape[1] - (right - left), mask.shape[0] - (bottom - top)
    across, down = (start / free if free else 0.5 for start, free in zip((left, top), room))
    side = defect_crop(mask, size).side
    return MaskPatch(mask[top:bottom, left:right], (across, down), side, source)


def learned_patch(picture: np.ndarray, reference: MaskPatch) -> MaskPatch | None:
    """A generated crop mask, bool (size, size), at the scale and place of a training mask.

    None if nothing is left of it at that scale.
    """
    grey = Image.fromarray(picture.astype(np.uint8) * 255)
    scaled = np.asarray(grey.resize((reference.side, reference.side), Image.Resampling.BOX)) >= 128
    if not scaled.any():
        return None
    left, top, right, bottom = box(scaled)
    return MaskPatch(scaled[top:bottom, left:right], reference.place, reference.side, "learned")


def fits(patch: MaskPatch, normal: Normal) -> bool:
    """True if the patch's box is no larger than the photograph."""
    return patch.mask.shape[0] <= normal.height and patch.mask.shape[1] <= normal.width


def placed(patch: MaskPatch, normal: Normal) -> np.ndarray:
    """The patch in a mask of the photograph's size, bool (h, w)."""
    mask = np.zeros((normal.height, normal.width), dtype=bool)
    h, w = patch.mask.shape
    left = round(patch.place[0] * (normal.width - w))
    top = round(patch.place[1] * (normal.height - h))
    mask[top:top + h, left:left + w] = patch.mask
    return mask


def find_normals(path: Path) -> list[Normal]:
    """A photograph, or the photographs of a folder; only their headers are read."""
    if not path.exists():
        link = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else \
            "no such file or folder"
        raise FileNotFoundError(f"{path}: {link}; --normals takes defect-free photographs")
    files = image_files(path) if path.is_dir() else [path]
    return [Normal(file, *size_of(file)) for file in files]
