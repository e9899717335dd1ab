"""The mask model: masks of a defect by textual inversion on pictures of its masks. Section 3.4.

    e_m* = argmin E || eps - eps_theta(z_t, t, e_m) ||^2,   z: latent of a white-on-black mask

Training is anomaly/train.py's loop with m = 1. A sampled picture becomes a mask at mid-grey, and is
kept only if its area, its number of components and its contact with the border lie within those of
the real masks.
departs from the released code: it tests one border only, and its empty or misplaced masks are why
defects appear beside the object.
"""

from dataclasses import asdict, dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly.crop import Cropped, defect_crop, take
from anomaly.prompt import learned_context
from anomaly.sampler import Guidance, ddim
from ldm.model import StableDiffusion


def mask_picture(mask: np.ndarray, size: int, factor: int) -> Cropped:
    """The mask in its own crop (no jitter), white on black, every cell counting in the loss."""
    blank = np.zeros(mask.shape, dtype=np.uint8)
    cropped = take(blank, mask, defect_crop(mask, size), size, factor)
    picture = (cropped.mask.float() * 2 - 1).expand(3, -1, -1)
    return replace(cropped, image=picture, cells=torch.ones_like(cropped.cells))


def components(grid: np.ndarray) -> int:
    """Number of 8-connected components of a bool grid."""
    left = {(int(y), int(x)) for y, x in np.argwhere(grid)}
    count = 0
    while left:
        count += 1
        edge = [left.pop()]
        while edge:
            y, x = edge.pop()
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            edge.extend(near)
    return count


@dataclass(frozen=True)
class MaskShape:
    """What is compared between a generated mask and the real ones; each a number."""

    area: float         # share of the crop's pixels
    components: float   # connected, on the latent grid
    border: float       # share of the crop's outermost latent cells


def shape_of(mask: Tensor, factor: int) -> MaskShape:
    """mask (size, size) bool -> its shape."""
    cells = F.max_pool2d(mask[None].float(), factor)[0].bool()
    ring = torch.ones_like(cells)
    ring[1:-1, 1:-1] = False
    return MaskShape(area=float(mask.float().mean()), components=components(cells.numpy()),
                     border=float(cells[ring].float().mean()))


def refusal(mask: Tensor, real: list[MaskShape], factor: int) -> str | None:
    """The first number of the mask's shape that lies beyond the range of the real masks', or None.

    Named by its field of MaskShape.
    """
    shape = asdict(shape_of(mask, factor))
    for name, number in shape.items():
        numbers = [asdict(other)[name] for other in real]
        if not min(numbers) <= number <= max(numbers):
            return name
    return None


@torch.no_grad()
def sample_masks(sd: StableDiffusion, e_m: Tensor, noise: Tensor, steps: int) -> Tensor:
    """e_m (k', d), noise (b, 4, h, w) -> bool (b, size, size): crop masks, none tested yet.

    departs from the released code: no guidance (it has a scale of 5), which narrows what is drawn,
    and masks are wanted as varied as the real ones.
    """
    context = learned_context(sd, e_m[None].expand(len(noise), -1, -1))
    no_guidance = Guidance(1.0, context[:1])
    picture = sd.vae.decode(ddim(sd, noise, context, no_guidance, steps))
    return (picture.mean(dim=1) > 0).cpu()
