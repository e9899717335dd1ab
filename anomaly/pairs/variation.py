"""One real mask made into many: mirrored, scaled within the real ones' range, turned a little.

Turned by no more than the views that training saw, so that the spatial encoder knows the shape.
"""

from dataclasses import replace

import numpy as np
from PIL import Image

from anomaly.crop import MAX_ANGLE, box, turn_mask
from anomaly.pairs.placement import MaskPatch

SHIFT = 0.1         # of the room a mask can move in, either way
MOST = 2.0          # times a mask may grow or shrink, however different the real ones are


def size_of_patch(patch: MaskPatch) -> float:
    """The root of a mask's area, in pixels."""
    return float(np.sqrt(patch.mask.sum()))


def _moved(place: float, rng: np.random.Generator) -> float:
    """A place moved by SHIFT at most; what touches an edge keeps to it."""
    shift = rng.uniform(-SHIFT, SHIFT)
    return place if place in (0.0, 1.0) else min(max(place + shift, 0.0), 1.0)


def varied(patch: MaskPatch, sizes: tuple[float, float], flip: bool,
           rng: np.random.Generator) -> MaskPatch:
    """A mask like the patch. sizes: the smallest and largest of the real masks, as size_of_patch.

    flip: it may be mirrored, and its place with it.
    """
    mask, (across, down) = patch.mask, patch.place
    mirror_across, mirror_down = (rng.random(2) < 0.5) & flip
    if mirror_across:
        mask, across = mask[:, ::-1], 1 - across
    if mirror_down:
        mask, down = mask[::-1], 1 - down
    size = size_of_patch(patch)
    low, high = max(sizes[0] / size, 1 / MOST), min(sizes[1] / size, MOST)
    factor = float(np.exp(rng.uniform(np.log(min(low, 1.0)), np.log(max(high, 1.0)))))
    grey = Image.fromarray(mask.astype(np.uint8) * 255)
    shape = [max(1, round(side * factor)) for side in grey.size]
    # A quarter, as where masks are turned: a line of one pixel stays whole at half its size.
    scaled = np.asarray(grey.resize(shape, Image.Resampling.BOX)) > 62
    reach = int(np.hypot(*scaled.shape)) + 2
    turned = turn_mask(np.pad(scaled, reach), rng.uniform(-MAX_ANGLE, MAX_ANGLE))
    left, top, right, bottom = box(turned)
    return replace(patch, mask=turned[top:bottom, left:right],
                   place=(_moved(across, rng), _moved(down, rng)),
                   side=round(patch.side * factor))
