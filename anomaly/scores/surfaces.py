"""What a gate compares with: training photographs in their crops, and surfaces without a defect."""

from dataclasses import dataclass, replace

import numpy as np

from anomaly.crop import Crop, Cropped, cut, defect_crop, take, to_image, touched
from anomaly.dataset import Defect, read_example
from anomaly.files.folders import image_files
from anomaly.files.photographs import read_photograph
from anomaly.scores.pictures import ring

PHOTOGRAPHS, SURFACES = 30, 12      # of a defect at most
PLACES = 9                          # tried along each side of a photograph


@dataclass(frozen=True)
class Framed:
    """A crop, and what brings a painting of it back into its photograph."""

    view: Cropped
    side: int       # of the crop, in pixels of the photograph
    grey: bool


def in_place(crop: Crop, old: tuple[int, ...], new: tuple[int, ...]) -> Crop:
    """A crop of a photograph of shape old, at the same relative place of one of shape new."""
    top, left = (round((b - crop.side) * (start / (a - crop.side) if a != crop.side else 0.5))
                 for start, a, b in zip((crop.top, crop.left), old, new))
    return Crop(left, top, crop.side)


def beside(mask: np.ndarray, crop: Crop, view: Cropped) -> list[Crop]:
    """Crops of the same photograph in which the view's mask and its ring are without the defect."""
    size = view.mask.shape[-1]
    around = (view.mask | ring(view.mask[None])[0]).numpy()
    tops, lefts = (np.linspace(0, max(0, extent - crop.side), PLACES).astype(int).tolist()
                   for extent in mask.shape)
    tried = [Crop(left, top, crop.side) for top in tops for left in lefts]
    return [some for some in tried if not (touched(mask, some, size) & around).any()]


def frames_of(defect: Defect, size: int, factor: int) -> tuple[list[Framed], list[Framed]]:
    """The training photographs in their crops, and SURFACES, each under a training mask.

    Surfaces are of train/good, at the training crop's relative place. Where there is no such folder
    they are the training photographs' own, beside the defect, as far as they have the room.
    """
    files = [] if defect.normals is None else image_files(defect.normals)
    examples, real, surfaces = defect.examples[:PHOTOGRAPHS], [], []
    for k in range(max(SURFACES if files else 0, len(examples))):
        i = k % len(examples)
        photograph, mask = read_example(examples[i])
        crop = defect_crop(mask, size)
        view = take(photograph, mask, crop, size, factor)
        if i == k:
            real.append(Framed(view, crop.side, photograph.ndim == 2))
        if k >= SURFACES:
            continue
        places = [] if files else beside(mask, crop, view)
        if files:
            photograph = read_photograph(files[k * len(files) // SURFACES])
            places = [in_place(crop, mask.shape, photograph.shape)]
        if places:
            image = to_image(cut(photograph, places[len(places) // 2]), size)
            surfaces.append(Framed(replace(view, image=image), crop.side, photograph.ndim == 2))
    return real, surfaces
