"""Where a mask goes in a photograph: with a training mask's size in pixels and relative place."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from anomaly.crop import box, defect_crop
from anomaly.dataset import Example, image_files, read_example, read_mask


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


def training_patches(examples: tuple[Example, ...], size: int) -> list[MaskPatch]:
    """The training masks as patches."""
    return [mask_patch(read_example(e)[1], size, str(e.mask)) for e in examples]


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
        raise FileNotFoundError(
            f"{path}: no such file or folder; --normals takes defect-free photographs")
    normals = []
    for file in image_files(path) if path.is_dir() else [path]:
        try:
            with Image.open(file) as image:
                width, height = image.size
                turned = image.getexif().get(0x0112, 1) >= 5    # EXIF orientation: 5..8 swap sides
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
            raise ValueError(f"{file}: cannot be read as a photograph ({err}); "
                             f"replace or remove it") from None
        normals.append(Normal(file, width, height) if turned else Normal(file, height, width))
    return normals


def read_mask_files(path: Path, normals: list[Normal]) -> list[tuple[Path, np.ndarray]]:
    """A mask file, or those of a folder; each must be a photograph's size and hold a defect."""
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; --masks takes learned, train, or mask files")
    sizes = {(n.height, n.width) for n in normals}
    masks = []
    for file in image_files(path) if path.is_dir() else [path]:
        mask = read_mask(file)
        if not mask.any():
            raise ValueError(
                f"{file}: no defect in it, every pixel is background; draw the mask or remove it")
        if mask.shape not in sizes:
            height, width = sorted(sizes)[0]
            raise ValueError(
                f"{file}: {mask.shape[1]}x{mask.shape[0]} pixels, but no photograph has that size "
                f"(the first has {width}x{height}); draw it over the photograph it is for")
        masks.append((file, mask))
    return masks
