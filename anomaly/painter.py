"""One crop painted: e in the prompt, blended DDIM inside the mask, decoded.

    e_a[name] ++ E(mask) -> context -> blended DDIM of y_0 inside m -> x_0 -> image

The preview, the guidance and the pairs share it.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly.crop import Cropped
from anomaly.embedding import AnomalyEmbedding
from anomaly.prompt import learned_context
from anomaly.sampler import Guidance, blended_ddim
from ldm.model import StableDiffusion

Weigh = Callable[[Tensor, Tensor], Tensor]      # d, m (b, h, w) -> w_m, as in anomaly/reweight.py


@dataclass(frozen=True)
class Settings:
    """How a crop is painted."""

    size: int                   # side of the crop in pixels, as the models see it
    steps: int                  # of DDIM
    guidance: Guidance
    to_rgb: Tensor              # (4, 3): the run's latent-to-RGB map
    weigh: Weigh | None         # None: no re-weighting


@torch.no_grad()
def context_of(sd: StableDiffusion, learner: AnomalyEmbedding, stem: str, masks: Tensor) -> Tensor:
    """What a defect is painted with at crop masks (b, size, size) bool: the context, (b, L, d)."""
    vectors = learner(stem, masks.to(sd.device))
    return learned_context(sd, torch.cat(list(vectors.values()), dim=1))


@torch.no_grad()
def paint_crops(sd: StableDiffusion, crops: list[Cropped], context: Tensor, noise: Tensor,
                settings: Settings) -> Tensor:
    """What context (b, L, d) says, painted into crops, from noise (b, 4, h, w).

    Returns images (b, 3, size, size) in [-1, 1].
    """
    y_0, _ = sd.vae.encode(torch.stack([c.image for c in crops]).to(sd.device))
    m = torch.stack([c.cells for c in crops]).float().to(sd.device)
    *_, last = blended_ddim(sd, y_0, m, noise.to(sd.device), context, settings.guidance,
                            settings.steps, settings.to_rgb, settings.weigh)
    return sd.vae.decode(last.x)
