"""Ways to put what was painted into its photograph, for bench.py details.

Photographs here are whole ones, not their crops, and nothing but what was painted went through the VAE.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly.crop import defect_crop
from anomaly.dataset import Defect
from anomaly.output.console import Progress
from anomaly.output.composite import composite
from anomaly.output.quality import colour_share, contrast_energy, contrast_ratio, histogram_share, share
from anomaly.output.synthetic.demo import FRAME
from benchmarks.material import material, scenes
from benchmarks.painting import Bench, Numbers, Row
from benchmarks.tables import interval, shown

FAINT = 0.1     # change, of values from -1 to 1, over which the mixed composite forgets the surface by a factor of e


@dataclass(frozen=True)
class Painted:
    """Scenes of a defect, each in the photograph's own pixels: (n, 3, h, w) in [-1, 1], masks (n, h, w) bool."""

    masks: Tensor
    normal: Tensor          # y
    real: Tensor
    painted: Tensor         # D(z) in the mask, as the tools write it
    nothing: Tensor         # D(E(y)) in the mask
    real_seen: Tensor       # D(E(real)) in the mask, real being the photograph with the defect

    def ways(self) -> dict[str, Tensor]:
        """Composites, all of them y outside the mask."""
        lost, change = self.normal - self.nothing, self.painted - self.nothing
        near = F.avg_pool2d(change.abs().mean(dim=1, keepdim=True), 3, 1, padding=1, count_include_pad=False)
        return {"the real defect through the VAE": self.real_seen, "replaced (the tools)": self.painted,
                "change added": (self.painted + lost).clamp(-1, 1),
                "mixed": (self.painted + (-near / FAINT).exp() * lost).clamp(-1, 1)}


def floats(pictures: list[np.ndarray]) -> Tensor:
    """uint8 (h, w, 3) -> (n, 3, h, w) in [-1, 1]."""
    return torch.from_numpy(np.stack(pictures)).movedim(-1, 1).float() / 127.5 - 1


@torch.no_grad()
def painted_photographs(bench: Bench, row: Row | None, label: str, defect: Defect, count: int) -> Painted:
    """The first scenes of a label, painted as the row says; None: with D(E(y)) in the place of D(z)."""
    seen = material(bench.sd, label, defect.object, defect.name, count, bench.size)
    pictures = seen.normal_seen
    if row:
        row = bench.settled(row, defect)
        with Progress(f"painting {count} photographs: {defect.key}", 1) as progress:
            pictures = bench.paint(row, seen, bench.context(row, defect, seen), 0)
            progress.step()
    masks, columns = [], []
    for i, scene in zip(range(count), scenes(label, defect.object, defect.name)):
        real, mask = scene.render(FRAME)
        normal, crop = replace(scene, defect=None).render(FRAME)[0], defect_crop(mask, bench.size)
        pasted = [composite(normal, mask, crop, patch) for patch in
                  (pictures[i], seen.normal_seen[i], seen.real_seen[i])]
        masks.append(torch.from_numpy(mask))
        columns.append([normal, real, *pasted])
    return Painted(torch.stack(masks), *map(floats, zip(*columns)))


def fine(pictures: Tensor) -> Tensor:
    """What a mean of 3 x 3 takes away: (b, 3, h, w), zero at the edge."""
    return F.pad(pictures[:, :, 1:-1, 1:-1] - F.avg_pool2d(pictures, 3, stride=1), (1, 1, 1, 1))


def inner(masks: Tensor) -> Tensor:
    """The pixels whose 3 x 3 lies in the mask and in the picture, (b, h, w) bool: across a border, fine is the seam.

    ValueError if a mask is so thin that it has none.
    """
    found = F.max_pool2d(F.pad((~masks)[:, None].float(), (1, 1, 1, 1), value=1.0), 3, stride=1)[:, 0] == 0
    if not found.flatten(1).any(dim=1).all():
        raise ValueError("a mask is thinner than 3 pixels; its texture cannot be measured")
    return found


def fine_energy(pictures: Tensor, masks: Tensor) -> Tensor:
    """Mean square of fine inside each mask (b, h, w), (b,)."""
    m = inner(masks)
    return (fine(pictures).square().mean(dim=1) * m).sum(dim=(1, 2)) / m.sum(dim=(1, 2))


def shows_through(pictures: Tensor, normal: Tensor, masks: Tensor) -> Tensor:
    """Correlation of fine with that of the photographs without defect inside each mask, (b,)."""
    return torch.stack([torch.corrcoef(torch.stack([a[:, m].flatten(), b[:, m].flatten()]))[0, 1]
                        for a, b, m in zip(fine(pictures), fine(normal), inner(masks))])


def compared(bench: Bench, row: Row, defect: Defect) -> dict[str, Numbers]:
    """Of each composite, measured in the photographs themselves."""
    count = bench.scale.single[0]
    key = f"composites/{defect.key}/{count}/{row.key}/{FAINT}, inside"
    if key not in bench.found:
        p = painted_photographs(bench, row, "tune", defect, count)
        found = {}
        for name, pictures in {"the real defect": p.real, **p.ways()}.items():
            colour, whole_colour = colour_share(pictures, p.normal, p.real, p.masks)
            histogram, whole_histogram = histogram_share(pictures, p.normal, p.real, p.masks)
            columns = {"colour": colour, "whole colour": whole_colour, "histogram": histogram,
                       "whole histogram": whole_histogram, "contrast": contrast_energy(pictures, p.masks),
                       "real contrast": contrast_energy(p.real, p.masks), "fine": fine_energy(pictures, p.masks),
                       "real fine": fine_energy(p.real, p.masks),
                       "shows through": shows_through(pictures, p.normal, p.masks)}
            found[name] = {column: values.double().tolist() for column, values in columns.items()}
        bench.keep(key, found)
    return bench.found[key]


def composites(bench: Bench, row: Row) -> Iterator[list[str]]:
    """A line a composite and defect."""
    for defect in bench.defects:
        for name, n in compared(bench, row, defect).items():
            yield [name, defect.key, shown(interval(share, n["colour"], n["whole colour"])),
                   shown(interval(share, n["histogram"], n["whole histogram"])),
                   shown(interval(contrast_ratio, n["contrast"], n["real contrast"])),
                   shown(interval(contrast_ratio, n["fine"], n["real fine"])),
                   shown(interval(lambda x: x, n["shows through"]))]
