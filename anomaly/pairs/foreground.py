"""Where the object is: on it a mask may lie, beside it none.

    anywhere            the product fills the photograph: leather, wood
    objects_found       an object on a plain background, if the photographs agree that it is one
    part_masks(DIR)     masks of the user's own, each of the photograph of its name

Each takes the photographs and gives Objects: a function of a photograph. How one is found, without
a network: a smooth surface is fitted to the colours of the photograph's border, and what is further
from it than the border itself is the object, if that is one region with a clear edge and hardly any
of it on the border. A texture, a vignette or clutter fails one of these, and counts as no object.
"""

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from anomaly.dataset import Example, read_example_mask
from anomaly.files.pairing import mask_files_in, masks_of
from anomaly.files.photographs import read_photograph
from anomaly.files.remarks import remark
from anomaly.pairs.normals import Normal
from anomaly.progress import Report, each

SIDE = 256              # of the reduced photograph, its longer side in pixels
LOOKED_AT = 32          # photographs, evenly spread, that decide
AGREE = 0.9             # of them that must show an object
RING = 0.025            # width of the border, in shorter sides
FAINT = 8.0             # levels of 255 that JPEG, dust and soft shadows differ from a background
CONTRAST = 0.2          # of the object's own distance: what is nearer to the background is shadow
AREA = (0.04, 0.9)      # of the photograph that is the object
TOUCHING = 0.1          # of the border may be the object; its spread is that of the rest
CLUTTER = 0.1           # of its area that other regions may have together
CLEAR = 0.85            # of its area that is left at twice the threshold: a vignette loses more
ALIKE = 4.0             # times the median area, or a part of it: the objects of one set
BLUR = 2                # of an edge, in reduced pixels to either side
HOLE = 0.005            # of the photograph: smaller holes are spots on the object
CACHED = 256            # reduced objects that are kept, 64 KiB each

# bool (h, w), True on the object of a photograph, nowhere if none was found in it; None: a mask may
# lie anywhere.
Objects = Callable[[Normal], np.ndarray | None]
Foreground = Callable[[list[Normal], Report], Objects]


def regions(grid: np.ndarray) -> np.ndarray:
    """The 4-connected regions of a bool grid, numbered from 1 in the order of first pixels."""
    starts = grid & ~np.pad(grid, ((0, 0), (1, 0)))[:, :-1]
    run = np.cumsum(starts).reshape(grid.shape) * grid      # the runs of the rows, numbered
    meet = grid[1:] & grid[:-1]
    pairs = np.unique(run[:-1][meet] * (run.size + 1) + run[1:][meet])
    above, below = np.divmod(pairs, run.size + 1)
    first = np.arange(run.max() + 1)                        # the first run known to be connected
    while (first[above] != first[below]).any():
        lower = np.minimum(first[above], first[below])
        np.minimum.at(first, first[above], lower)
        np.minimum.at(first, first[below], lower)
        first = first[first]
    return np.unique(first, return_inverse=True)[1][run]


def _small(photograph: np.ndarray) -> np.ndarray:
    """uint8 (h, w) or (h, w, 3) -> float (h', w', 3), the longer side SIDE or less."""
    image = Image.fromarray(photograph)
    scale = min(1.0, SIDE / max(image.size))
    size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
    return np.asarray(image.resize(size, Image.Resampling.BOX).convert("RGB")).astype(float)


def _border(height: int, width: int) -> np.ndarray:
    """bool (h, w): the ring along the edges."""
    ring, n = np.ones((height, width), dtype=bool), max(1, round(RING * min(height, width)))
    ring[n:-n, n:-n] = False
    return ring


def distances(small: np.ndarray) -> tuple[np.ndarray, float]:
    """small (h, w, 3) -> how far each pixel is from the background (h, w), and the border's spread.

    Both in levels. The background: of each channel a quadratic surface, so that uneven light is
    part of it, fitted to the border without what lies far from the rest of the border.
    """
    height, width = small.shape[:2]
    y, x = np.mgrid[-1:1:height * 1j, -1:1:width * 1j]
    terms = np.stack([np.ones_like(x), x, y, x * y, x ** 2, y ** 2], axis=-1)
    ring = _border(height, width)
    kept = ring
    for _ in range(4):
        surface = terms @ np.linalg.lstsq(terms[kept], small[kept], rcond=None)[0]
        distance = np.abs(small - surface).max(axis=-1)
        kept = ring & (distance <= 3 * np.median(distance[ring]) + 1)
    return distance, float(np.quantile(distance[ring], 1 - TOUCHING))


def _largest(grid: np.ndarray) -> tuple[np.ndarray, int]:
    """The largest region of a bool grid, and how many pixels the others have."""
    numbers = regions(grid)
    sizes = np.bincount(numbers.ravel(), minlength=2)[1:]
    return numbers == 1 + sizes.argmax(), int(sizes.sum() - sizes.max())


def _filled(grid: np.ndarray, distance: np.ndarray, threshold: float) -> np.ndarray:
    """The grid without its holes, but for large ones that look like the background."""
    holes = regions(np.pad(~grid, 1, constant_values=True))[1:-1, 1:-1]
    sizes = np.bincount(holes.ravel())
    sizes[:2] = 0       # the grid itself, and outside: the padding's region is the first
    kept = [n for n in np.flatnonzero(sizes >= HOLE * grid.size)
            if np.median(distance[holes == n]) <= threshold]
    return grid | ((sizes > 0) & ~np.isin(np.arange(len(sizes)), kept))[holes]


def _to_the_edge(found: np.ndarray, distance: np.ndarray) -> np.ndarray:
    """The object without the blur around it: an edge is where the distance has risen by half."""
    def highest(grid: np.ndarray) -> np.ndarray:
        return F.max_pool2d(torch.from_numpy(grid)[None], 2 * BLUR + 1, 1, BLUR)[0].numpy()
    rim = highest(1.0 - found) > 0
    middle = (highest(distance) - highest(-distance)) / 2
    return found & ~(rim & (distance < middle))


def object_in(distance: np.ndarray, spread: float) -> np.ndarray | None:
    """bool (h, w): the object by the distances; None if it is not plainly one."""
    threshold = max(FAINT, 2 * spread)
    if not (distance > threshold).any():
        return None
    threshold = max(threshold, CONTRAST * float(np.median(distance[distance > threshold])))
    found, others = _largest(distance > threshold)
    found = _filled(found, distance, threshold)
    clear = _filled(_largest(distance > 2 * threshold)[0], distance, threshold)
    area = found.sum()
    plain = AREA[0] <= found.mean() <= AREA[1] and others <= CLUTTER * area \
        and (found & clear).sum() >= CLEAR * area
    return _to_the_edge(found, distance) if plain else None


def no_object(normal: Normal) -> None:
    """Objects where none is: a mask may lie anywhere."""


def anywhere(normals: list[Normal], report: Report) -> Objects:
    """No object is looked for."""
    return no_object


def objects_found(normals: list[Normal], report: Report) -> Objects:
    """The object of each photograph, if those looked at agree that they show one; else no_object.

    What was found is said in a line.
    """
    some = np.linspace(0, len(normals) - 1, min(len(normals), LOOKED_AT)).round().astype(int)

    @lru_cache(CACHED)
    def reduced(path: Path) -> np.ndarray:
        distance, spread = distances(_small(read_photograph(path)))
        there = object_in(distance, spread)
        return np.zeros(distance.shape, dtype=bool) if there is None else there

    areas = np.array([reduced(normals[i].path).mean()
                      for i in each(some, "looking for an object", len(some), report)])
    usual = np.median(areas)
    alike = (areas > 0) & (areas >= usual / ALIKE) & (areas <= usual * ALIKE)
    if alike.mean() < AGREE:
        remark(normals[0].path.parent, "--foreground auto: no object on a plain background was "
               "found; masks may lie anywhere")
        return no_object
    remark(normals[0].path.parent, "--foreground auto: an object, which covers %.0f %% of a "
           "photograph; masks stay on it", 100 * usual)

    def objects(normal: Normal) -> np.ndarray:
        """What was found at the reduced size, at the photograph's own."""
        grey = Image.fromarray(reduced(normal.path).astype(np.uint8) * 255)
        return np.asarray(grey.resize((normal.width, normal.height),
                                      Image.Resampling.BILINEAR)) >= 128
    return objects


def part_masks(folder: Path) -> Foreground:
    """The object of each photograph as the masks of its name in a folder have it, united."""
    def given(normals: list[Normal], report: Report) -> Objects:
        """Raises ValueError for a photograph without a mask, or with one of another size."""
        named, _ = masks_of([normal.path for normal in normals], mask_files_in(folder))

        def objects(normal: Normal) -> np.ndarray:
            """The masks of the photograph's name, united."""
            if normal.path not in named:
                raise ValueError(f"{normal.path}: no mask of that name in {folder}; --foreground "
                                 f"takes auto, none, or a folder with {normal.path.stem}.png, "
                                 f"white on the object, for every photograph of --normals")
            files = tuple(file for mask in named[normal.path] for file in mask.files)
            there = read_example_mask(Example(normal.path, files))
            if there.shape != (normal.height, normal.width):
                raise ValueError(f"{files[0]}: {there.shape[1]}x{there.shape[0]} pixels, but "
                                 f"{normal.path.name}, the photograph of its name, has "
                                 f"{normal.width}x{normal.height}; draw it over that photograph")
            return there
        for normal in each(normals, "reading the objects", len(normals), report):
            objects(normal)
        return lru_cache(4)(objects)    # of full size
    return given
