"""The spatial encoder E: where a defect sits, as words. e_s = E(mask). Paper, section 3.2.

A ResNet-50 reads the mask, a feature pyramid carries what its deep levels know back to the fine
ones, and one head per vector reads one pyramid level. Trained from scratch with the embeddings.

departs from the released code: its IR-50 has BatchNorm, left in training mode while sampling, so
that an image depends on its batch neighbours (here GroupNorm), and all its heads read one level.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKS = (3, 4, 6, 3)       # ResNet-50
EXPANSION = 4               # a bottleneck's output over its inner width
NORM_GROUPS = 8
HEAD_GRID = 8               # the heads flatten an 8x8 grid: pooling it away would lose the place


def _norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(NORM_GROUPS, channels)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 and a residual. (b, c_in, h, w) -> (b, 4 * width, h / stride, w / stride)."""

    def __init__(self, c_in: int, width: int, stride: int):
        super().__init__()
        c_out = EXPANSION * width
        self.layers = nn.Sequential(
            nn.Conv2d(c_in, width, 1, bias=False), _norm(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, stride=stride, padding=1, bias=False),
            _norm(width), nn.ReLU(),
            nn.Conv2d(width, c_out, 1, bias=False), _norm(c_out))
        same = stride == 1 and c_in == c_out
        self.shortcut = nn.Identity() if same else nn.Sequential(
            nn.Conv2d(c_in, c_out, 1, stride=stride, bias=False), _norm(c_out))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.layers(x) + self.shortcut(x))


class Head(nn.Module):
    """One pyramid level -> one vector with the rms of a word. (b, c, h, w) -> (b, d)."""

    def __init__(self, channels: int, width: int, rms: float):
        super().__init__()
        self.rms = rms
        self.smooth = nn.Conv2d(channels, channels, 3, padding=1)
        self.linear = nn.Linear(channels * HEAD_GRID ** 2, width)
        # No learned gain: a vector of E has the norm of a word whatever the training does.
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(self, x: Tensor) -> Tensor:
        grid = F.adaptive_avg_pool2d(self.smooth(x), HEAD_GRID)
        return self.norm(self.linear(grid.flatten(1))) * self.rms


class SpatialEncoder(nn.Module):
    """E. masks (b, s, s) with 1 on the defect -> e_s (b, vectors, d)."""

    def __init__(self, text_width: int, vectors: int, rms: float):
        super().__init__()
        width = 64 if text_width >= 512 else 16     # ResNet-50's own, or a quarter for small models
        self.stem = nn.Sequential(nn.Conv2d(4, width, 7, stride=2, padding=3, bias=False),
                                  _norm(width), nn.ReLU(), nn.MaxPool2d(3, stride=2, padding=1))
        self.levels = nn.ModuleList()
        c_in = width
        for i, blocks in enumerate(BLOCKS):
            inner = width * 2 ** i
            c_out = EXPANSION * inner
            self.levels.append(nn.Sequential(*(
                Bottleneck(c_in if j == 0 else c_out, inner, stride=2 if i and j == 0 else 1)
                for j in range(blocks))))
            c_in = c_out
        pyramid = 2 * width
        self.lateral = nn.ModuleList(nn.Conv2d(EXPANSION * width * 2 ** i, pyramid, 1)
                                     for i in range(len(BLOCKS)))
        self.heads = nn.ModuleList(Head(pyramid, text_width, rms) for _ in range(vectors))

    @staticmethod
    def planes(masks: Tensor) -> Tensor:
        """(b, s, s) -> (b, 4, s, s): m, m * x, m * y with x, y in -1..1, and log(|m| / s^2) / 2.5.

        Convolutions see neither where they are nor how much there is. x and y stand on the mask
        only: over the whole picture they drown a small mask (and e_s tells the place less well).
        """
        mask = masks.float()
        x = torch.linspace(-1, 1, mask.shape[-1], device=mask.device)
        log_area = mask.mean(dim=(1, 2), keepdim=True).clamp_min(1e-6).log() / 2.5
        return torch.stack([mask, mask * x, mask * x[:, None], log_area.expand_as(mask)], dim=1)

    def forward(self, masks: Tensor) -> Tensor:
        """masks (b, s, s) -> e_s: up the ResNet's levels, down the pyramid, a vector from each."""
        x = self.stem(self.planes(masks))
        features = []
        for level in self.levels:
            x = level(x)
            features.append(x)
        pyramid, above = [], None
        for feature, lateral in zip(reversed(features), reversed(self.lateral)):    # coarse to fine
            level = lateral(feature)
            if above is not None:
                level = level + F.interpolate(above, size=level.shape[-2:], mode="nearest")
            pyramid.append(level)
            above = level
        # Vector i reads level i, coarsest first: n = 4 vectors, four levels.
        return torch.stack([head(level) for head, level in zip(self.heads, pyramid)], dim=1)
