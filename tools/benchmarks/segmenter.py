"""A small segmenter for benchmarks: where is the defect in a picture?"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly.output.console import Progress
from anomaly.output.synthetic.pictures import draw_picture
from pretraining.autoencoder import to_float

SIDE, STEPS, BATCH, PICTURES = 64, 2400, 32, 8000


class Segmenter(nn.Module):
    """(b, 3, h, w) in [-1, 1] -> logits (b, h, w); h and w are multiples of 8."""

    def __init__(self) -> None:
        super().__init__()
        def layer(c_in: int, c_out: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU())
        self.down = nn.ModuleList([layer(3, 16), layer(16, 32), layer(32, 64), layer(64, 64)])
        self.up = nn.ModuleList([layer(128, 32), layer(64, 16), layer(32, 16)])
        self.out = nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for n, layer in enumerate(self.down):
            x = layer(F.avg_pool2d(x, 2) if n else x)
            skips.append(x)
        skips.pop()
        for layer in self.up:
            x = layer(torch.cat([F.interpolate(x, scale_factor=2.0), skips.pop()], dim=1))
        return self.out(x)[:, 0]


def _pictures(seed: int, count: int) -> tuple[Tensor, Tensor, list[str]]:
    """Drawn photographs (n, 3, 64, 64), masks (n, 64, 64) and captions; captioned mask pictures are left out."""
    drawn = [p for p in (draw_picture(seed, i, SIDE) for i in range(count)) if "photo of mask" not in p.caption]
    return (to_float(np.stack([p.image for p in drawn])),
            torch.from_numpy(np.stack([p.mask for p in drawn])).float(), [p.caption for p in drawn])


def fit(seed: int, steps: int, batch: Callable[[], tuple[Tensor, Tensor]], name: str) -> Segmenter:
    """A segmenter from batches of pictures (b, 3, h, w) in [-1, 1] and masks (b, h, w) of 0 and 1.

    batch() draws with torch's generator, which is seeded here.
    """
    torch.manual_seed(seed)
    net = Segmenter()
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 4e-3, steps)
    with Progress(name, steps) as progress:
        for _ in range(steps):
            images, masks = batch()
            logits = net(images + 0.05 * torch.randn(len(images), 3, 1, 1))
            share = torch.sigmoid(logits)
            dice = 1 - (2 * (share * masks).sum() + 1) / ((share + masks).sum() + 1)
            loss = F.binary_cross_entropy_with_logits(logits, masks) + dice
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            progress.step(f"loss {float(loss.detach()):.3f}")
    return net.eval()


def train_segmenter(seed: int) -> Segmenter:
    """Learn from drawn pictures that no model was trained on."""
    images, masks, _ = _pictures(seed, PICTURES)

    def batch() -> tuple[Tensor, Tensor]:
        i = torch.randint(len(images), (BATCH,))
        return images[i], masks[i]

    return fit(seed, STEPS, batch, "training the segmenter")


@torch.no_grad()
def quadrants(net: Segmenter, images: Tensor) -> list[str]:
    """"top left" and the like of the defect found in each picture (b, 3, h, w); "" where none is found."""
    found = torch.sigmoid(net(F.interpolate(images, (SIDE, SIDE), mode="area")))
    places = []
    for p in found:
        weight = p * (p > 0.5)
        if float(weight.sum()) < 1:
            places.append("")
            continue
        rows, columns = (float((weight.sum(dim=d) * torch.arange(SIDE)).sum() / weight.sum()) for d in (1, 0))
        places.append(f"{'top' if rows < (SIDE - 1) / 2 else 'bottom'} "
                      f"{'left' if columns < (SIDE - 1) / 2 else 'right'}")
    return places


def accuracy(net: Segmenter, seed: int, count: int = 600) -> float:
    """Share of unseen drawn pictures captioned with a corner in which the defect is found in that corner."""
    images, _, captions = _pictures(seed, count)
    corners = [(i, " ".join(words[-2:])) for i, caption in enumerate(captions)
               if (words := caption.split())[-2:-1] in (["top"], ["bottom"])]
    places = quadrants(net, images[[i for i, _ in corners]])
    return float(np.mean([place == corner for place, (_, corner) in zip(places, corners)]))
