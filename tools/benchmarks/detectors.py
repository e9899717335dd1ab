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
from anomaly.dataset import read_example
from anomaly.output.console import Progress
from anomaly.output.files import replacing, write_image
from anomaly.output.sheets import mask_pixels, sheet, to_pixels
from anomaly.output.synthetic.demo import FRAME
from anomaly.output.synthetic.pictures import draw_scene
from benchmarks.compositing import Painted, floats, painted_photographs
from benchmarks.painting import Bench, Row
from benchmarks.segmenter import Segmenter, fit

PAINTED, TESTED = 48, 32                # photographs of each defect to train on, to test on
STEPS, BATCH, WINDOW = 300, 16, 128     # of training; pixels of a side that a detector sees
SEEDS = (0, 1, 2)
REAL, SEEN, FEW, PAIRS, BOTH, PASTED, ADDED = KINDS = (
    f"{PAINTED} real defects", f"{PAINTED} real defects, put through the VAE", "the photographs learned from", "pairs",
    "pairs and the photographs learned from", "pairs, D(E(y)) pasted into normals", "pairs, the change added")
SHOWN = 4                               # real photographs of each defect in the picture


@dataclass(frozen=True)
class Examples:
    """Photographs (n, 3, h, w) with their defects (n, h, w) bool, none of them if they show none, and where to look."""

    pictures: Tensor
    defects: Tensor
    looks: Tensor

    def windows(self, i: Tensor, moved: Tensor) -> tuple[Tensor, Tensor]:
        """Squares of WINDOW pixels of pictures and defects i where to look, moved (n, 2) by halves of a window."""
        cuts = [corner(self.looks[n], by) for n, by in zip(i, moved)]
        return tuple(torch.stack([values[n][..., y:y + WINDOW, x:x + WINDOW] for n, (y, x) in zip(i, cuts)])
                     for values in (self.pictures, self.defects))


def joined(*parts: Examples) -> Examples:
    """All of them."""
    return Examples(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(Examples)))


def corner(look: Tensor, moved: Tensor) -> tuple[int, int]:
    """First row and column of the window round a mask's box, kept inside the picture."""
    left, top, right, bottom = box(look.numpy())
    middle = torch.tensor([top + bottom, left + right]) / 2
    first = (middle + (moved - 1) * WINDOW / 2).round().long()
    row, column = first.clamp(torch.zeros_like(first), torch.tensor(look.shape) - WINDOW).tolist()
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

    @cached_property
    def photographs(self) -> Examples:
        """What the defects were learned from."""
        pictures, masks = zip(*(read_example(e) for d in self.bench.defects for e in d.examples))
        masks = torch.from_numpy(np.stack(masks))
        return Examples(floats(list(pictures)), masks, masks)

    def examples(self, trained_on: str) -> tuple[Examples, Examples]:
        """With and without defects. Pairs are painted in the masks and photographs of the real defects of REAL.

        Normals with D(E(y)) are those photographs, too; of PAIRS and photographs as many are drawn.
        """
        p, none, few = self.painted, torch.zeros_like(self.painted.masks), self.photographs
        real, seen, pairs, added = (Examples(x, p.masks, p.masks) for x in (
            p.real, p.real_seen, p.painted, p.ways()["change added"]))
        surfaces, nothing = (Examples(x, none, p.masks) for x in (self.surfaces, p.nothing))
        as_many = joined(*[few] * (len(pairs.looks) // len(few.looks)))
        return {REAL: (real, surfaces), SEEN: (seen, surfaces), FEW: (few, surfaces), PAIRS: (pairs, surfaces),
                BOTH: (joined(pairs, as_many), surfaces), PASTED: (pairs, joined(surfaces, nothing)),
                ADDED: (added, surfaces)}[trained_on]

    def key(self, trained_on: str, seed: int) -> str:
        """All that a detector is made from."""
        return f"detector/{trained_on}/{seed}/{self.row.key}/{PAINTED}, {STEPS} x {BATCH}, {WINDOW}"

    def net(self, trained_on: str, seed: int) -> Segmenter:
        """Trained once, then read."""
        path = self.bench.folder / f"detector-{crc32(self.key(trained_on, seed).encode()):08x}.pt"
        if not path.exists():
            with replacing(path) as temporary:
                torch.save(self.train(trained_on, seed).state_dict(), temporary)
        net = Segmenter().eval()
        net.load_state_dict(torch.load(path, weights_only=True))
        return net

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
        """The scores of each defect."""
        key = f"{self.key(trained_on, seed)}/tested on {TESTED}, false alarms"
        if key not in self.bench.found:
            net, found = self.net(trained_on, seed), {}
            with Progress(f"testing the detector: {trained_on}, seed {seed}", len(self.tested)) as progress:
                for name, p in progress.each(self.tested.items()):
                    found[name] = scores(net, p)
            self.bench.keep(key, found)
        return self.bench.found[key]

    def picture(self, trained_on: str) -> np.ndarray:
        """A row a defect: real photographs, each with its mask and what the first seed's detector makes of it."""
        net, rows = self.net(trained_on, SEEDS[0]), []
        for key, p in self.tested.items():
            tiles = [(to_pixels(x), mask_pixels(m), to_pixels(2 * y.expand(3, -1, -1) - 1))
                     for x, m, y in zip(p.real, p.masks, marked(net, p.real[:SHOWN]))]
            rows.append((f"{key}: real, mask, found by a detector trained on {trained_on}", sum(tiles, ())))
        return sheet(rows)


@torch.no_grad()
def marked(net: Segmenter, pictures: Tensor) -> Tensor:
    """How sure a detector is of a defect at each pixel of whole photographs: (n, 3, h, w) -> (n, h, w), 0 to 1."""
    return torch.cat([torch.sigmoid(net(x)) for x in pictures.split(BATCH)])


def scores(net: Segmenter, p: Painted) -> list[float]:
    """Average precision of the pixels of photographs with the defect and without.

    And which share is called defect: of the real defect, of the rest of its photograph, of D(E(y)) in its mask; and
    the share of photographs without defect in which any pixel is.
    """
    real, nothing, bare = (marked(net, x) for x in (p.real, p.nothing, p.normal))
    truth = torch.stack([p.masks, torch.zeros_like(p.masks)])
    parts = real[p.masks], real[~p.masks], nothing[p.masks], bare.amax(dim=(1, 2))
    return [float(average_precision_score(truth.flatten(), torch.stack([real, bare]).flatten())),
            *(float((part > 0.5).double().mean()) for part in parts)]


def detectors(bench: Bench, row: Row) -> Iterator[list[str]]:
    """A line a way to train and defect; each seed's figure. Then writes detected.png."""
    trained = Detectors(bench, row)
    for trained_on in KINDS:
        runs = [trained.measured(trained_on, seed) for seed in SEEDS]
        for defect in bench.defects:
            yield [trained_on, defect.key, *(" / ".join(f"{x:.2f}" for x in column)
                                             for column in zip(*(run[defect.key] for run in runs)))]
    write_image(bench.folder / "detected.png", trained.picture(PAIRS))
