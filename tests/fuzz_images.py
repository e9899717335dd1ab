"""A subject of fuzz.py: pictures of every format and mode that is read, as photograph and mask."""

import random
import struct
import zlib
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
from fuzz import REFUSALS, Place, bytes_changed, cut
from PIL import Image

from anomaly.files.mask_reading import read_mask, shows
from anomaly.files.photographs import open_photograph, size_of
from anomaly.pairs.normals import find_normals

W, H = 37, 23
START = b"\x89PNG\r\n\x1a\n"
ADAM7 = [(0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2)]      # of the PNG specification: x, y, and the steps across and down
MODES = ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "I;16", "I", "F"]
KINDS = "PNG JPEG TIFF BMP WEBP GIF PPM JPEG2000 TGA PCX SGI AVIF".split()
WAYS = {    # name -> format, mode, options
    "interlaced.gif": ("GIF", "P", {"interlace": 1}), "rle.tga": ("TGA", "RGB", {"rle": True}),
    "progressive.jpg": ("JPEG", "RGB", {"progressive": True}),
    "lossless.webp": ("WEBP", "RGBA", {"lossless": True}),
    **{f"{name}.tif": ("TIFF", mode, {"compression": name}) for mode, name in (
        ("RGB", "tiff_lzw"), ("L", "tiff_adobe_deflate"), ("1", "group4"), ("RGB", "jpeg"),
        ("L", "packbits"), ("F", "lzma"))},
    **{f"pages.{kind.lower()}": (kind, "L", {"save_all": True})
       for kind in ("TIFF", "GIF", "WEBP", "PNG", "AVIF")}}


def png(*chunks: bytes) -> bytes:
    """A PNG of chunks without length and checksum."""
    return START + b"".join(struct.pack(">I", len(chunk) - 4) + chunk
                            + struct.pack(">I", zlib.crc32(chunk)) for chunk in chunks)


def png_damaged(whole: bytes, rng: random.Random) -> bytes:
    """A PNG whose chunks are damaged, swapped or doubled, each with a right checksum."""
    chunks, at = [], len(START)
    while at < len(whole):
        length = int.from_bytes(whole[at:at + 4], "big")
        chunks.append(whole[at + 4:at + 8 + length])
        at += 12 + length
    i, j = rng.randrange(len(chunks)), rng.randrange(len(chunks))
    if rng.random() < 0.3:
        chunks[i], chunks[j:j] = chunks[j], rng.choice([[], chunks[i:i + 1]])
    elif chunks[i][:4] == b"IDAT" and rng.random() < 0.5:
        damage = rng.choice([bytes_changed, cut])
        chunks[i] = b"IDAT" + zlib.compress(damage(zlib.decompress(chunks[i][4:]), rng))
    else:
        chunks[i] = chunks[i][:4] + bytes_changed(chunks[i][4:], rng)
    return png(*chunks)


def resized(whole: bytes, rng: random.Random) -> bytes:
    """The sides that the header states, as numbers or text, replaced by odd ones."""
    odd = rng.choice([0, 1, 255, 20_000, 20_000, 22_000, 65_535, 2 ** 24 - 1, 2 ** 31 - 1])
    for side in rng.choice([(W, H), (W, H), (W,), (H,)]):
        for size, order, less in product((4, 3, 2), ("big", "little"), (0, 1)):
            found = (side - less).to_bytes(size, order)
            if found in whole:
                new = max(min(odd, 256 ** size - 1) - less, 0).to_bytes(size, order)
                whole = whole.replace(found, new, 1)
                break
        else:
            whole = whole.replace(str(side).encode(), str(odd).encode(), 1)
    chunk = whole[12:29]        # of a PNG the header, behind its length
    return whole[:29] + struct.pack(">I", zlib.crc32(chunk)) + whole[33:] \
        if whole.startswith(START) else whole


def damaged(whole: bytes, rng: random.Random) -> bytes:
    """A picture with other bytes, cut short, or of another size by its header."""
    how = [bytes_changed, bytes_changed, cut, resized, resized]
    return rng.choice([*how, *3 * [png_damaged]] if whole.startswith(START) else how)(whole, rng)


def pictures(folder: Path, w: int = W, h: int = H) -> list[Path]:
    """One of every format and mode, w by h pixels."""
    folder.mkdir()
    values = np.zeros((h, w), np.uint8)
    values[h // 4:h // 2 + 1, w // 4:w // 2 + 1], exif = 255, Image.Exif()
    exif[0x0112] = 6
    ways = {**WAYS, **{f"{mode.replace(';', '')}.{kind.lower()}": (
        kind, mode, {"exif": exif} if kind in ("PNG", "JPEG", "WEBP") else {})
        for kind, mode in product(KINDS, MODES)}}
    base = Image.fromarray(values)
    for name, (kind, mode, options) in ways.items():
        image = base.convert("I").convert(mode) if mode == "I;16" else base.convert(mode)
        pages = {"append_images": 2 * [image.rotate(180)]} if "save_all" in options else {}
        try:
            image.save(folder / name, kind, **options, **pages)
        except (OSError, ValueError, KeyError):     # a mode that the format has not
            (folder / name).unlink(missing_ok=True)
    Image.fromarray(values.astype(">u2") * 257).save(folder / "big.tif")
    (folder / "deep.pgm").write_bytes(b"P5 %d %d 65535\n" % (w, h) + b"\1\1" * w * h)
    rows = b"".join(b"\0" + row.tobytes() for x, y, across, down in ADAM7
                    for row in values[y::down, x::across] if row.size)
    header = struct.pack(">IIBBBBB", w, h, 8, 0, 0, 0, 1)
    (folder / "interlaced.png").write_bytes(
        png(b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"))
    return sorted(folder.iterdir())


def read(path: Path) -> None:
    """In every way; the first refusal is raised again if no way could read it."""
    refusal, good = None, {}
    for way in (size_of, open_photograph, read_mask, find_normals,
                partial(shows, photograph=np.arange(W * H, dtype=np.uint8).reshape(H, W))):
        try:
            good[way] = way(path)
        except REFUSALS as err:
            refusal = err
            assert str(err).startswith(str(path)) and str(err).isprintable(), repr(err)[:500]
    for way, shape in ((open_photograph, lambda found: found.values.shape[:2]),
                       (read_mask, np.shape)):
        assert way not in good or shape(good[way]) == good[size_of]
    if open_photograph not in good and read_mask not in good:
        raise refusal


def places(root: Path) -> list[Place]:
    """Each picture under its name."""
    return [Place(path, damaged, partial(read, path), path) for path in pictures(root / "pictures")]
