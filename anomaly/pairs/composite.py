"""The painted crop put back: inside the mask only, at the photograph's own resolution."""

import numpy as np
from PIL import Image
from torch import Tensor

from anomaly.crop import Crop
from anomaly.runs.sheets import to_pixels


def composite(photograph: np.ndarray, mask: np.ndarray, crop: Crop, painted: Tensor) -> np.ndarray:
    """The photograph, uint8 (h, w) or (h, w, 3), with the painted crop in the mask, bool (h, w).

    painted: (3, size, size) in [-1, 1]. Every pixel outside the mask is the photograph's own;
    mirrored surroundings are never pasted, because no mask pixel lies there. Raises RuntimeError if
    the decoded picture is not finite.
    """
    if not painted.isfinite().all():
        raise RuntimeError(
            "the decoded picture has values that are not finite, and nothing was written for it; "
            "give a smaller --guidance, or a more precise --dtype")
    picture = Image.fromarray(to_pixels(painted))
    picture = picture.resize((crop.side, crop.side), Image.Resampling.BICUBIC)
    patch = np.asarray(picture.convert("L") if photograph.ndim == 2 else picture)
    rows, columns = np.nonzero(mask)
    out = photograph.copy()
    out[rows, columns] = patch[rows - crop.top, columns - crop.left]
    return out


def change(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> float:
    """Mean absolute change under the mask, 0 (nothing was painted) to 1."""
    difference = np.abs(after[mask].astype(np.int16) - before[mask].astype(np.int16))
    return float(difference.mean() / 255)
