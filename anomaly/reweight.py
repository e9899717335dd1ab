"""Adaptive attention re-weighting: where the defect is still faint, the prompt is heard louder.

    w_m = |m|_1 * Softmax( f( || m*y - m*x0_hat ||^2 ) ),   f(x) = 1/x, f(0) = -inf    (section 3.3)

Taken literally 1/x has units. With pixels in [-1, 1] the softmax falls on one pixel and the rest of
the defect fades; with 0..255 it is uniform; and f(0) = -inf silences the pixels where nothing was
drawn. And since w_m depends on the pixel only, it is a gain on m_c V: with mean 1 it adds no
strength. So `adaptive` states it with its parameters, G (the mean), tau (the contrast) and eps (the
contrast's bound):

    w_m = G * |m|_1 * Softmax_m( -tau * log(d / mean_m(d) + eps) )

`paper` is the formula as printed, `released` what the authors' code weights with, `constant` the
control without adaptivity. Each takes d and m, both (b, h, w) on the latent grid, and returns w_m
(b, h, w), 1 outside m.

departs from the paper: the difference is that of the step before, which is free; this step's own
needs a second U-Net call. It is taken on the latent grid through a linear latent-to-RGB map, which
ranks the cells as the decoded images do (rank correlation 0.73 to 0.97) and saves the decoding,
and it is averaged over the mask cells of each 3x3 neighbourhood. w_m is 1 outside m.
departs from the released code: it compares the noisy z_t with z_0, clamps to [1, 1.5] in every
mode, and dilates the mask it paints in.
"""

import torch
import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor

GAIN, TAU, EPS = 1.5, 0.5, 0.05     # of `adaptive`; eps = 0 and tau = 1 is 1/d over its sum
FLOOR = 1e-12                       # of d, so that "no difference anywhere" is a uniform map


def latent_to_rgb(latents: Tensor, images: Tensor) -> Tensor:
    """Least squares from latents (n, 4, h, w) to the cell means of their images (n, 3, f*h, f*w).

    Returns (4, 3): the linear part, which is all that a difference of two latents needs.
    """
    factor = images.shape[-1] // latents.shape[-1]
    z = rearrange(latents.double().cpu(), "n c h w -> (n h w) c")
    rgb = rearrange(F.avg_pool2d(images.double().cpu(), factor), "n c h w -> (n h w) c")
    z, rgb = z - z.mean(dim=0), rgb - rgb.mean(dim=0)       # the constant term
    # gelsd: the least-norm solution where grey photographs leave directions undetermined.
    return torch.linalg.lstsq(z, rgb, driver="gelsd").solution.float()


def masked_mean(d: Tensor, m: Tensor) -> Tensor:
    """Mean of d over the mask of each sample, (b, 1, 1)."""
    return (d * m).sum(dim=(1, 2), keepdim=True) / m.sum(dim=(1, 2), keepdim=True)


def difference(x0_hat: Tensor, y_0: Tensor, m: Tensor, to_rgb: Tensor) -> Tensor:
    """d = || m*y - m*x0_hat ||^2 a cell: latents (b, 4, h, w), m (b, h, w) -> (b, h, w).

    Squared colour difference by to_rgb (4, 3), summed over R, G, B, averaged over the mask cells of
    each 3x3 neighbourhood.
    """
    rgb = einsum(x0_hat - y_0, to_rgb.to(x0_hat.device), "b c h w, c rgb -> b rgb h w")
    d = m * rgb.square().sum(dim=1)
    near = F.avg_pool2d(torch.stack([d, m], dim=1), 3, stride=1, padding=1)
    return torch.where(m > 0, near[:, 0] / near[:, 1].clamp_min(1e-6), 0.0)


def _softmax_in_mask(logits: Tensor, m: Tensor) -> Tensor:
    """Softmax over the mask cells of each sample, 0 outside."""
    logits = logits.masked_fill(m == 0, -torch.inf)
    return logits.flatten(1).softmax(dim=-1).view_as(m)


def _one_outside(w: Tensor, m: Tensor) -> Tensor:
    # The formula gives 0 outside m; the surroundings are blended from y_0 and need their attention.
    return torch.where(m > 0, w.to(m.dtype), 1.0)


def adaptive(d: Tensor, m: Tensor, gain: float = GAIN, tau: float = TAU,
             eps: float = EPS) -> Tensor:
    """w_m = G |m| Softmax_m(-tau log(d / mean_m(d) + eps)): mean G, more where d is small."""
    d = d.clamp_min(FLOOR)
    area = m.sum(dim=(1, 2), keepdim=True)
    logits = -tau * torch.log(d / masked_mean(d, m) + eps)
    return _one_outside(gain * area * _softmax_in_mask(logits, m), m)


def paper(d: Tensor, m: Tensor) -> Tensor:
    """w_m = |m| Softmax_m(1/d), f(0) = -inf, as printed; 1 if there is no difference anywhere."""
    d = d.double()      # 1/d of a float32 overflows float32
    area = m.sum(dim=(1, 2), keepdim=True)
    nothing = (d * m).sum(dim=(1, 2), keepdim=True) == 0
    logits = torch.where(d > 0, 1 / d, -torch.inf).masked_fill(nothing, 0.0)
    return _one_outside(area * _softmax_in_mask(logits, m), m)


def released(d: Tensor, m: Tensor) -> Tensor:
    """w_m = clamp(|m| (1/d) / sum_m(1/d), 1, 1.5): the authors' weights, which only strengthen.

    Not followed: they weight logits, of the learned tokens only, from z_t, in a dilated mask.
    """
    inverse = m / d.clamp_min(FLOOR)
    w = m.sum(dim=(1, 2), keepdim=True) * inverse / inverse.sum(dim=(1, 2), keepdim=True)
    return _one_outside(w.clamp(1.0, 1.5), m)


def constant(d: Tensor, m: Tensor, gain: float = GAIN) -> Tensor:
    """w_m = G inside m: the control that is as strong as `adaptive` and does not adapt."""
    return _one_outside(torch.full_like(d, gain), m)


def pyramid(w: Tensor, m: Tensor, levels: int) -> list[Tensor]:
    """w_m for every level of the U-Net: (b, h, w) -> a list of (b, h / 2^l, w / 2^l), finest first.

    w_l = 1 + pool(m (w - 1)) / pool(m) where a cell of the level holds any mask: a thin defect
    keeps its weight on coarse levels, where plain pooling would dilute it to 1.
    """
    maps = []
    for level in range(levels):
        excess, share = (F.avg_pool2d(x[:, None], 2 ** level)[:, 0] for x in (m * (w - 1), m))
        maps.append(torch.where(share > 0, 1 + excess / share.clamp_min(1e-12), 1.0))
    return maps
