"""What painted defects are compared with: new drawn scenes, each with its defect and without.

The tools have not seen them, and scenes of one label are none of another's: one set to tune on, one to report.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from anomaly.crop import Cropped, defect_crop, take
from anomaly.output.quality import colour_share, contrast_energy, fill, histogram_share, leak
from anomaly.output.synthetic.defects import DEFECTS
from anomaly.output.synthetic.demo import FRAME
from anomaly.output.synthetic.pictures import Scene, draw_scene
from ldm.model import StableDiffusion

BATCH = 16
WIDE = 2.5          # margin of crops in which most defects are off the centre, in the place of crop.MARGIN
BRANCH = 0.02       # a branched shape is a crack, this much wider on each side, in frames


@dataclass(frozen=True)
class Material:
    """Normal and real crops of the same scenes, and both through the VAE, (n, 3, size, size)."""

    normal: list[Cropped]
    real: list[Cropped]
    masks: Tensor           # (n, size, size) bool
    normal_seen: Tensor
    real_seen: Tensor

    @property
    def cells(self) -> Tensor:
        """m on the latent grid, (n, h, w) bool."""
        return torch.stack([crop.cells for crop in self.normal])


@torch.no_grad()
def encoded(sd: StableDiffusion, crops: list[Cropped]) -> Tensor:
    """The crops' latents."""
    images = torch.stack([c.image for c in crops]).to(sd.device)
    return torch.cat([sd.vae.encode(x)[0] for x in images.split(BATCH)])


@torch.no_grad()
def through_vae(sd: StableDiffusion, crops: list[Cropped]) -> Tensor:
    """The crops' pictures, encoded and decoded."""
    return torch.cat([sd.vae.decode(x) for x in encoded(sd, crops).split(BATCH)])


def branched(scene: Scene, rng: np.random.Generator) -> Scene:
    """The scene with its defect in the shape of a wide crack."""
    crack = DEFECTS["crack"](rng, rng.uniform(0.35, 0.65, 2), rng.uniform(0.12, 0.2))
    return replace(scene, defect=replace(scene.defect, shape=lambda view: crack.shape(view) - BRANCH))


def scenes(label: str, product: str, defect: str, shape: str = "own") -> Iterator[Scene]:
    """Endless scenes of a label; shape: own or branched."""
    rng = np.random.default_rng(crc32(f"{label}/{product}/{defect}".encode()))
    while True:
        scene = draw_scene(rng, product, defect)
        yield branched(scene, rng) if shape == "branched" else scene


def material(sd: StableDiffusion, label: str, product: str, defect: str, count: int, size: int,
             shape: str = "own", wide: bool = False) -> Material:
    """The first `count` scenes of a label in their crops; wide: the defect anywhere in a larger one."""
    normal, real, rng = [], [], np.random.default_rng(0)
    for _, scene in zip(range(count), scenes(label, product, defect, shape)):
        image, mask = scene.render(FRAME)
        crop = defect_crop(mask, size, rng, WIDE) if wide else defect_crop(mask, size)
        real.append(take(image, mask, crop, size, sd.vae.config.factor))
        bare = replace(scene, defect=None).render(FRAME)[0]
        normal.append(take(bare, mask, crop, size, sd.vae.config.factor))
    return Material(normal, real, torch.stack([c.mask for c in normal]), through_vae(sd, normal), through_vae(sd, real))


def measure(painted: Tensor, nothing: Tensor, scene: Material) -> dict[str, list[float]]:
    """Every measure of a painting of all the scenes, a list over them; nothing: painted with an empty prompt."""
    masks, normal, real = scene.masks, scene.normal_seen, scene.real_seen
    colour, whole_colour = colour_share(painted, normal, real, masks)
    histogram, whole_histogram = histogram_share(painted, normal, real, masks)
    found = {"colour": colour, "whole colour": whole_colour, "histogram": histogram,
             "whole histogram": whole_histogram, "fill": fill(painted, normal, nothing, masks),
             "real fill": fill(real, normal, nothing, masks), "contrast": contrast_energy(painted, masks),
             "real contrast": contrast_energy(real, masks), "leak": leak(painted, normal, masks)}
    return {name: values.double().tolist() for name, values in found.items()}
