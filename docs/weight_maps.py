"""Draw docs/weight_maps.png: what each re-weighting makes of a half-drawn defect.

    python docs/weight_maps.py

The difference d is made by hand: an irregular defect that has been drawn on the left, is faint in the
middle and missing on the right. No checkpoint is involved; the maps come from anomaly/reweight.py.
"""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw

from anomaly.reweight import GAIN, TAU, constant, difference, literal, paper, released

SIDE, SCALE = 32, 6     # latent cells, pixels each


def half_drawn() -> tuple[torch.Tensor, torch.Tensor]:
    """d and m (1, 32, 32)."""
    y, x = np.mgrid[:SIDE, :SIDE]
    angle = np.arctan2(y - 16, x - 16)
    m = np.hypot(y - 16, x - 16) < 9 + 3 * np.sin(3 * angle) + 1.5 * np.cos(5 * angle)
    drawn = np.clip(1.1 - x / 22, 0.02, 1.0) * (1 + 0.15 * np.sin(y) * np.cos(1.7 * x))
    x0_hat = torch.from_numpy(drawn * m).float()[None, None].expand(1, 4, -1, -1)
    m = torch.from_numpy(m).float()[None]
    return difference(x0_hat, torch.zeros_like(x0_hat), m, torch.full((4, 3), 0.2)), m


def picture(values: torch.Tensor, low: float, high: float) -> Image.Image:
    """(1, s, s) -> colours: black below, orange at half, white above."""
    v = ((values[0] - low) / (high - low)).clamp(0, 1)
    rgb = torch.stack([(2 * v).clamp(0, 1), v, (2 * v - 1).clamp(0, 1)], dim=-1)
    tile = Image.fromarray((rgb * 255).byte().numpy())
    return tile.resize((SIDE * SCALE, SIDE * SCALE), Image.Resampling.NEAREST)


def main() -> None:
    """Write the picture beside this file."""
    d, m = half_drawn()
    maps = [("difference d", d, 0.0, float(d.max()))]
    for name, w in ((f"paper: G {GAIN:g}, tau {TAU:g}", paper(d, m)), ("literal", literal(d, m)),
                    ("released", released(d, m)), (f"constant {GAIN:g}", constant(d, m))):
        inside = w[m > 0]
        maps.append((f"{name}  [{inside.min():.2g}, {inside.max():.3g}]", w, 0.0, 3.0))
    width = SIDE * SCALE + 8
    canvas = Image.new("RGB", (width * len(maps), SIDE * SCALE + 20), (32, 32, 32))
    for i, (label, values, low, high) in enumerate(maps):
        canvas.paste(picture(values, low, high), (i * width, 20))
        ImageDraw.Draw(canvas).text((i * width + 2, 4), label, fill=(230, 230, 230))
    path = Path(__file__).with_suffix(".png")
    canvas.save(path)
    print(path)


if __name__ == "__main__":
    main()
