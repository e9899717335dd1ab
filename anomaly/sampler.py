"""Sampling: plain DDIM for mask pictures, blended DDIM for painting a defect into a photograph.

    x_{t-1} = p_theta(x_{t-1} | x_t, e) * m  +  q(y_{t-1} | y_0) * (1 - m)      paper, section 3.1

y_0 is the latent of the normal photograph, m the mask on the latent grid.
departs from the released code: eta 0 instead of 1, and the last step ends in y_0 outside the mask;
it blends before each call and leaves the last one unblended, so the whole image changes.
departs from the paper: classifier-free guidance, which neither it nor its code uses for anomalies;
and one noise for x_T and for every q(y_t | y_0) of a pair, where the paper's q draws anew
(measured: no difference).
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly.reweight import difference, pyramid
from ldm.model import StableDiffusion

STEPS = 10      # the tools' default; as many pairs pass the gate as with 50 (docs/results.md)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance: eps_u + scale * (eps_c - eps_u), or so for v. Scale 1 is none."""

    scale: float
    uncond_context: Tensor      # (1, L, d), of the negative prompt


@dataclass(frozen=True)
class Step:
    """State after one step of blended DDIM."""

    t_prev: int | None          # the timestep reached; None after the last: x is clean
    x: Tensor                   # (b, 4, h, w)
    x0_hat: Tensor              # (b, 4, h, w): the clean latent predicted in this step, not blended
    weight: Tensor | None       # (b, h, w): the w_m that this step was made with


def guided(sd: StableDiffusion, x_t: Tensor, timestep: int, context: Tensor, guidance: Guidance,
           weight_map: list[Tensor] | None = None) -> Tensor:
    """The U-Net's output (b, 4, h, w) under guidance; the unconditional half has weights of 1."""
    t = torch.full((len(x_t),), timestep, device=x_t.device)
    if guidance.scale == 1.0:
        return sd.unet(x_t, t, context, weight_map)
    both = torch.cat([guidance.uncond_context.expand_as(context), context])
    if weight_map is not None:
        weight_map = [torch.cat([torch.ones_like(w), w]) for w in weight_map]
    out_u, out_c = sd.unet(torch.cat([x_t, x_t]), torch.cat([t, t]), both, weight_map).chunk(2)
    return out_u + guidance.scale * (out_c - out_u)


@torch.no_grad()
def ddim(sd: StableDiffusion, x_T: Tensor, context: Tensor, guidance: Guidance,
         steps: int) -> Tensor:
    """Plain DDIM from noise x_T (b, 4, h, w) to latents; ends at alphas_cumprod[0] as published."""
    x_t = x_T
    for t, t_prev in sd.schedule.timesteps(steps):
        out = guided(sd, x_t, t, context, guidance)
        x0_hat, eps_hat = sd.schedule.x0_hat(x_t, t, out), sd.schedule.eps_hat(x_t, t, out)
        x_t = sd.schedule.ddim_step(x0_hat, eps_hat, t_prev)
    return x_t


@torch.no_grad()
def blended_ddim(sd: StableDiffusion, y_0: Tensor, m: Tensor, noise: Tensor, context: Tensor,
                 guidance: Guidance, steps: int, to_rgb: Tensor,
                 weigh: Callable[[Tensor, Tensor], Tensor] | None = None) -> Iterator[Step]:
    """Paint into y_0 (b, 4, h, w) inside m (b, h, w), 0 or 1; yields each step, last the result.

    noise (b, 4, h, w) is both x_T and the noise of every q(y_t | y_0). weigh(d, m) -> w_m, or None
    for no re-weighting; the first step has no x0_hat to compare with and is not weighted.
    """
    schedule, inside = sd.schedule, m[:, None]
    timesteps = schedule.timesteps(steps)
    weight, maps = None, None
    # Pure noise inside m, which knows nothing of the normal surface. q(y_T | y_0) there was
    # measured to be as good.
    x_t = torch.where(inside > 0, noise, schedule.q_sample(y_0, timesteps[0][0], noise))
    for t, t_prev in timesteps:
        out = guided(sd, x_t, t, context, guidance, maps)
        x0_hat, eps_hat = schedule.x0_hat(x_t, t, out), schedule.eps_hat(x_t, t, out)
        last = (t, t_prev) == timesteps[-1]
        painted = x0_hat if last else schedule.ddim_step(x0_hat, eps_hat, t_prev)
        surroundings = y_0 if last else schedule.q_sample(y_0, t_prev, noise)
        x_t = torch.where(inside > 0, painted, surroundings)
        yield Step(None if last else t_prev, x_t, x0_hat, weight)
        if weigh is not None:
            weight = weigh(difference(x0_hat, y_0, m, to_rgb), m)
            maps = pyramid(weight, m, sd.unet.config.levels)
