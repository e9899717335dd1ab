"""What is measured on painted defects. Pictures are float (b, 3, h, w) in [-1, 1], masks bool (b, h, w), none empty.

Each measure of pictures is a number for each, (b,); those of a mask's shape take one, (h, w). What is painted, the
normal surface and the real defect must be seen alike: all of them through the VAE, or none. Shares, ratios and the
distance from the real defects are of the means over several pictures.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

RING = 1 / 16       # width of the ring round a mask, in sides of the picture
UNNOTICED = 0.95    # quantile of the change that an empty prompt makes, above which a pixel counts as changed
# What a distance is made of.
MEASURED = ("colour", "whole colour", "histogram", "whole histogram", "fill", "real fill", "contrast", "real contrast")


def mean_colour(pictures: Tensor, masks: Tensor) -> Tensor:
    """Mean colour under each mask, (b, 3)."""
    m = masks[:, None].to(pictures.dtype)
    return (pictures * m).sum(dim=(2, 3)) / m.sum(dim=(2, 3))


def colour_share(painted: Tensor, normal: Tensor, real: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """How far painting went from the normal surface (0) to the real defect (1) in mean colour under the mask.

    1 - |c(painted) - c(real)| / |c(normal) - c(real)|, the three seen alike: through the VAE. Returns the two
    distances (b,), so that a share of many pictures is 1 - the ratio of their means: a single picture's share
    means nothing where defect and surface have the same colour.
    """
    goal = mean_colour(real, masks)
    return tuple((mean_colour(x, masks) - goal).norm(dim=1) for x in (painted, normal))


def histogram_distance(a: Tensor, b: Tensor, masks: Tensor) -> Tensor:
    """Earth mover's distance of the values under the mask, a mean over the three colours.

    The two histograms have as many pixels, so that it is the mean distance of the sorted values.
    """
    sorted_values = [[x[:, m].sort(dim=-1).values for x, m in zip(pictures, masks)] for pictures in (a, b)]
    return torch.stack([(p - q).abs().mean() for p, q in zip(*sorted_values)])


def histogram_share(painted: Tensor, normal: Tensor, real: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """As colour_share, in histogram_distance: 1 - the ratio of the two distances' means."""
    return histogram_distance(painted, real, masks), histogram_distance(normal, real, masks)


def fill(painted: Tensor, normal: Tensor, nothing: Tensor, masks: Tensor) -> Tensor:
    """Share of the mask's pixels that changed by more than the UNNOTICED quantile of what `nothing` changed there.

    nothing is painted with an empty prompt in the same mask: what sampling alone does to the surface.
    """
    change, chance = ((x - normal).abs().mean(dim=1) for x in (painted, nothing))
    return torch.stack([(c[m] > n[m].quantile(UNNOTICED)).double().mean() for c, n, m in zip(change, chance, masks)])


def ring(masks: Tensor) -> Tensor:
    """The pixels at most RING outside each mask, (b, h, w) bool."""
    width = max(1, round(RING * masks.shape[-1]))
    grown = F.max_pool2d(masks[:, None].float(), 2 * width + 1, stride=1, padding=width)[:, 0] > 0
    return grown & ~masks


def contrast_energy(pictures: Tensor, masks: Tensor) -> Tensor:
    """How far the mask's pixels lie from the mean colour of the ring round it, beyond the ring's own: squared.

    mean over m of |x - c|^2 - mean over the ring of |x - c|^2, c the ring's mean colour; near 0 for a surface
    without defect, where it may be below. The contrast of several pictures is the root of their mean.
    """
    around = ring(masks)
    distance = (pictures - mean_colour(pictures, around)[:, :, None, None]).square().mean(dim=1)
    inside, outside = ((distance * m).sum(dim=(1, 2)) / m.sum(dim=(1, 2)) for m in (masks, around))
    return inside - outside


def leak(painted: Tensor, normal: Tensor, masks: Tensor) -> Tensor:
    """Mean absolute change outside the mask: what compositing throws away. No mask fills its picture."""
    change = (painted - normal).abs().mean(dim=1) * ~masks
    return change.sum(dim=(1, 2)) / (~masks).sum(dim=(1, 2))


def place(painted: Tensor, normal: Tensor, here: Tensor, there: Tensor) -> Tensor:
    """Mean absolute change under the masks `here` less that under `there`: above 0 where the defect went here.

    Either mask may be empty; nothing has changed there.
    """
    change = (painted - normal).abs().mean(dim=1)
    inside, outside = ((change * m).sum(dim=(1, 2)) / m.sum(dim=(1, 2)).clamp_min(1) for m in (here, there))
    return inside - outside


def diversity(paintings: list[Tensor], masks: Tensor) -> Tensor:
    """Mean absolute difference inside the mask between paintings of the same photographs with other noises."""
    pairs = [(a, b) for i, a in enumerate(paintings) for b in paintings[:i]]
    inside = [((a - b).abs().mean(dim=1) * masks).sum(dim=(1, 2)) / masks.sum(dim=(1, 2)) for a, b in pairs]
    return torch.stack(inside).mean(dim=0)


def share(to_go: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """How far: 1 - the ratio of the distance left to the whole distance."""
    return 1 - to_go / whole


def contrast_ratio(painted: np.ndarray, real: np.ndarray) -> np.ndarray:
    """Root of the ratio of two mean energies; 0 if the first is below 0."""
    return np.sqrt(np.maximum(painted, 0) / real)


def distance(*means: np.ndarray) -> np.ndarray:
    """How far painted defects are from real ones, 0 for none: from the means of MEASURED, in its order.

    A mean of |1 - x|, x being the share of the way in colour and in histogram, fill in parts of the real defects' and
    contrast in parts of theirs: too much is as wrong as too little.
    """
    colour, histogram, (fill, real_fill), contrast = np.array(means).reshape(4, 2, *np.shape(means[0]))
    shares = share(*colour), share(*histogram), fill / real_fill, contrast_ratio(*contrast)
    return np.mean([np.abs(1 - x) for x in shares], axis=0)


def elongation(mask: np.ndarray) -> float:
    """Ratio of the standard deviations along the two principal axes of a mask's pixels, 1 for a disc."""
    points = np.argwhere(mask).astype(float)
    if len(points) < 3:
        return 1.0
    small, large = np.linalg.eigvalsh(np.cov(points.T) + np.eye(2) / 12)    # 1/12: a pixel's own variance
    return float(np.sqrt(large / small))


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Largest intersection over union of two bool masks of the same size, over all shifts of one of them."""
    size = tuple(2 * n for n in a.shape)
    spectra = np.fft.rfft2(a, size), np.fft.rfft2(b, size)
    most = np.fft.irfft2(spectra[0] * spectra[1].conj(), size).max().round()
    return float(most / (a.sum() + b.sum() - most))


def intersection_over_union(a: Tensor, b: Tensor) -> Tensor:
    """Of masks where they lie, (b,)."""
    return (a & b).sum(dim=(1, 2)) / (a | b).sum(dim=(1, 2))


def perimeter(mask: np.ndarray) -> int:
    """Sides that the mask's pixels share with background or with the picture's edge."""
    padded = np.pad(mask, 1)
    return int((padded[1:] != padded[:-1]).sum() + (padded[:, 1:] != padded[:, :-1]).sum())
