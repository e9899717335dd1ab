"""Four numbers by which a painted crop is compared with its normal photograph and the real defects.

    visible   how much of the mask was changed: nothing drawn, drawn beside, half of it
    alike     whether it looks like a training view: empty prompts, other defects, inverted ones
    grain     how rough it is: noise, blur
    copy      whether it is a training view

Pictures are float (b, 3, h, w) in [-1, 1], masks bool (b, h, w), none empty, as crop.take gives
them. Their bounds are in anomaly/scores/gate.py.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly.scores.pictures import ring
from ldm.vae import VAE

BATCH = 8           # pictures that the VAE sees at a time
FINE = 1 / 128      # radius of the high-pass and of the erosion, in sides of the picture
SIDE = 128          # to which pictures are shrunk for copy: it correlates over all shifts


def changes(before: Tensor, after: Tensor) -> Tensor:
    """Mean absolute change of each pixel's colours, (b, h, w), 0 to 2."""
    return (after - before).abs().mean(dim=1)


def visible(before: Tensor, after: Tensor, masks: Tensor, least: float) -> Tensor:
    """Share of the mask's pixels that changed by more than least, (b,).

        |{p in m: mean_c |after - before| > least}| / |m|

    least: what a round trip through the VAE changes at 95 % of the pixels of normal photographs.
    """
    changed = (changes(before, after) > least) & masks
    return changed.sum(dim=(1, 2)) / masks.sum(dim=(1, 2))


def middle(vae: VAE, pictures: Tensor) -> Tensor:
    """The VAE encoder's features at its coarsest, before they become latents: (b, c, h/f, w/f)."""
    seen: list[Tensor] = []
    # A hook, so that what overflows in half precision is what encode has computed again: the last.
    hook = vae.encoder.mid_block.register_forward_hook(lambda *call: seen.append(call[2]))
    try:
        vae.encode(pictures)
    finally:
        hook.remove()
    return seen[-1].float()


@torch.no_grad()
def features(vae: VAE, pictures: Tensor, masks: Tensor) -> Tensor:
    """How the VAE encoder sees the mask against its ring: (b, 2c), on the CPU.

    (mean_m F - mean_ring F, std_m F), F the middle features, m and ring weighted by the share of
    each cell that they cover. The difference has a sign: lighter than the surface is not darker.
    """
    if len(pictures) > BATCH:
        return torch.cat([features(vae, *some) for some in zip(
            torch.split(pictures, BATCH), torch.split(masks, BATCH))])
    seen = middle(vae, pictures.to(vae.quant_conv.weight.device)).cpu()
    m, around = (F.adaptive_avg_pool2d(some[:, None].float().cpu(), seen.shape[-1])
                 for some in (masks, ring(masks)))

    def mean(x: Tensor, weight: Tensor) -> Tensor:      # of no ring, of a mask that fills all: 0
        return (x * weight).sum(dim=(2, 3)) / weight.sum(dim=(2, 3)).clamp_min(1e-6)
    inside = mean(seen, m)
    spread = mean((seen - inside[:, :, None, None]).square(), m).sqrt()
    return torch.cat([inside - mean(seen, around), spread], dim=1)


def cosines(found: Tensor, known: Tensor) -> Tensor:
    """a . b / |a| |b| of every row of found (b, d) with every row of known (n, d): (b, n)."""
    return F.normalize(found, dim=1) @ F.normalize(known, dim=1).T


def high_pass(pictures: Tensor) -> Tensor:
    """Grey minus its mean over a square of radius FINE, (b, h, w)."""
    radius = max(1, round(FINE * pictures.shape[-1]))
    grey = pictures.mean(dim=1, keepdim=True)
    smooth = F.avg_pool2d(F.pad(grey, [radius] * 4, mode="replicate"), 2 * radius + 1, stride=1)
    return (grey - smooth)[:, 0]


def eroded(masks: Tensor) -> Tensor:
    """Masks without their rim, FINE wide, where the high-pass sees the surroundings, too.

    A mask that is all rim stays whole.
    """
    radius = max(1, round(FINE * masks.shape[-1]))
    inner = F.max_pool2d((~masks)[:, None].float(), 2 * radius + 1, stride=1, padding=radius) == 0
    return torch.where(inner.any(dim=(2, 3), keepdim=True), inner, masks[:, None])[:, 0]


def grain(pictures: Tensor, masks: Tensor) -> Tensor:
    """log of the root mean square of the high-pass in the eroded mask, (b,)."""
    m = eroded(masks)
    power = (high_pass(pictures).square() * m).sum(dim=(1, 2)) / m.sum(dim=(1, 2))
    return 0.5 * power.clamp_min(1e-12).log()


def details(pictures: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """What copy compares: the high-pass (b, s, s) and the eroded masks, s at most SIDE."""
    side = min(SIDE, pictures.shape[-1])
    small = F.adaptive_avg_pool2d(pictures, side)
    shrunk = F.adaptive_max_pool2d(masks[:, None].float(), side)[:, 0] > 0
    return high_pass(small), eroded(shrunk)


def copies(found: tuple[Tensor, Tensor], known: tuple[Tensor, Tensor]) -> Tensor:
    """Largest correlation of each of found with each of known, over shifts and flips: (b, n).

        max over s of  sum_m h g_s / (sum_m h^2 sum_m g_s^2)^1/2

    h and m the high-pass and mask of found, as details gives them, g the high-pass of known in its
    mask and 0 outside, as it is and mirrored. 1 for what was cut out there, pasted anywhere.
    """
    (h, m), (g, n) = found, known
    size = (2 * h.shape[-1],) * 2                   # room for every shift
    f_h, f_m = (torch.fft.rfft2(x, size).conj() for x in (h * m, m.float()))
    energy = (h.square() * m).sum(dim=(1, 2))[:, None, None]
    best = torch.full((len(h), len(g)), -1.0, device=h.device)
    for flips in ((), (1,), (2,), (1, 2)):
        for j, inside in enumerate((g * n).flip(flips)):
            product, under = (torch.fft.irfft2(f * torch.fft.rfft2(x, size), size)
                              for f, x in ((f_h, inside), (f_m, inside.square())))
            # Beside g nothing is left but the transform's rounding, which correlates with anything.
            floor = 1e-3 * inside.square().sum() + 1e-9
            r = product / (energy.clamp_min(1e-9) * under.clamp_min(floor)).sqrt()
            best[:, j] = torch.maximum(best[:, j], r.amax(dim=(1, 2)))
    return best
