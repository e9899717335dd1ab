"""How strongly a learned defect is to be painted: as strongly as its training photographs show it.

Guidance makes a defect stand out more, and how much it takes differs from defect to defect. So a
defect is painted over its own training photographs with two scales, and the scale at which its
contrast would be theirs is read off the straight line through them. Contrast may fall again as the
scale grows, so a scale beyond the two is painted with, too, and must come nearer.

departs from the paper: it has no guidance.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.painter import Settings, context_of, paint_crops
from anomaly.sampler import Guidance
from anomaly.scores.pictures import contrast
from anomaly.train import more_precise
from anomaly.views import training_views
from ldm.model import StableDiffusion

TRIED = 1.0, 2.0        # scales painted with
LARGEST = 4.0           # scale to go to; the smallest is 1, no guidance
VIEWS, BATCH = 12, 4    # training photographs painted over, and how many at a time


@torch.no_grad()
def contrasts(sd: StableDiffusion, defect: Defect, learner: AnomalyEmbedding,
              trials: list[Settings]) -> tuple[float, list[float]]:
    """Contrast of the training photographs through the VAE, and of what each trial paints there."""
    views = training_views(defect, trials[0].size, sd.vae.config.factor)[:VIEWS]
    masks = torch.stack([view.mask for view in views])
    noise = torch.randn((len(views), sd.unet.config.latent_channels, *views[0].cells.shape),
                        generator=torch.Generator().manual_seed(0))
    context = context_of(sd, learner, defect.stem, masks)
    parts = [slice(i, i + BATCH) for i in range(0, len(views), BATCH)]

    def together(pictures: Iterable[Tensor]) -> float:
        return contrast(torch.cat([some.float().cpu() for some in pictures]), masks)

    images = (torch.stack([view.image for view in views[part]]).to(sd.device) for part in parts)
    real = together(sd.vae.decode(sd.vae.encode(some)[0]) for some in images)
    return real, [together(paint_crops(sd, views[part], context[part], noise[part], trial)
                           for part in parts) for trial in trials]


def scale_for(goal: float, reached: list[float]) -> float:
    """Where the line through what TRIED reached meets the goal, 1 to LARGEST; 1 unless it rises."""
    rise = (reached[1] - reached[0]) / (TRIED[1] - TRIED[0])
    return min(max(TRIED[0] + (goal - reached[0]) / rise, 1.0), LARGEST) if rise > 0 else 1.0


@dataclass(frozen=True)
class Strength:
    """A defect's guidance scale, to two digits after the point, and how strong that makes it."""

    guidance: float
    contrast: float     # expected of what is painted: by the line of TRIED, beyond it as measured
    goal: float         # contrast of the training photographs


def strength_of(sd: StableDiffusion, defect: Defect, learner: AnomalyEmbedding,
                settings: Settings) -> Strength:
    """A defect's strength; the guidance of the settings does not matter.

    RuntimeError if what is painted is not finite.
    """
    def painted(*scales: float) -> tuple[float, list[float]]:
        uncond = settings.guidance.uncond_context
        trials = [replace(settings, guidance=Guidance(scale, uncond)) for scale in scales]
        goal, reached = contrasts(sd, defect, learner, trials)
        if not np.isfinite([goal, *reached]).all():
            raise RuntimeError(
                f"{defect.key}: what is painted is not finite; {more_precise(sd.dtype)}")
        return goal, reached

    goal, reached = painted(*TRIED)
    scale = round(scale_for(goal, reached), 2)
    if scale > TRIED[1]:
        _, (beyond,) = painted(scale)
        if abs(goal - beyond) < abs(goal - reached[1]):
            return Strength(scale, beyond, goal)
        scale = TRIED[1]
    return Strength(scale, float(np.interp(scale, TRIED, reached)), goal)
