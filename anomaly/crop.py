"""The square crop around a defect that training and sampling share, and its augmentation.

A scratch that fills a thousandth of a photograph covers no latent cell worth learning from; in a
crop around it, it covers many. The same rule frames training photographs, masks for the mask model,
and the place in a normal photograph where a defect will be painted.

departs from the paper: it trains on whole images at 256 px.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

MARGIN = 1.25           # crop side over the longer side of the mask's box
MAX_ANGLE = 10.0        # degrees of the augmentation's rotation, either way


@dataclass(frozen=True)
class Crop:
    """A square in photograph pixels; it may reach outside the photograph."""

    left: int
    top: int
    side: int

    def inside(self, height: int, width: int) -> tuple[slice, slice]:
        """Rows and columns of the photograph that the crop covers."""
        return (slice(max(self.top, 0), min(self.top + self.side, height)),
                slice(max(self.left, 0), min(self.left + self.side, width)))


@dataclass(frozen=True)
class Cropped:
    """What the models see of one photograph, or of a normal one with a mask to be painted."""

    image: Tensor       # (3, size, size) in [-1, 1]
    mask: Tensor        # (size, size) bool: every pixel that the photograph's mask touches
    cells: Tensor       # (size / f, size / f) bool: every latent cell that it touches


def box(mask: np.ndarray) -> tuple[int, int, int, int]:
    """left, top, right, bottom of the True pixels, the last two exclusive; there must be some."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def _start(low: int, high: int, side: int, extent: int, rng: np.random.Generator | None) -> int:
    """First pixel of the crop along one axis, for a mask box low..high and a photograph of extent.

    The crop contains the box. It stays inside the photograph if it can, else it contains the
    photograph. Without rng it is as near as allowed to the box's centre, with rng anywhere allowed.
    """
    first, last = high - side, low                                  # all that contain the box
    first, last = max(first, min(0, extent - side)), min(last, max(0, extent - side))
    if rng is not None:
        return int(rng.integers(first, last + 1))
    return min(max((low + high - side) // 2, first), last)


def defect_crop(mask: np.ndarray, size: int, rng: np.random.Generator | None = None) -> Crop:
    """The crop for a mask (h, w): MARGIN times the longer side of the mask's box.

    But at least size / 4, and at most the photograph's longer side. size is the models' image size
    in pixels. With rng its place is jittered.
    """
    left, top, right, bottom = box(mask)
    height, width = mask.shape
    longer = max(right - left, bottom - top)
    side = min(max(round(MARGIN * longer), size // 4, 1), max(height, width))
    return Crop(_start(left, right, side, width, rng), _start(top, bottom, side, height, rng), side)


def _mirrored(start: int, side: int, extent: int) -> np.ndarray:
    """Indices start..start+side-1 with those outside 0..extent-1 reflected back, edges repeated."""
    i = np.arange(start, start + side) % (2 * extent)
    return np.where(i < extent, i, 2 * extent - 1 - i)


def touched(mask: np.ndarray, crop: Crop, grid: int) -> np.ndarray:
    """bool (grid, grid) over the crop: True where any mask pixel overlaps the cell.

    Exact for every ratio of pixels to cells, so a one-pixel scratch survives. Nothing outside the
    photograph is mask: mirrored surroundings never count.
    departs from the released code: it shrinks bilinearly and cuts at 0.5, which loses thin defects.
    """
    rows, columns = crop.inside(*mask.shape)
    pixels = np.zeros((crop.side, crop.side), dtype=bool)
    pixels[rows.start - crop.top:rows.stop - crop.top,
           columns.start - crop.left:columns.stop - crop.left] = mask[rows, columns]
    total = np.pad(pixels.cumsum(0).cumsum(1), ((1, 0), (1, 0)))    # summed-area table
    cell = np.arange(grid)
    low, high = cell * crop.side // grid, -(-(cell + 1) * crop.side // grid)    # floor, ceil
    count = (total[high][:, high] - total[low][:, high] - total[high][:, low] + total[low][:, low])
    return count > 0


def cut(photograph: np.ndarray, crop: Crop) -> np.ndarray:
    """The crop's pixels, uint8 (side, side) or (side, side, 3); mirrored beyond the photograph."""
    rows = _mirrored(crop.top, crop.side, photograph.shape[0])
    columns = _mirrored(crop.left, crop.side, photograph.shape[1])
    return photograph[rows][:, columns]


def to_image(pixels: np.ndarray, size: int) -> Tensor:
    """uint8 (s, s) or (s, s, 3) -> (3, size, size) in [-1, 1]; of grey, three equal channels."""
    resized = Image.fromarray(pixels).convert("RGB").resize((size, size), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(resized)).permute(2, 0, 1).float() / 127.5 - 1


def take(photograph: np.ndarray, mask: np.ndarray, crop: Crop, size: int, factor: int) -> Cropped:
    """Photograph and mask through the crop, at the models' image size and latent grid."""
    return Cropped(to_image(cut(photograph, crop), size),
                   torch.from_numpy(touched(mask, crop, size)),
                   torch.from_numpy(touched(mask, crop, size // factor)))


def _turned(source: np.ndarray, left: int, top: int, angle: float, centre: tuple[float, float],
            rows: slice, columns: slice, resample: Image.Resampling) -> np.ndarray:
    """Rows and columns of an image turned by angle degrees about centre (x, y).

    source is the part of the image at left, top; beyond it is black.
    """
    radians = -np.radians(angle)        # where a pixel of the turned image comes from
    cos, sin = np.cos(radians), np.sin(radians)
    x, y = columns.start - centre[0], rows.start - centre[1]
    matrix = (cos, sin, cos * x + sin * y + centre[0] - left,
              -sin, cos, cos * y - sin * x + centre[1] - top)
    size = columns.stop - columns.start, rows.stop - rows.start
    image = Image.fromarray(source)
    return np.asarray(image.transform(size, Image.Transform.AFFINE, matrix, resample))


def turn_mask(mask: np.ndarray, angle: float) -> np.ndarray:
    """The mask turned by angle degrees about its box's middle, same size; what leaves it is lost.

    The cut at a quarter keeps a single pixel alive at every angle: somewhere the bilinear weights
    reach a quarter.
    """
    left, top, right, bottom = box(mask)
    centre = (left + right) / 2, (top + bottom) / 2
    reach = int(np.hypot(right - left, bottom - top) / 2) + 2
    rows, columns = (slice(max(0, int(c) - reach), min(n, int(c) + reach + 1))
                     for c, n in zip(centre[::-1], mask.shape))
    patch = np.pad(mask[top:bottom, left:right], 2).astype(np.uint8) * 255
    out = np.zeros(mask.shape, dtype=bool)
    out[rows, columns] = _turned(patch, left - 2, top - 2, angle, centre, rows, columns,
                                 Image.Resampling.BILINEAR) > 62
    return out


def turn_window(photograph: np.ndarray, angle: float, centre: tuple[float, float], rows: slice,
                columns: slice) -> np.ndarray:
    """Rows and columns of the photograph turned by angle degrees about centre (x, y).

    It is mirrored beyond its edges. Only what these pixels come from is read: a photograph may be a
    hundred times as large as the crop.
    """
    corners = [(x - centre[0], y - centre[1])
               for x in (columns.start, columns.stop) for y in (rows.start, rows.stop)]
    # The radius of a circle in which the window lies at any angle.
    reach = int(max(np.hypot(*corner) for corner in corners)) + 3
    left, top = int(centre[0]) - reach, int(centre[1]) - reach
    source = photograph[np.ix_(_mirrored(top, 2 * reach + 1, photograph.shape[0]),
                               _mirrored(left, 2 * reach + 1, photograph.shape[1]))]
    return _turned(source, left, top, angle, centre, rows, columns, Image.Resampling.BICUBIC)


def augmented(photograph: np.ndarray, mask: np.ndarray, size: int, factor: int, flip: bool,
              rng: np.random.Generator) -> Cropped:
    """One random view: mirrored or not (never with flip False), turned a little, crop jittered.

    Turned corners are filled by mirroring, and never mask, so that they count in no loss.
    departs from the released code: it rotates one way by up to 20 degrees over black corners, with
    one draw and one crop box for a whole batch; here every sample has its own.
    """
    if flip and rng.random() < 0.5:
        photograph, mask = photograph[:, ::-1], mask[:, ::-1]
    if flip and rng.random() < 0.5:
        photograph, mask = photograph[::-1], mask[::-1]
    left, top, right, bottom = box(mask)
    angle = rng.uniform(-MAX_ANGLE, MAX_ANGLE)
    turned = turn_mask(mask, angle)
    if not turned.any():        # a mask in a corner can be turned out of the photograph
        angle, turned = 0.0, mask
    crop = defect_crop(turned, size, rng)
    rows, columns = crop.inside(*mask.shape)
    centre = (left + right) / 2, (top + bottom) / 2
    seen = np.zeros(photograph.shape, dtype=np.uint8)       # outside the crop nothing is read
    seen[rows, columns] = turn_window(photograph, angle, centre, rows, columns)
    return take(seen, turned, crop, size, factor)


def thin(cropped: Cropped) -> bool:
    """True if no two by two latent cells fit into the mask: such defects are painted poorly."""
    side = 2 * cropped.mask.shape[-1] // cropped.cells.shape[-1]
    background = 1.0 - cropped.mask.float()[None, None]
    return bool(F.max_pool2d(background, side, stride=1).min() > 0)
