"""Photographs as people see them, and as their files have them: mode and depth are kept.

    grey, RGB, either with alpha; 8 bits, or 16 for grey: kept
    10, 12 or 14 bits of grey in 16: kept; white is the level that holds the folder's largest value
    palette, CMYK, 1 bit, 16 bits a colour: written as RGB (1 bit: grey) of 8 bits, and said
    turned by EXIF, several pages: as shown, page 1, and said
"""

import errno
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from anomaly.files.folders import FORMATS, readable
from anomaly.files.pairing import SUFFIX
from anomaly.files.remarks import remark

MEGAPIXELS = 500        # of one photograph: RGB of this size takes 1.5 GB, and is held thrice
# Of pixels beyond MANY a byte of the file holds at most so many: four grey levels, all alike and
# deflated, are 4,128. Of one bit a row takes a bit at least (CCITT group 4).
MANY, EMPTIEST = 64_000_000, 5_000
OPENED = [name for name in FORMATS if name in Image.OPEN]       # MPO opens as JPEG
DEPTHS = (255, 1023, 4095, 16383, 65535)        # white at 8, 10, 12, 14 and 16 bits
# EXIF orientation -> what shows the picture upright.
UPRIGHT = dict(zip(range(2, 9), (
    Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.ROTATE_180, Image.Transpose.FLIP_TOP_BOTTOM,
    Image.Transpose.TRANSPOSE, Image.Transpose.ROTATE_270, Image.Transpose.TRANSVERSE,
    Image.Transpose.ROTATE_90)))
KEPT = ("L", "LA", "RGB", "RGBA")


@dataclass(frozen=True)
class Photograph:
    """A photograph with the values of its file."""

    values: np.ndarray      # uint8 (h, w) or (h, w, 2 to 4), an even last one alpha; uint16 (h, w)
    white: int              # the value of white

    @property
    def colours(self) -> np.ndarray:
        """The values without alpha: (h, w) or (h, w, 3). A view, not a copy."""
        channels = self.values.shape[2:]
        return self.values[..., 0] if channels == (2,) else self.values[..., :3] if channels \
            else self.values

    @property
    def seen(self) -> np.ndarray:
        """What models and sheets see: the colours as uint8."""
        if self.values.dtype == np.uint8:
            return self.colours
        levels = np.round(np.arange(self.white + 1) * (255 / self.white)).astype(np.uint8)
        return levels[np.minimum(self.values, self.white)]


class Bounded(io.BufferedReader):
    """A file that is asked for no more bytes than it has, whatever a header says.

    A reader takes memory for all that it is asked for.
    """

    def read(self, size: int | None = -1, /) -> bytes:
        """Up to size bytes, or all that is left."""
        there = os.fstat(self.fileno()).st_size
        return super().read(size if size is None else min(size, there))


@contextmanager
def _silent() -> Iterator[None]:
    """libtiff writes what it stumbles on to the process's stderr; Pillow raises it, too."""
    kept = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


@contextmanager
def _opened(path: Path, kind: str) -> Iterator[ImageFile.ImageFile]:
    """The file, not decoded yet; whatever the library stumbles on becomes a line with its name."""
    limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
    remedy = "replace or remove it"
    try:
        with catch_warnings():
            simplefilter("ignore")
            # Opened here: of a path Pillow maps the file, and turns a mapped TIFF wrongly.
            with (Bounded(open(path, "rb", buffering=0)) as raw,
                  Image.open(raw, formats=OPENED) as file):
                pixels = file.width * file.height
                if pixels > MEGAPIXELS * 1_000_000:
                    remedy = "cut it into pieces"
                    raise ValueError(f"{file.width}x{file.height} pixels are more than "
                                     f"{MEGAPIXELS} megapixels")
                least = file.height / 8 if file.mode == "1" else pixels / EMPTIEST
                if pixels > MANY and path.stat().st_size < least:   # before they are allocated
                    raise ValueError(f"too few for {file.width}x{file.height} pixels")
                with _silent() if file.format == "TIFF" else nullcontext():
                    yield file
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such {kind}") from None
    except MemoryError:
        raise
    except Exception as err:        # a decoder of damaged bytes raises anything
        if isinstance(err, OSError) and err.errno not in (None, errno.EINVAL):
            raise       # the disk's fault, or a missing right; EINVAL: sought before the start
        size = path.stat().st_size
        why = "no image" if isinstance(err, UnidentifiedImageError) else " ".join(str(err).split())
        with open(path, "rb") as again:
            heic = again.read(12)[4:] in (b"ftypheic", b"ftypheix", b"ftypmif1")
        found = "HEIC under another name" if heic else f"{size} bytes: {why}"
        raise ValueError(f"{path}: cannot be read as a {kind} ({found}); "
                         f"{'convert it to PNG or JPEG' if heic else remedy}") from None
    finally:
        Image.MAX_IMAGE_PIXELS = limit


def _orientation(file: Image.Image) -> int:
    """The EXIF tag, 1 (upright) if it is missing or damaged."""
    try:
        return int(file.getexif().get(0x0112, 1))
    except Exception:
        return 1


def decode(path: Path, kind: str) -> Image.Image:
    """Page 1 of the file, upright, its format kept; ValueError for what is not a whole image.

    kind: what the messages call it.
    """
    with _opened(path, kind) as file:
        pages = 1 if file.format == "MPO" else getattr(file, "n_frames", 1)
        raw = str([tile.args for tile in file.tile])        # how the file's bytes are packed
        wide = (";16" in raw or "65535" in raw) and not file.mode.startswith("I")
        itself = _orientation(file) if file.format == "TIFF" else 1     # a TIFF turns as it loads
        file.load()
        turned = _orientation(file)     # after load: of a PNG it loads, and hides its damage
        image: Image.Image = file
        if turned in UPRIGHT:
            image = file.transpose(UPRIGHT[turned])
            image.format = file.format
    if pages > 1:
        remark(path, "page 1 of %d is used", pages)
    if turned in UPRIGHT or itself in UPRIGHT:
        remark(path.parent, "turned as the EXIF tag says, such as %s", path.name)
    if wide:
        remark(path.parent, "16 bits a colour are read as 8, as of %s", path.name)
    return image


def size_of(path: Path) -> tuple[int, int]:
    """Height and width of a photograph as shown; only its header is read."""
    with _opened(path, "photograph") as file:
        # A TIFF has swapped its sides already.
        swapped = _orientation(file) in (5, 6, 7, 8) and file.format != "TIFF"
        return file.size if swapped else (file.height, file.width)


def sixteen_bits(image: Image.Image) -> np.ndarray | None:
    """The uint16 values of 16-bit grey of either byte order; None for other modes."""
    if not image.mode.startswith("I;16"):
        return None
    return np.asarray(image).astype(np.uint16, copy=False)


@cache
def _largest(folder: Path) -> int:
    """The largest value of a folder's 16-bit photographs, as far as its bits decide; no masks."""
    largest = 0
    for path in sorted(path for path in folder.iterdir() if readable(path) and path.is_file()
                       and not SUFFIX.fullmatch(path.stem)):
        try:
            with _opened(path, "photograph") as file:
                if (values := sixteen_bits(file)) is not None:
                    largest = max(largest, int(values.max()))
        except (ValueError, OSError):       # said when its turn comes
            continue
        if largest > DEPTHS[-2]:
            break
    return largest


def white_of(folder: Path, values: np.ndarray | None = None) -> int:
    """White of a folder's 16-bit photographs, and of values that may lie elsewhere."""
    largest = max(_largest(folder), 0 if values is None else int(values.max()))
    return next(white for white in DEPTHS if white >= largest)


def open_photograph(path: Path) -> Photograph:
    """The photograph as its file has it; ValueError if it cannot be read."""
    image = decode(path, "photograph")
    if image.mode == "I":
        values = np.asarray(image)
        if values.min() < 0 or values.max() > DEPTHS[-1]:
            raise ValueError(f"{path}: 32-bit values from {values.min()} to {values.max()}; "
                             f"expected 8 or 16 bits a channel; convert it to PNG")
        values = values.astype(np.uint16)
    elif image.mode == "F":
        raise ValueError(f"{path}: floating-point pixels; expected 8 or 16 bits a channel; "
                         f"convert it to PNG")
    elif (sixteen := sixteen_bits(image)) is not None:
        values = sixteen
    else:
        return Photograph(np.asarray(_plain(image, path)), 255)
    if (white := white_of(path.parent, values)) < DEPTHS[-1]:
        remark(path.parent, "by the largest of its 16-bit values white is %d", white)
    return Photograph(values, white)


def _plain(image: Image.Image, path: Path) -> Image.Image:
    """The image in a mode that can be kept."""
    if image.mode in KEPT and "transparency" not in image.info:
        return image
    alpha = image.mode in ("PA", "La", "RGBa") or "transparency" in image.info
    grey = image.mode in ("1", "L", "La")
    mode = ("LA" if alpha else "L") if grey else ("RGBA" if alpha else "RGB")
    if "transparency" in image.info:
        remark(path.parent, "a transparent colour is written as alpha, as of %s", path.name)
    if image.mode not in ("La", "RGBa", "RGBX", *KEPT):
        remark(path.parent, "%s is written as %s, as of %s",
               {"P": "a palette", "PA": "a palette", "1": "one bit"}.get(image.mode, image.mode),
               mode, path.name)
    return image.convert("RGBA").convert(mode) if alpha else image.convert(mode)


def read_photograph(path: Path) -> np.ndarray:
    """What the models see of a photograph: uint8, (h, w) for grey files, (h, w, 3) for colour."""
    return open_photograph(path).seen
