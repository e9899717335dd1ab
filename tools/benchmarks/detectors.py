"""What a detector learns of pairs, for bench.py details: the defect, or that something went through the VAE.

A pair has the photograph's own pixels outside the mask and decoded ones inside, so that a detector could learn to see
the VAE's blur. It has, if it marks D(E(y)) in a photograph without defect.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from zlib import crc32

import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor

from anomaly.crop import box
from anomaly.output.synthetic.demo import FRAME
from anomaly.output.synthetic.pictures import draw_scene
from benchmarks.compositing import Painted, floats, painted_photographs
from benchmarks.painting import Bench, Row
from benchmarks.segmenter import Segmenter, fit

PAINTED, TESTED = 48, 32                # photographs of each defect to train on, to test on
STEPS, BATCH, WINDOW = 300, 16, 128     # of training; pixels of a side that a detector sees
SEEDS = (0, 1, 2)
REAL, PAIRS, PASTED, ADDED = ("real defects", "pairs", "pairs, D(E(y)) pasted into normals", "pairs, the change added")


@dataclass(frozen=True)
class Examples:
    """Photographs (n, 3, h, w) with their defects (n, h, w) bool, none of them if they show none, and where to look."""

    pictures: Tensor
    defects: Tensor
    looks: Tensor

    def windows(self, i: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Squares of WINDOW pixels of pictures and defects i round where to look, moved (n, 2) by halves of a window."""
        cuts = [corner(self.looks[n], by) for n, by in zip(i, moved)]
        return tuple(torch.stack([values[n][..., y:y + WINDOW, x:x + WINDOW] for n, (y, x) in zip(i, cuts)])
                     for values in (self.pictures, self.defects))


def corner(look: Tensor, moved: Tensor) -> tuple[int, int]:
    """First row and column of the window round a mask's box, kept inside the picture."""
    left, top, right, bottom = box(look.numpy())
    middle = torch.tensor([top + bottom, left + right]) / 2
    row, column = (middle + (moved - 1) * WINDOW / 2).round().long().clamp(0, len(look) - WINDOW).tolist()
    return row, column


def without_defects(product: str, count: int) -> Tensor:
    """Photographs without defect that nothing was done to, (n, 3, h, w)."""
    rng = np.random.default_rng(crc32(f"detector/{product}".encode()))
    return floats([draw_scene(rng, product, None).render(FRAME)[0] for _ in range(count)])


class Detectors:
    """Trained on photographs of all defects; their photographs are painted when the first is."""

    def __init__(self, bench: Bench, row: Row):
        self.bench, self.row = bench, row

    @cached_property
    def painted(self) -> Painted:
        """What to learn from, all defects'."""
        of = [painted_photographs(self.bench, self.row, "detector", d, PAINTED) for d in self.bench.defects]
        return Painted(*(torch.cat([getattr(p, field.name) for p in of]) for field in fields(Painted)))

    @cached_property
    def surfaces(self) -> Tensor:
        """Photographs without defects, as many."""
        return torch.cat([without_defects(d.object, PAINTED) for d in self.bench.defects])

    @cached_property
    def tested(self) -> dict[str, Painted]:
        """Each defect's photographs to test on."""
        return {d.key: painted_photographs(self.bench, None, "report", d, TESTED) for d in self.bench.defects}

    def examples(self, trained_on: str) -> tuple[Examples, Examples]:
        """With and without defects."""
        p, none = self.painted, torch.zeros_like(self.painted.masks)
        pictures = {REAL: p.real, ADDED: p.ways()["change added"]}
        normal = [Examples(self.surfaces, none, p.masks)]
        if trained_on == PASTED:
            normal.append(Examples(p.nothing, none, p.masks))
        return (Examples(pictures.get(trained_on, p.painted), p.masks, p.masks),
                Examples(*(torch.cat([getattr(n, field.name) for n in normal]) for field in fields(Examples))))

    def train(self, trained_on: str, seed: int) -> Segmenter:
        """Half of each batch shows defects; windows are anywhere round them, and mirrored."""
        kinds = self.examples(trained_on)

        def batch() -> tuple[Tensor, Tensor]:
            parts = [kind.windows(torch.randint(len(kind.looks), (BATCH // 2,)), 1.2 * torch.rand(BATCH // 2, 2) - 0.6)
                     for kind in kinds]
            mirrored = [d for d in (-1, -2) if torch.rand(1) < 0.5]
            pictures, defects = (torch.cat(part).flip(mirrored) for part in zip(*parts))
            return pictures, defects.float()

        return fit(seed, STEPS, batch, f"training a detector: {trained_on}, seed {seed}")

    def measured(self, trained_on: str, seed: int) -> dict[str, list[float]]:
        """Of each defect: average precision of the pixels of real photographs with the defect and without.

        And which share of the mask is called defect: of a real defect, of D(E(y)) pasted there, of the surface itself.
        """
        key = f"detector/{trained_on}/{seed}/{self.row.key}/{PAINTED}, {STEPS}, {TESTED}"
        if key not in self.bench.found:
            net, found = self.train(trained_on, seed), {}
            for name, p in self.tested.items():
                every, middle = torch.arange(TESTED), torch.zeros(TESTED, 2)
                seen = [Examples(x, p.masks, p.masks).windows(every, middle) for x in (p.real, p.nothing, p.normal)]
                with torch.no_grad():
                    marked = [torch.sigmoid(net(pictures)) for pictures, _ in seen]
                masks = seen[0][1]
                truth = torch.stack([masks, torch.zeros_like(masks)])
                found[name] = [float(average_precision_score(truth.flatten(), torch.stack(marked[::2]).flatten())),
                               *(float((m[masks] > 0.5).double().mean()) for m in marked)]
            self.bench.keep(key, found)
        return self.bench.found[key]


def detectors(bench: Bench, row: Row) -> Iterator[list[str]]:
    """A line a way to train and defect; each seed's figure."""
    trained = Detectors(bench, row)
    for trained_on in (REAL, PAIRS, PASTED, ADDED):
        runs = [trained.measured(trained_on, seed) for seed in SEEDS]
        for defect in bench.defects:
            yield [trained_on, defect.key, *(" / ".join(f"{x:.2f}" for x in column)
                                             for column in zip(*(run[defect.key] for run in runs)))]
