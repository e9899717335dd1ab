"""The noise schedule and the DDIM update, eta 0.

Notation: DDPM's. alphas_cumprod[t] is what the DDIM paper calls alpha_t. Timesteps count 0..999;
x_t is the latent after t + 1 steps of noising, as in every published code.
"""

import torch
from torch import Tensor

from ldm.config import ScheduleConfig

PUBLISHED = ScheduleConfig()    # of every Stable Diffusion, but for the v models


class Schedule:
    """q(x_t | x_0), what the U-Net is to predict, the way back. t: (b,), or one for the batch."""

    def __init__(self, config: ScheduleConfig = PUBLISHED):
        self.config = config
        # "scaled linear": linear in sqrt(beta), latent-diffusion's make_beta_schedule.
        betas = torch.linspace(config.beta_start ** 0.5, config.beta_end ** 0.5,
                               config.train_timesteps, dtype=torch.float64) ** 2
        alphas_cumprod = torch.cumprod(1.0 - betas, dim=0)
        if config.zero_snr:     # the first stays, the last becomes 0: arXiv 2305.08891, algorithm 1
            root = alphas_cumprod.sqrt()
            alphas_cumprod = ((root - root[-1]) * root[0] / (root[0] - root[-1])) ** 2
        self.alphas_cumprod = alphas_cumprod.float()

    def _at(self, t: Tensor | int, like: Tensor) -> Tensor:
        """alphas_cumprod at t, shaped to broadcast over like (b, c, h, w)."""
        table = self.alphas_cumprod.to(like.device)
        return table[torch.as_tensor(t, device=like.device)].view(-1, 1, 1, 1)

    def q_sample(self, x_0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """A sample of q(x_t | x_0) for noise eps. DDPM eq. 4."""
        alpha = self._at(t, x_0)
        return alpha.sqrt() * x_0 + (1 - alpha).sqrt() * eps

    def target(self, x_0: Tensor, t: Tensor | int, eps: Tensor) -> Tensor:
        """The U-Net's target at q_sample(x_0, t, eps): eps, or v = sqrt(a) eps - sqrt(1-a) x_0."""
        if not self.config.v_prediction:
            return eps
        alpha = self._at(t, x_0)
        return alpha.sqrt() * eps - (1 - alpha).sqrt() * x_0    # progressive distillation, app. D

    def x0_hat(self, x_t: Tensor, t: Tensor | int, out: Tensor) -> Tensor:
        """The clean latent that the U-Net's output implies. DDIM eq. 9."""
        alpha = self._at(t, x_t)
        if self.config.v_prediction:
            return alpha.sqrt() * x_t - (1 - alpha).sqrt() * out
        return (x_t - (1 - alpha).sqrt() * out) / alpha.sqrt()

    def eps_hat(self, x_t: Tensor, t: Tensor | int, out: Tensor) -> Tensor:
        """The noise that the U-Net's output implies."""
        if not self.config.v_prediction:
            return out
        alpha = self._at(t, x_t)
        return alpha.sqrt() * out + (1 - alpha).sqrt() * x_t

    def timesteps(self, steps: int) -> list[tuple[int, int]]:
        """The (t, t_prev) pairs of a sampling run, noisiest first.

        "Leading" spacing with offset 1, as the published scheduler_config.json asks. After the last
        pair there is no earlier timestep; t_prev is 0 there, so that plain DDIM ends at
        alphas_cumprod[0] ("set_alpha_to_one": false). Raises ValueError unless 1 <= steps and
        a stride of at least 2 remains (500 steps of 1000).
        """
        most = self.config.train_timesteps // 2
        if not 1 <= steps <= most:
            raise ValueError(f"{steps} sampling steps; expected 1 to {most}")
        stride = self.config.train_timesteps // steps
        ts = [i * stride + 1 for i in reversed(range(steps))]
        return list(zip(ts, ts[1:] + [0]))

    def ddim_step(self, x0_hat: Tensor, eps_hat: Tensor, t_prev: Tensor | int) -> Tensor:
        """x_{t_prev} from the predicted x_0 and noise, eta 0. DDIM eq. 12."""
        alpha_prev = self._at(t_prev, x0_hat)
        return alpha_prev.sqrt() * x0_hat + (1 - alpha_prev).sqrt() * eps_hat
