"""The painted crop put back: inside the mask only, at the photograph's own resolution."""

import numpy as np
from PIL import Image
from torch import Tensor

from anomaly.crop import Crop
from anomaly.files.photographs import Photograph
from anomaly.runs.sheets import to_pixels


def composite(photograph: Photograph, mask: np.ndarray, crop: Crop, painted: Tensor) -> Photograph:
    """The photograph with the painted crop in the mask, bool (h, w), in its own mode and depth.

    painted: (3, size, size) in [-1, 1]. Every value outside the mask, and all of alpha, is the
    photograph's own; mirrored surroundings are never pasted, because no mask pixel lies there.
    Raises RuntimeError if the decoded picture is not finite.
    """
    if not painted.isfinite().all():
        raise RuntimeError(
            "the decoded picture has values that are not finite, and nothing was written for it; "
            "give a smaller --guidance, or a more precise --dtype")
    out = Photograph(photograph.values.copy(), photograph.white)
    picture = Image.fromarray(to_pixels(painted))
    picture = picture.resize((crop.side, crop.side), Image.Resampling.BICUBIC)
    patch = np.asarray(picture.convert("L") if out.colours.ndim == 2 else picture)
    rows, columns = np.nonzero(mask)
    new = patch[rows - crop.top, columns - crop.left]
    if out.values.dtype != np.uint8:
        new = np.round(new * (out.white / 255))
    out.colours[rows, columns] = new
    return out


def change(before: Photograph, after: Photograph, mask: np.ndarray) -> float:
    """Mean absolute change of the colours under the mask, 0 (nothing was painted) to 1."""
    difference = np.abs(after.colours[mask].astype(np.int32) - before.colours[mask])
    return float(difference.mean() / before.white)
