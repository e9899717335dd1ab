"""How strongly a learned defect is to be painted: as strongly as its training photographs show it.

Guidance makes a defect stand out more, and how much it takes differs from defect to defect. So a
defect is painted over its own training photographs with two scales, and the scale at which its
contrast would be theirs is read off the straight line through them. Contrast may fall again as the
scale grows, so a scale beyond the two is painted with, too, and must come nearer. A defect that is
painted light where its photograph has it dark has less contrast than none. The points that were
measured are kept: a strength of S asks for S times the contrast, and its scale is read off the line
through them. Below a scale of 1 something else than the defect would be painted, too.

departs from the paper: it has no guidance.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.painter import Settings, context_of, paint_crops
from anomaly.scores.pictures import contrast
from anomaly.train import more_precise
from anomaly.views import training_views
from ldm.model import StableDiffusion

TRIED = 1.0, 2.0        # scales painted with
LARGEST = 4.0           # scale to go to; the smallest is 1, no guidance
VIEWS, BATCH = 12, 4    # training photographs painted over, and how many at a time


@torch.no_grad()
def contrasts(sd: StableDiffusion, defect: Defect, learner: AnomalyEmbedding,
              settings: Settings) -> tuple[float, Callable[[float], float]]:
    """Contrast of the training photographs through the VAE, and of what a scale paints there.

    The scale of the settings' guidance does not matter. The second raises RuntimeError if either
    contrast is not finite.
    """
    views = training_views(defect, settings.size, sd.vae.config.factor)[:VIEWS]
    masks = torch.stack([view.mask for view in views])
    noise = torch.randn((len(views), sd.unet.config.latent_channels, *views[0].cells.shape),
                        generator=torch.Generator().manual_seed(0))
    context = context_of(sd, learner, defect.stem, masks)
    parts = [slice(i, i + BATCH) for i in range(0, len(views), BATCH)]

    def together(pictures: Iterable[Tensor]) -> Tensor:
        return torch.cat([some.float().cpu() for some in pictures])

    images = (torch.stack([view.image for view in views[part]]).to(sd.device) for part in parts)
    real = together(sd.vae.decode(sd.vae.encode(some)[0]) for some in images)

    goal = contrast(real, masks)

    def painted(scale: float) -> float:
        trial = replace(settings, guidance=replace(settings.guidance, scale=scale))
        reached = contrast(together(paint_crops(sd, views[part], context[part], noise[part], trial)
                                    for part in parts), masks, real)
        if not np.isfinite([goal, reached]).all():
            raise RuntimeError(
                f"{defect.key}: what is painted is not finite; {more_precise(sd.dtype)}")
        return reached
    return goal, painted


def scale_for(goal: float, reached: list[float]) -> float:
    """Where the line through what TRIED reached meets the goal, 1 to LARGEST; 1 unless it rises."""
    rise = (reached[1] - reached[0]) / (TRIED[1] - TRIED[0])
    return min(max(TRIED[0] + (goal - reached[0]) / rise, 1.0), LARGEST) if rise > 0 else 1.0


@dataclass(frozen=True)
class Strength:
    """A defect's guidance scale, to two digits after the point, and how strong scales make it."""

    guidance: float
    goal: float                             # contrast of the training photographs
    line: tuple[tuple[float, float], ...]   # (scale, contrast) as measured, scales rising from 1

    @property
    def contrast(self) -> float:
        """Expected of what is painted with guidance: between two points by their line."""
        scales, contrasts = np.array(self.line).T
        return float(np.interp(self.guidance, scales, contrasts))

    def at(self, strength: float) -> tuple[float, float]:
        """(scale, contrast expected) for strength times the photographs' contrast, in reach or not.

        1 is the guidance found. In reach are scales from 1 to the last one measured, and on to
        LARGEST along the last piece of the line if it rises.
        """
        if strength == 1:
            return self.guidance, self.contrast
        (x0, y0), (x1, y1) = self.line[-2:]
        line = list(self.line)
        if x1 < LARGEST and y1 > y0:
            line.append((LARGEST, y1 + (y1 - y0) / (x1 - x0) * (LARGEST - x1)))
        asked = strength * self.goal
        for (x0, y0), (x1, y1) in zip(line, line[1:]):
            if y0 <= asked <= y1:
                return round(x0 + (asked - y0) / max(y1 - y0, 1e-12) * (x1 - x0), 2), asked
        return min(line, key=lambda point: abs(point[1] - asked))


def strength_of(sd: StableDiffusion, defect: Defect, learner: AnomalyEmbedding,
                settings: Settings) -> Strength:
    """A defect's strength; the scale of the settings' guidance does not matter.

    RuntimeError if what is painted is not finite.
    """
    goal, painted = contrasts(sd, defect, learner, settings)
    reached = [painted(scale) for scale in TRIED]
    line = tuple(zip(TRIED, reached))
    scale = round(scale_for(goal, reached), 2)
    if scale > TRIED[1]:
        beyond = painted(scale)
        line = (*line, (scale, beyond))
        if abs(goal - beyond) >= abs(goal - reached[1]):
            scale = TRIED[1]
    return Strength(scale, goal, line)
