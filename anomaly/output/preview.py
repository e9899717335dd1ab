"""RUN/preview.jpg: each defect's training crops, what the run paints there from fixed noise, drawn masks."""

import numpy as np
import torch

from anomaly.crop import Cropped, defect_crop, take
from anomaly.dataset import Defect, read_example
from anomaly.embedding import AnomalyEmbedding, MaskEmbedding
from anomaly.mask_model import sample_masks
from anomaly.output.generate import Settings
from anomaly.output.sheets import mask_pixels, to_pixels
from anomaly.prompt import learned_context
from anomaly.sampler import blended_ddim
from ldm.model import StableDiffusion

SHOWN = 4       # photographs and masks a defect


def training_views(defect: Defect, size: int, factor: int) -> list[Cropped]:
    """The training photographs in their crops, without jitter: as sampling frames them."""
    pairs = map(read_example, defect.examples)
    return [take(photograph, mask, defect_crop(mask, size), size, factor) for photograph, mask in pairs]


@torch.no_grad()
def preview_row(sd: StableDiffusion, defect: Defect, learner: AnomalyEmbedding,
                masks: MaskEmbedding | None, settings: Settings) -> tuple[str, list[np.ndarray]]:
    """Real crop and painted crop side by side, then masks of the mask model if there is one."""
    views = training_views(defect, settings.size, sd.vae.config.factor)[:SHOWN]
    y_0, _ = sd.vae.encode(torch.stack([v.image for v in views]).to(sd.device))
    m = torch.stack([v.cells for v in views]).float().to(sd.device)
    vectors = learner(defect.stem, torch.stack([v.mask for v in views]).to(sd.device))
    context = learned_context(sd, torch.cat(list(vectors.values()), dim=1))
    noise = torch.randn((SHOWN, *y_0.shape[1:]), generator=torch.Generator().manual_seed(0)).to(sd.device)
    *_, last = blended_ddim(sd, y_0, m, noise[:len(views)], context, settings.guidance, settings.steps,
                            settings.to_rgb, settings.weigh)
    pictures = []
    for view, painted in zip(views, sd.vae.decode(last.x)):
        pictures += [to_pixels(view.image), to_pixels(painted)]
    if masks is not None:
        drawn = sample_masks(sd, masks.e_m[defect.stem], noise, settings.steps)
        pictures += [mask_pixels(mask) for mask in drawn]
    kinds = "real, painted, real, ..." + ("; masks of the mask model" if masks is not None else "")
    return f"{defect.key}: {kinds}", pictures
