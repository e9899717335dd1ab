"""How different pictures look: LPIPS (Zhang 2018), and within clusters, IC-LPIPS (Ojha 2021).

    LPIPS(a, b) = sum over layers l  mean over pixels  sum over channels c  w_lc (a_lc - b_lc)^2

a_l: features of VGG-16, of length 1 at each pixel. As w is not negative this is the square of a
distance between vectors sqrt(w_lc / pixels) a_lc: pictures need the network, pairs of them do not.
"""

from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SIDE = 256          # pixels of a side of what is compared, as the paper does
MOST = 50           # pictures of a cluster at most, drawn at random: the authors' number
BLOCKS = (0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28)     # torchvision's features.N
CHANNELS = 64, 128, 256, 512, 512
# What pictures in [-1, 1] have to become for torchvision's weights; the published LPIPS's numbers.
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights: torchvision's VGG-16 and the published LPIPS heads."""
    shapes: dict[str, tuple[int, ...]] = {}
    below = 3
    for i, (layers, channels) in enumerate(zip(BLOCKS, CHANNELS)):
        for n in layers:
            shapes |= {f"features.{n}.weight": (channels, below, 3, 3),
                       f"features.{n}.bias": (channels,)}
            below = channels
        shapes[f"lin{i}.model.1.weight"] = (1, channels, 1, 1)
    return shapes


@torch.no_grad()
def looks(weights: dict[str, Tensor], pictures: Tensor) -> Tensor:
    """Pictures (b, 3, h, w) in [-1, 1] as vectors (b, d), whose squared distances are LPIPS."""
    x = (pictures - torch.tensor(SHIFT)[:, None, None]) / torch.tensor(SCALE)[:, None, None]
    found = []
    for i, layers in enumerate(BLOCKS):
        x = x if i == 0 else F.max_pool2d(x, 2)
        for n in layers:
            x = F.relu(F.conv2d(x, weights[f"features.{n}.weight"], weights[f"features.{n}.bias"],
                                padding=1))
        unit = x / (x.square().sum(dim=1, keepdim=True).sqrt() + 1e-10)
        w = weights[f"lin{i}.model.1.weight"].clamp_min(0)
        found.append((unit * (w / x[0, 0].numel()).sqrt()).flatten(1))
    return torch.cat(found, dim=1)


def distances(a: Tensor, b: Tensor) -> Tensor:
    """LPIPS of each of a (n, d) with each of b (m, d): (n, m)."""
    return torch.cdist(a, b).square()


def ic_lpips(look: Callable[[int], Tensor], count: int, centres: Tensor, seed: int) -> float | None:
    """Mean LPIPS within clusters round the centres (k, d); look(i): picture i as a vector (1, d).

    Each picture belongs to its nearest centre; of a cluster MOST at most count, drawn at random;
    clusters of fewer than two are left out; None if no other is there. The authors' script, but for
    the seed that it does not set.
    """
    nearest = np.array([int(distances(look(i), centres).argmin()) for i in range(count)])
    rng, means = np.random.default_rng(seed), []
    for k in range(len(centres)):
        members = rng.permutation(np.flatnonzero(nearest == k))[:MOST]
        if len(members) > 1:
            among = torch.cat([look(int(i)) for i in members])
            means.append(float(torch.pdist(among).square().mean()))
    return float(np.mean(means)) if means else None
