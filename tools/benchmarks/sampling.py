"""Ways to sample that the tools do not take, for bench.py details."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from anomaly.sampler import STEPS
from ldm.model import StableDiffusion
from ldm.schedule import Schedule


class Trailing(Schedule):
    """Timesteps counted down from the last one, as scheduler_config.json's "trailing"."""

    def timesteps(self, steps: int) -> list[tuple[int, int]]:
        stride = self.config.train_timesteps / steps
        ts = [round(self.config.train_timesteps - i * stride) - 1 for i in range(steps)]
        return list(zip(ts, ts[1:] + [0]))


class Fresh(Schedule):
    """New noise in every q(y_t | y_0) instead of one noise for all."""

    def q_sample(self, x_0: Tensor, t: Tensor, eps: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(int(t[0]))
        return super().q_sample(x_0, t, torch.randn(eps.shape, generator=generator))


Way = Callable[[StableDiffusion, Tensor, Tensor, Tensor], tuple[StableDiffusion, Tensor]]


def trailing(sd: StableDiffusion, y_0: Tensor, m: Tensor, noise: Tensor) -> tuple[StableDiffusion, Tensor]:
    """Another spacing of the timesteps."""
    return replace(sd, schedule=Trailing(sd.schedule.config)), noise


def fresh(sd: StableDiffusion, y_0: Tensor, m: Tensor, noise: Tensor) -> tuple[StableDiffusion, Tensor]:
    """Surroundings with new noise in every step."""
    return replace(sd, schedule=Fresh(sd.schedule.config)), noise


def from_the_surface(sd: StableDiffusion, y_0: Tensor, m: Tensor, noise: Tensor) -> tuple[StableDiffusion, Tensor]:
    """q(y_T | y_0) inside m, too, to start from; pure noise would not know the surface."""
    first = torch.full((len(y_0),), sd.schedule.timesteps(STEPS)[0][0])
    return sd, torch.where(m[:, None], sd.schedule.q_sample(y_0, first, noise), noise)


class Half:
    """A re-weighting in one half of the steps, none in the other. Blended DDIM asks once in each of STEPS steps."""

    def __init__(self, weigh: Callable[[Tensor, Tensor], Tensor], name: str, second: bool):
        self.weigh, self.second, self.asked = weigh, second, 0
        self.__name__ = f"{name} in the {'second' if second else 'first'} half"

    def __call__(self, d: Tensor, m: Tensor) -> Tensor:
        step = self.asked % STEPS + 2       # the step that the answer is for, from 1; after the last there is none
        self.asked += 1
        return self.weigh(d, m) if (step > STEPS // 2) == self.second else torch.ones_like(m)
