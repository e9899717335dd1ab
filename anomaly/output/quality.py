"""What is measured on painted defects. Pictures are float in [-1, 1], masks bool; means run over the mask only."""

import numpy as np
from torch import Tensor


def mean_colour(pictures: Tensor, masks: Tensor) -> Tensor:
    """Mean colour under each mask: pictures (b, 3, h, w), masks (b, h, w), none empty -> (b, 3)."""
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
