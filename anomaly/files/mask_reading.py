"""Masks as people see them: which pixels of the file are the defect.

    in the file                              the defect
    two values, whatever they are            the lighter: 0/1, 0/100, 0/255, 1 bit, 16 bits
    numbers up to 31                         all but the lowest: classes or parts
    more greys, a JPEG's, soft edges         above half of the light level; of a few values a lower
                                             one, too, unless it is an edge, beside lighter pixels
    a palette                                its colours, not its numbers
    colours                                  all but the background: black, or the one grey, or of
                                             two the darker, or the most frequent
    a shape in alpha, of one colour          the opaque half of it
    one value everywhere                     all of it, or nothing if it is 0: refused
    255 beside numbers up to 31              refused: nobody knows whether 255 is void or defect
    other shapes in colour than in alpha     refused
    many values, none on a quarter of the    refused: a photograph
    pixels, or nine tenths of them marked

What is not plain gets a remark with the values, and so do more than 60 % of marked pixels.
"""

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from anomaly.files.photographs import decode, sixteen_bits
from anomaly.files.remarks import remark

LOSSY = ("JPEG", "MPO", "WEBP", "JPEG2000", "AVIF")
NUMBERS = 31        # the largest class number of a mask; above, a value is a grey
FEW = 16            # values among which parts of a mask are looked for; more are soft edges
TINT = 32           # between the channels of a grey picture that was saved with loss
EVEN = 0.25         # of the pixels have the commonest value of a mask, or it is a photograph
MOST = 0.9          # of the pixels of a mask with many values, or it is a photograph
MUCH = 0.6          # of a photograph marked: a remark
NEAR = 8            # greys: what JPEG changes
WHITES = (255, 65535)


def _histogram(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The values that are there, in order, and how often."""
    if values.dtype.kind != "u":
        return np.unique(values, return_counts=True)
    counts = np.zeros(np.iinfo(values.dtype).max + 1, dtype=np.int64)
    for row in range(0, len(values), 256):      # bincount takes eight bytes a pixel
        counts += np.bincount(values[row:row + 256].ravel(), minlength=len(counts))
    levels = np.flatnonzero(counts)
    return levels, counts[levels]


def _parts(values: np.ndarray, levels: np.ndarray, cut: float) -> list[float]:
    """Of the levels up to cut those that are parts of the mask, not soft edges, in order.

    The greys of an edge have lighter pixels beside them.
    """
    ranks = np.searchsorted(levels, values).astype(np.uint8)
    lighter = np.asarray(Image.fromarray(ranks).filter(ImageFilter.MaxFilter(3))) > ranks
    return [float(level) for rank, level in enumerate(levels)
            if rank and level <= cut and lighter[ranks == rank].mean() < 0.5]


def _refuse_void(path: Path, numbers: list[int]) -> None:
    """ValueError for 255 beside class numbers. numbers: in order."""
    if numbers[-1] in WHITES and 1 <= numbers[-2] <= NUMBERS:
        raise ValueError(f"{path}: its values are {', '.join(map(str, numbers))}: is "
                         f"{numbers[-1]} void or the defect? Save it with 0 and 255 alone, 255 on "
                         f"the defect")


def _of_grey(path: Path, values: np.ndarray, lossy: bool) -> np.ndarray:
    """values (h, w) of any number type -> bool (h, w)."""
    levels, counts = _histogram(values)
    if not np.isfinite(levels).all():
        raise ValueError(f"{path}: values that are not finite; save it with 0 and 255 alone")
    low, top = float(levels[0]), float(levels[-1])
    if len(levels) <= 2:
        return values > (low if len(levels) == 2 else 0)
    if not lossy and len(levels) <= NUMBERS + 2:
        _refuse_void(path, levels.tolist())
    if not lossy and top <= NUMBERS and values.dtype.kind in "iu":
        remark(path.parent, "numbers %s: all but %g are the defect, as in %s",
               ", ".join(map(str, levels)), low, path.name)
        return values > low
    light = np.cumsum(counts * (levels > top / 2))
    upper = float(levels[np.searchsorted(light, light[-1] / 2)])    # their median: no overshoot
    parts = _parts(values, levels, top / 2) if len(levels) <= FEW and not lossy else []
    cut = float(levels[levels < parts[0]][-1]) if parts else upper / 2
    mask = values > cut
    if counts.max() < EVEN * values.size or (len(levels) > FEW and mask.mean() > MOST):
        raise ValueError(f"{path}: {len(levels)} values from {low:g} to {top:g}, the commonest on "
                         f"{counts.max() / values.size:.0%} of the pixels, {mask.mean():.0%} of "
                         f"them above {cut:g}: a photograph? Draw white on the defect and black "
                         f"elsewhere")
    remark(path.parent, f"values from {low:g} to {top:g}: above {cut:g} is the defect, as in %s",
           path.name)
    return mask


def _background(colours: list[tuple[int, tuple[int, int, int]]]) -> tuple[int, int, int]:
    """The background of these (count, colour)."""
    names = [colour for _, colour in colours]
    greys = [colour for colour in names if len(set(colour)) == 1]
    if (0, 0, 0) in names:
        return 0, 0, 0
    if len(greys) == 1:
        return greys[0]
    if len(names) == 2:
        return min(names, key=lambda c: 299 * c[0] + 587 * c[1] + 114 * c[2])   # ITU-R 601 luma
    return max(colours)[1]


def _of_colours(path: Path, image: Image.Image, lossy: bool) -> np.ndarray:
    """An RGB image -> bool (h, w)."""
    red, green, blue = image.split()
    tint = max(np.asarray(ImageChops.difference(a, b)).max()
               for a, b in ((red, green), (green, blue), (red, blue)))
    if tint <= (TINT if lossy else 0):
        return _of_grey(path, np.asarray(green), lossy)
    few: Any = None if lossy else image.getcolors(256)
    small = image.resize((min(image.width, 512), min(image.height, 512)), Image.Resampling.NEAREST)
    some: Any = small.getcolors(512 * 512)
    background = _background(few or some)
    apart = ImageChops.difference(image, Image.new("RGB", image.size, background)).split()
    distance = np.asarray(ImageChops.lighter(ImageChops.lighter(apart[0], apart[1]), apart[2]))
    if few is None or len(few) > FEW:
        return _of_grey(path, distance, lossy=True)
    if len(few) > 2:
        remark(path.parent, "%d colours: all but %s are the defect, as in %s", len(few), background,
               path.name)
    return distance > 0


def _of_alpha(path: Path, image: Image.Image, lossy: bool) -> np.ndarray:
    """An RGBA image -> bool (h, w)."""
    alpha, colours = image.getchannel("A"), image.convert("RGB")
    opaque = _of_grey(path, np.asarray(alpha), lossy=True)
    if opaque.all() or not opaque.any():
        return _of_colours(path, colours, lossy)
    stencil = Image.fromarray(opaque).convert("L")
    # What cannot be seen counts as background.
    seen = Image.composite(colours, Image.new("RGB", image.size), stencil)
    visible = np.asarray(colours)[opaque]
    if (visible == visible[0]).all():
        return opaque
    shape = _of_colours(path, seen, lossy)
    if not np.array_equal(shape, opaque):
        raise ValueError(f"{path}: {shape.sum()} pixels by its colours, {opaque.sum()} by its "
                         f"alpha channel: which is the defect? Save it without alpha, white on the "
                         f"defect")
    return opaque


def _lossless_webp(path: Path) -> bool:
    with open(path, "rb") as file:
        return file.read(16)[12:] == b"VP8L"


def shows(path: Path, photograph: np.ndarray) -> bool:
    """True if the file is a copy of the photograph, uint8 (h, w[, 3]), maybe drawn upon.

    Looked at where the photograph is not of its commonest grey: the background of a mask may be it.
    """
    image = decode(path, "mask")
    if image.mode in ("I", "F"):
        return False
    values = sixteen_bits(image)
    grey = np.asarray(image.convert("RGBA").convert("L")) if values is None else values // 257
    own = np.asarray(Image.fromarray(photograph).convert("L"))
    if grey.shape != own.shape or len(_histogram(grey)[0]) <= FEW:
        return False
    levels, counts = _histogram(own)
    rest = np.abs(own.astype(np.int16) - levels[counts.argmax()]) > NEAR
    near = np.abs(own.astype(np.int16) - grey) <= NEAR
    return bool(rest.mean() > 0.01 and near[rest].mean() > 0.5)


def read_mask(path: Path) -> np.ndarray:
    """bool (h, w), True on the defect, never empty. The rules are at the head of this file.

    Raises FileNotFoundError or ValueError, which names the values that were found.
    """
    image = decode(path, "mask")
    lossy = image.format in LOSSY and not _lossless_webp(path)
    if image.mode == "P":
        used, palette = _histogram(np.asarray(image))[0], np.zeros(768, dtype=np.uint8)
        entries = image.getpalette("RGB") or []
        palette[:len(entries)] = entries
        grey = (palette.reshape(256, 3)[used] == used[:, None]).all()
        if len(used) > 2 and not grey and "transparency" not in image.info:
            _refuse_void(path, used.tolist())
    if (values := sixteen_bits(image)) is not None:
        mask = _of_grey(path, values, lossy)
    elif image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        mask = _of_alpha(path, image.convert("RGBA"), lossy)
    elif image.mode in ("1", "L", "I", "F"):
        mask = _of_grey(path, np.asarray(image.convert("L") if image.mode == "1" else image), lossy)
    else:
        mask = _of_colours(path, image.convert("RGB"), lossy)
    marked = float(mask.mean())
    if marked == 0:
        raise ValueError(f"{path}: no defect in it, every pixel is background (0); draw the mask "
                         f"or remove it")
    if marked > MUCH:
        remark(path, "%.0f %% of the photograph is marked as the defect", 100 * marked)
    return mask
