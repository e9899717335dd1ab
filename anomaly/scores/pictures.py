"""What is measured on painted defects.

Pictures are float (b, 3, h, w) in [-1, 1], masks bool (b, h, w), none empty. What is compared must
be seen alike: all of it through the VAE, or none.
"""

import torch.nn.functional as F
from torch import Tensor

RING = 1 / 16       # width of the ring round a mask, in sides of the picture


def mean_colour(pictures: Tensor, masks: Tensor) -> Tensor:
    """Mean colour under each mask, (b, 3)."""
    m = masks[:, None].to(pictures.dtype)
    return (pictures * m).sum(dim=(2, 3)) / m.sum(dim=(2, 3))


def ring(masks: Tensor) -> Tensor:
    """The pixels at most RING outside each mask, (b, h, w) bool."""
    width = max(1, round(RING * masks.shape[-1]))
    grown = F.max_pool2d(masks[:, None].float(), 2 * width + 1, stride=1, padding=width)[:, 0] > 0
    return grown & ~masks


def step_of(pictures: Tensor, masks: Tensor) -> Tensor:
    """From the ring's mean colour to the mask's, (b, 3): negative where the defect is darker."""
    return mean_colour(pictures, masks) - mean_colour(pictures, ring(masks))


def wrong_way(pictures: Tensor, masks: Tensor, real: Tensor) -> Tensor:
    """What of the contrast's energy goes against the step of real pictures of these masks, (b,).

    a^2 where a = step . r / |r| is negative, r the real step, times the share of the real energy
    that r is: a defect with light and dark parts alike has no direction. A mean over channels.
    """
    r = step_of(real, masks)
    length = r.square().sum(dim=1).clamp_min(1e-12)
    against = (step_of(pictures, masks) * r).sum(dim=1).clamp_max(0).square() / length / 3
    share = length / 3 / contrast_energy(real, masks).clamp_min(1e-12)
    return against * share.clamp_max(1)


def contrast_energy(pictures: Tensor, masks: Tensor, real: Tensor | None = None) -> Tensor:
    """How far the mask's pixels lie from the ring's mean colour, beyond the ring's own: squared.

    mean over m of |x - c|^2 - mean over the ring of |x - c|^2, c the ring's mean colour; near 0 for
    a surface without defect, where it may be below. The contrast of several pictures is the root of
    their mean. With real pictures of the same masks, what goes the wrong way counts against it.
    """
    signed = 0.0 if real is None else 2 * wrong_way(pictures, masks, real)
    around = ring(masks)
    distance = (pictures - mean_colour(pictures, around)[:, :, None, None]).square().mean(dim=1)
    inside, outside = ((distance * m).sum(dim=(1, 2)) / m.sum(dim=(1, 2)) for m in (masks, around))
    return inside - outside - signed


def contrast(pictures: Tensor, masks: Tensor, real: Tensor | None = None) -> float:
    """Contrast of pictures together, in units of [-1, 1]: the root of the mean contrast_energy."""
    return float(contrast_energy(pictures, masks, real).mean().clamp_min(0).sqrt())
