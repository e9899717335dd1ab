"""Labelled rows of pictures to judge by: the preview of a run, the contact sheet of pairs."""

import unicodedata

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

TILE = 128      # pixels a side of each picture on a sheet
LABEL = 16      # pixels for the line of text above a row


def to_pixels(image: Tensor, grey: bool = False) -> np.ndarray:
    """(3, h, w) in [-1, 1] -> uint8 (h, w, 3), or (h, w) without the tints of a decoder if grey."""
    pixels = ((image.clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).cpu().numpy()
    return np.asarray(Image.fromarray(pixels).convert("L")) if grey else pixels


def in_font(text: str) -> str:
    r"""The text in ASCII, which Pillow's font has: accents dropped, other letters as \u5212."""
    bases = (unicodedata.normalize("NFKD", letter)[0] for letter in text)
    plain = (base if base.isascii() else letter for base, letter in zip(bases, text))
    return "".join(plain).encode("ascii", "backslashreplace").decode()


def sheet(rows: list[tuple[str, list[np.ndarray]]]) -> np.ndarray:
    """Labelled rows of pictures, uint8 (h, w) or (h, w, 3) of any size -> one uint8 picture."""
    columns = max(len(pictures) for _, pictures in rows)
    canvas = Image.new("RGB", (columns * (TILE + 4), len(rows) * (TILE + LABEL + 4)), (32, 32, 32))
    draw = ImageDraw.Draw(canvas)
    for r, (label, pictures) in enumerate(rows):
        top = r * (TILE + LABEL + 4)
        draw.text((2, top + 2), in_font(label), fill=(230, 230, 230))
        for c, picture in enumerate(pictures):
            tile = Image.fromarray(picture).convert("RGB")
            scale = TILE / max(tile.size)
            size = [max(1, round(s * scale)) for s in tile.size]
            tile = tile.resize(size, Image.Resampling.BICUBIC)
            canvas.paste(tile, (c * (TILE + 4), top + LABEL))
    return np.asarray(canvas)


def mask_pixels(mask: Tensor) -> np.ndarray:
    """bool (h, w) -> uint8 0 and 255."""
    return mask.to(torch.uint8).mul(255).numpy()
