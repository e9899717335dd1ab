"""Where a mask goes in a photograph: with a training mask's size in pixels and relative place."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from anomaly.crop import box, defect_crop
from anomaly.pairs.normals import Normal

# Of a mask's pixels. Not all: masks are drawn a little over the edge of an object, and an edge that
# was found is right to two pixels in a hundred; a chip at the edge must find a place there.
ON_OBJECT = 0.95
GRID = 512      # the longer side of the grid on which places are compared, at most


@dataclass(frozen=True)
class MaskPatch:
    """A mask cut to its box, with the place it had."""

    mask: np.ndarray            # bool (h, w), touching all four edges
    place: tuple[float, float]  # share of the room left of it and above it, 0..1
    side: int                   # of the training crop around it, in pixels of its photograph
    source: str                 # the file it came from


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


def share_on(on_object: np.ndarray, patch: MaskPatch, left: int, top: int) -> float:
    """Share of the patch's pixels that lie on the object, bool (h, w), at a place."""
    h, w = patch.mask.shape
    return float(on_object[top:top + h, left:left + w][patch.mask].mean())


def _reduced(grid: np.ndarray, step: int) -> np.ndarray:
    """bool (h, w) -> the share of True in each square of step pixels."""
    h, w = (-(-side // step) for side in grid.shape)
    padded = np.pad(grid, [(0, n * step - side) for n, side in zip((h, w), grid.shape)])
    return padded.reshape(h, step, w, step).mean(axis=(1, 3))


def _nearest(on_object: np.ndarray, patch: MaskPatch, left: int,
             top: int) -> tuple[int, int] | None:
    """The place nearest to (left, top) where ON_OBJECT of the patch lies on the object, or None.

    Exact in photographs of GRID pixels or less. In larger ones places are compared on a grid, and
    what the grid finds is then moved as near as one of its squares allows.
    """
    step = -(-max(on_object.shape) // GRID)
    room = np.array(on_object.shape) - patch.mask.shape

    def first(places: np.ndarray) -> np.ndarray | None:
        """Of places (n, 2) of top and left the nearest that will do; of equals the first."""
        inside = np.clip(places, 0, room)
        order = np.argsort(((inside - (top, left)) ** 2).sum(axis=1), kind="stable")
        return next((inside[i] for i in order
                     if share_on(on_object, patch, inside[i, 1], inside[i, 0]) >= ON_OBJECT), None)

    there, shape = _reduced(on_object, step), _reduced(patch.mask, step)
    # Correlation: at each place the patch's pixels that lie on the object.
    spectrum = np.fft.rfft2(there) * np.fft.rfft2(shape, there.shape).conj()
    hits = np.fft.irfft2(spectrum, there.shape)
    hits = hits[:there.shape[0] - shape.shape[0] + 1, :there.shape[1] - shape.shape[1] + 1]
    best = first(np.argwhere(hits >= ON_OBJECT * shape.sum() - 1e-6) * step)
    if best is not None and step > 1:
        best = first(best + np.argwhere(np.ones((2 * step + 1, 2 * step + 1))) - step)
    return None if best is None else (int(best[1]), int(best[0]))


def placed(patch: MaskPatch, normal: Normal,
           on_object: np.ndarray | None = None) -> np.ndarray | None:
    """The patch in a mask of the photograph's size, bool (h, w), at its relative place.

    on_object, bool (h, w): as near to that as lies on it; None if there is no place on it.
    """
    mask = np.zeros((normal.height, normal.width), dtype=bool)
    h, w = patch.mask.shape
    left = round(patch.place[0] * (normal.width - w))
    top = round(patch.place[1] * (normal.height - h))
    if on_object is not None and share_on(on_object, patch, left, top) < ON_OBJECT:
        if (nearest := _nearest(on_object, patch, left, top)) is None:
            return None
        left, top = nearest
    mask[top:top + h, left:left + w] = patch.mask
    return mask
