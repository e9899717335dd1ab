"""RUN/preview.jpg: of each defect the training crops, what is painted there, and drawn masks."""

import numpy as np
import torch

from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding, MaskEmbedding
from anomaly.files.photographs import read_photograph
from anomaly.mask_model import sample_masks
from anomaly.painter import Settings, context_of, paint_crops
from anomaly.runs.sheets import mask_pixels, to_pixels
from anomaly.views import training_views
from ldm.model import StableDiffusion

SHOWN = 3       # photographs and masks a defect


@torch.no_grad()
def preview_row(sd: StableDiffusion, defect: Defect, learner: AnomalyEmbedding,
                masks: MaskEmbedding | None, settings: Settings) -> tuple[str, list[np.ndarray]]:
    """Real crop and painted crop side by side, then masks of the mask model if there is one."""
    views = training_views(defect, settings.size, sd.vae.config.factor)[:SHOWN]
    grey = [read_photograph(example.image).ndim == 2 for example in defect.examples[:SHOWN]]
    shape = (SHOWN, sd.unet.config.latent_channels, *views[0].cells.shape)
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    context = context_of(sd, learner, defect.stem, torch.stack([v.mask for v in views]))
    painted = paint_crops(sd, views, context, noise[:len(views)], settings)
    pictures = []
    for view, image, is_grey in zip(views, painted, grey):
        pictures += [to_pixels(view.image, is_grey), to_pixels(image, is_grey)]
    if masks is not None:
        drawn = sample_masks(sd, masks.e_m[defect.stem], noise.to(sd.device), settings.steps)
        pictures += [mask_pixels(mask) for mask in drawn]
    kinds = "real, painted, real, ..." + ("; masks of the mask model" if masks is not None else "")
    return f"{defect.key}: {kinds}", pictures
