"""What the models see of the training photographs: their crops, random views, masks as pictures."""

import logging
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from anomaly.crop import Cropped, augmented, defect_crop, take, thin
from anomaly.dataset import Defect, read_example
from anomaly.mask_model import mask_picture
from anomaly.progress import Report, each
from anomaly.reweight import latent_to_rgb
from anomaly.train import Views, encode
from ldm.model import StableDiffusion

VIEWS = 64      # random views a defect, at least 4 of each photograph
log = logging.getLogger(__name__)


def training_views(defect: Defect, size: int, factor: int) -> list[Cropped]:
    """The training photographs in their crops, without jitter: as sampling frames them."""
    return [take(photograph, mask, defect_crop(mask, size), size, factor)
            for photograph, mask in map(read_example, defect.examples)]


def random_views(sd: StableDiffusion, defect: Defect, size: int, flip: bool, seed: int,
                 report: Report) -> Views:
    """Augmented views of the training photographs, encoded ahead of the loop."""
    examples = [read_example(e) for e in defect.examples]
    rounds = max(4, -(-VIEWS // len(examples)))
    rng = np.random.default_rng([seed, crc32(defect.key.encode())])
    pictures = [augmented(photograph, mask, size, sd.vae.config.factor, flip, rng)
                for photograph, mask in examples * rounds]
    slim = sum(map(thin, pictures))
    if slim:
        log.info("%s: in %d of %d views the mask is thinner than two latent cells; a larger --size "
                 "paints thin defects better", defect.key, slim, len(pictures))
    return encode(sd, each(pictures, f"encoding {defect.key}", len(pictures), report))


def mask_views(sd: StableDiffusion, defect: Defect, size: int, report: Report) -> Views:
    """The pictures of the training masks, for the mask model."""
    pictures = [mask_picture(read_example(example)[1], size, sd.vae.config.factor)
                for example in defect.examples]
    return encode(sd, each(pictures, f"encoding masks of {defect.key}", len(pictures), report))


def fit_latent_to_rgb(sd: StableDiffusion, defects: list[Defect], size: int,
                      report: Report) -> Tensor:
    """The linear latent-to-RGB map (4, 3), from the training photographs' crops without jitter."""
    views = [view for defect in defects
             for view in training_views(defect, size, sd.vae.config.factor)]
    latents = encode(sd, each(views, "fitting the latent-to-RGB map", len(views), report)).latents
    return latent_to_rgb(latents, torch.stack([view.image for view in views]))
