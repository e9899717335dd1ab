"""The parts of a mask as outlines and run lengths, by OpenCV and pycocotools (the extra `export`).

    mask bool (h, w) -> its parts, connected over edges and corners: a ring (n, 2), run lengths

A ring is one closed polygon of x, y in pixels of the photograph, where the pixel in column c spans
c to c + 1. It runs along the edges of the pixels, INSET within them, so that a label gives the mask
back by either of the two ways to read it:
    as an area (shapely, supersampling, COCO's polygons): it lacks INSET of a pixel round its rim
    cut to whole numbers, every pixel touched filled (Ultralytics, Pillow): exactly the same pixels
Centres of pixels, as OpenCV gives them, would be half a pixel too small, edges without INSET by the
second way a pixel too large. A hole is joined to the ring by a bridge without width: a row of the
part's pixels, there and back.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

INSET = 1 / 256     # of a pixel; what float32 loses of a coordinate up to 16,384 is a fourth of it


def check_extra() -> None:
    """ValueError if a package of the extra is not installed."""
    try:
        import cv2  # noqa: F401
        import pycocotools.mask  # noqa: F401
    except ImportError as err:
        raise ValueError(f"--format: {err.name} is not installed, and labels need it; "
                         f'pip install -e ".[export]"') from None


@dataclass(frozen=True)
class Part:
    """A connected part of a mask: its place and size in pixels, and the pixels in its box."""

    left: int
    top: int
    pixels: np.ndarray      # bool (height, width): neither an empty row nor column at its rim

    @property
    def box(self) -> list[int]:
        """x, y, width, height."""
        return [self.left, self.top, self.pixels.shape[1], self.pixels.shape[0]]


def parts(mask: np.ndarray) -> Iterator[Part]:
    """The parts of a mask, from the top down."""
    import cv2
    _, labels, found, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    for n, (left, top, width, height, _) in enumerate(found[1:].tolist(), 1):
        yield Part(left, top, labels[top:top + height, left:left + width] == n)


def ring(part: Part) -> np.ndarray:
    """Its outline with its holes, float64 (n, 2): x, y."""
    import cv2
    # Twice as large: the outermost half pixels are the outline, a line of one pixel has an area.
    half = part.pixels.repeat(2, axis=0).repeat(2, axis=1)
    found, tree = cv2.findContours(half.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    rims = [(rim[:, 0], parent >= 0) for rim, (*_, parent) in zip(found, tree[0])]
    outline, = (rim for rim, is_hole in rims if not is_hole)
    # From the left: what lies to the left of a hole is joined before it.
    for hole in sorted((rim for rim, is_hole in rims if is_hole), key=lambda rim: rim[:, 0].min()):
        outline = _bridged(outline, hole, half)
    into, out_of = outline - np.roll(outline, 1, 0), np.roll(outline, -1, 0) - outline
    corners = outline[into[:, 0] * out_of[:, 1] != into[:, 1] * out_of[:, 0]]
    return corners // 2 + np.where(corners % 2, 1 - INSET, INSET) + (part.left, part.top)


def _bridged(outline: np.ndarray, hole: np.ndarray, filled: np.ndarray) -> np.ndarray:
    """The outline with a detour round a hole, from where the row of its leftmost point begins."""
    hole = np.roll(hole, -hole[:, 0].argmin(), axis=0)
    x, y = hole[0]
    empty = np.flatnonzero(~filled[y, :x])
    begin = empty[-1] + 1 if empty.size else 0
    at = np.flatnonzero((outline == (begin, y)).all(1))[0]
    return np.concatenate([outline[:at + 1], hole, hole[:1], outline[at:]])


def run_lengths(part: Part, height: int, width: int) -> dict[str, Any]:
    """COCO's compressed RLE of the part in a mask of that size, and its text in ASCII."""
    from pycocotools.mask import encode
    mask = np.zeros((height, width), np.uint8, order="F")       # the order that it encodes
    mask[part.top:part.top + part.pixels.shape[0],
         part.left:part.left + part.pixels.shape[1]] = part.pixels
    return {"size": [height, width], "counts": encode(mask)["counts"].decode("ascii")}
