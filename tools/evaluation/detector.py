"""The detector that all ways to train are compared by: a U-Net of 87,000 weights.

It learns from windows, half of them round a defect, half of photographs without one, and looks at
whole photographs. It says for each cell which defect it shows, or none.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from evaluation.labelled import Labelled

WINDOW, BATCH = 64, 16          # cells of a side of a window; windows a step
RATE = 2e-3
CHANNELS = 16, 32, 64
ANGLE, SCALE, GAIN, BIAS = 10.0, 0.2, 0.2, 0.1      # degrees, log, factor and level, either way
FOCUS = 2.0                     # of the focal loss (Lin et al. 2017)


def convolution(c_in: int, c_out: int) -> nn.Sequential:
    """(b, c_in, h, w) -> (b, c_out, h, w)."""
    return nn.Sequential(nn.Conv2d(c_in, c_out, 3, padding=1), nn.GroupNorm(8, c_out), nn.SiLU())


class Detector(nn.Module):
    """(b, 3, h, w) in [-1, 1] -> (b, 1 + defects, h, w), logits of none and of each defect."""

    def __init__(self, defects: int):
        super().__init__()
        steps = list(zip(CHANNELS, CHANNELS[1:]))
        self.down = nn.ModuleList(nn.Sequential(convolution(a, b), convolution(b, b))
                                  for a, b in zip((3, *CHANNELS), CHANNELS))
        self.narrow = nn.ModuleList(nn.Conv2d(b, a, 1) for a, b in steps)
        self.up = nn.ModuleList(convolution(a, a) for a, _ in steps)
        self.out = nn.Conv2d(CHANNELS[0], 1 + defects, 1)

    def forward(self, x: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for i, down in enumerate(self.down):
            x = down(x if i == 0 else F.max_pool2d(x, 2))
            kept.append(x)
        for narrow, up, beside in list(zip(self.narrow, self.up, kept))[::-1]:
            x = up(beside + F.interpolate(narrow(x), size=beside.shape[2:]))
        return self.out(x)


def to_input(photograph: Labelled) -> Tensor:
    """(4, h, w): colours in [-1, 1] and the mask, 1 in every cell that it touches."""
    colours = torch.from_numpy(photograph.pixels.copy()).permute(2, 0, 1).float() / 127.5 - 1
    return torch.cat([colours, torch.from_numpy((photograph.marked > 0).astype(np.float32))[None]])


def window(seen: Tensor, flip: bool, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Colours (3, s, s) and mask (s, s) of a window round a marked cell, or anywhere if none is.

    Turned, scaled, mirrored, lit a little otherwise; beyond its edges a photograph is mirrored.
    """
    height, width = seen.shape[1:]
    centre = rng.uniform(0, 1, 2) * (height, width)
    if len(places := np.argwhere(seen[3].numpy() > 0)):
        centre = places[rng.integers(len(places))] + rng.uniform(-0.4, 0.4, 2) * WINDOW
    angle, scale = np.radians(rng.uniform(-ANGLE, ANGLE)), np.exp(rng.uniform(-SCALE, SCALE))
    mirrored = np.where((rng.random(2) < 0.5) & flip, -scale, scale)
    y, x = torch.meshgrid(*[torch.arange(WINDOW) - (WINDOW - 1) / 2] * 2, indexing="ij")
    rows = (x * np.sin(angle) + y * np.cos(angle)) * mirrored[0] + centre[0]
    columns = (x * np.cos(angle) - y * np.sin(angle)) * mirrored[1] + centre[1]
    grid = torch.stack([2 * columns / width - 1, 2 * rows / height - 1], dim=-1).float()
    cut = F.grid_sample(seen[None], grid[None], padding_mode="reflection", align_corners=False)[0]
    gain, bias = rng.uniform(1 - GAIN, 1 + GAIN), rng.uniform(-BIAS, BIAS)
    return cut[:3] * gain + bias, cut[3] > 0.25     # a line of one cell stays whole when turned


def focal_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Focal loss a marked cell: what is few counts as much as what is many. truth (b, h, w)."""
    loss = F.cross_entropy(logits, truth, reduction="none")
    focal = (1 - torch.exp(-loss)).pow(FOCUS) * loss
    return focal.sum() / (truth > 0).sum().clamp_min(1)


def trained(sources: list[list[Labelled]], good: list[Labelled], defects: list[str], steps: int,
            flip: bool, seed: int, device: str) -> Detector:
    """A detector. sources: the defective photographs; each source is drawn from equally often.

    In a source every defect is, in a batch half of the windows; the other half is of good ones.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Detector(len(defects)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(net.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    by_defect = [[[to_input(s) for s in source if s.key == key] for key in defects]
                 for source in sources]
    surfaces = [to_input(photograph) for photograph in good]
    for _ in range(steps):
        pictures, truths = [], []
        for i in range(BATCH):
            source, number = by_defect[i % len(sources)], int(rng.integers(len(defects)))
            choice = source[number] if i < BATCH // 2 else surfaces
            picture, mask = window(choice[rng.integers(len(choice))], flip, rng)
            pictures.append(picture)
            truths.append(mask * (number + 1))
        loss = focal_loss(net(torch.stack(pictures).to(device)), torch.stack(truths).to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


@torch.no_grad()
def predicted(net: Detector, photograph: Labelled, device: str) -> np.ndarray:
    """(defects, h, w): how likely each cell shows each defect, 0 to 1."""
    seen = to_input(photograph)[None, :3].to(device)
    height, width = seen.shape[2:]
    found = net(F.pad(seen, [0, -width % 4, 0, -height % 4], mode="replicate")).softmax(dim=1)
    return found[0, 1:, :height, :width].cpu().numpy()
