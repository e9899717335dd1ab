"""A trial: one detector, trained in one of five ways from one draw of photographs, and tested.

All ways get the same steps, the same changes to their windows and the same share of windows with a
defect; where two sources are joined, each gives half of these.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from zipfile import BadZipFile
from zlib import crc32

import numpy as np

from anomaly.files.atomic_files import replacing
from anomaly.files.remarks import remark
from anomaly.progress import Report, each
from anomaly.scores.detection import Scored, photograph_numbers, pixel_numbers
from evaluation.detector import predicted, trained
from evaluation.labelled import Labelled, with_other_mask
from evaluation.pasting import pasted

REAL, PASTED, PAIRS, BOTH, SHUFFLED = WAYS = (
    "real only", "real + crop-and-paste", "pairs only", "real + pairs",
    "real + pairs, masks shuffled")
VERSION = 2         # of what a trial gives: files of others are made anew
LEVELS = 200        # scores at which a trial's curve is kept for the intervals
ALIKE = 0.2         # share of two masks in common above which one is no control for the other
ARRAYS = ("found", "alarms", "parts", "classes")
NUMBERS = ("pixel_auroc", "pixel_ap", "pixel_f1", "pro", "image_auroc", "image_ap", "false_alarms")


@dataclass(frozen=True)
class Ablated:
    """Pairs of a draw, made with a part of the method off."""

    against: str            # what a detector trained on them is compared with
    pairs: list[Labelled]


@dataclass(frozen=True)
class Draw:
    """Which photographs are learned from, what was painted from them, and what is tested."""

    name: str
    photographs: int            # real ones a defect; the fewest, if they differ
    real: list[Labelled]
    pairs: list[Labelled]
    good: list[Labelled]        # without defect, to learn from
    tested: list[Labelled]      # with a defect, of parts that were not learned from
    untouched: list[Labelled]   # without, of parts that were neither learned from nor painted into
    parts: dict[Path, int]
    flip: bool                  # parts may be mirrored
    ablated: dict[str, Ablated] = field(default_factory=dict)       # by what is off

    @property
    def sha256(self) -> str:
        """Of all that a trial depends on."""
        found = hashlib.sha256(f"{VERSION} {self.name} {self.flip}".encode())
        for some in (self.real, self.pairs, self.good, self.tested, self.untouched):
            for p in some:
                found.update(f"{p.key} {p.pixels.shape} {self.parts.get(p.path)}".encode())
                found.update(p.pixels.tobytes() + p.marked.tobytes())
        return found.hexdigest()

    @property
    def defects(self) -> list[str]:
        """object/defect of each, in order."""
        return list(dict.fromkeys(photograph.key for photograph in self.real))

    def of(self, key: str) -> tuple[list[Labelled], list[Labelled]]:
        """The test photographs of a defect: with it, and of its object without."""
        return ([p for p in self.tested if p.key == key],
                [p for p in self.untouched if p.object == key.split("/")[0]])


@dataclass(frozen=True)
class Outcome:
    """What a trial's detector made of the test photographs of one defect."""

    numbers: dict[str, float]   # by NUMBERS
    # (photographs, LEVELS): pixels between two scores, from the highest; the defective come first.
    found: np.ndarray           # marked
    alarms: np.ndarray          # not marked
    parts: np.ndarray           # (photographs,) the part that each shows
    classes: np.ndarray         # (defective,) which of its object's defects has the highest score
    maps: list[np.ndarray]      # (h, w) uint8: what it made of each defective photograph

    def arrays(self, key: str) -> dict[str, np.ndarray]:
        """As they are kept in a file."""
        return {f"numbers {key}": np.array([self.numbers[name] for name in NUMBERS]),
                **{f"{name} {key}": getattr(self, name) for name in ARRAYS},
                **{f"map {i} {key}": some for i, some in enumerate(self.maps)}}


@dataclass(frozen=True)
class Trial:
    """What came of it, by defect."""

    draw: Draw
    way: str
    seed: int
    tested: dict[str, Outcome]


def many_pasted(draw: Draw, most: int) -> list[Labelled]:
    """For every pair a real defect pasted into a photograph to learn from, at most so many."""
    rng, found = np.random.default_rng(crc32(f"paste/{draw.name}".encode())), list[Labelled]()
    for key in draw.defects:
        real = [p for p in draw.real if p.key == key]
        good = [p for p in draw.good if p.object == real[0].object]
        count = min(most, sum(p.key == key for p in draw.pairs))
        some = [pasted(real[k % len(real)], [good[i] for i in rng.permutation(len(good))],
                       draw.flip, rng) for k in range(count)]
        kept = [p for p in some if p is not None]
        if not kept:
            remark(real[0].path, "fits into no photograph; it is pasted nowhere")
        found += kept or real
    return found


def many_shuffled(draw: Draw) -> list[Labelled]:
    """Each pair with the mask of another of its defect, where that is another place."""
    found = []
    for key in draw.defects:
        some = [p for p in draw.pairs if p.key == key]
        order = np.random.default_rng(crc32(f"shuffle/{draw.name}".encode())).permutation(len(some))
        for i, j in zip(order, np.roll(order, 1)):
            other = with_other_mask(some[i], some[j])
            own, new = some[i].marked > 0, other.marked > 0
            if (own & new).sum() > ALIKE * (own | new).sum():       # one mask for all, in one place
                half = [n // 2 for n in own.shape]
                other = replace(other, marked=np.roll(other.marked, half, axis=(0, 1)))
            found.append(other)
    return found


def sources(draw: Draw, way: str) -> list[list[Labelled]]:
    """What a way learns defects from."""
    if way == PASTED:
        return [draw.real, many_pasted(draw, len(draw.pairs))]
    if way == SHUFFLED:
        return [draw.real, many_shuffled(draw)]
    return {REAL: [draw.real], PAIRS: [draw.pairs], BOTH: [draw.real, draw.pairs]}[way]


def histograms(maps: list[Scored]) -> tuple[np.ndarray, np.ndarray]:
    """Marked pixels and others of each map between LEVELS scores, of which each has as many."""
    marked = np.sort(np.concatenate([m.scores[m.marked > 0] for m in maps]))[::-1]
    levels = np.unique(marked[np.linspace(0, len(marked) - 1, LEVELS).astype(int)])
    found, alarms = np.zeros((2, len(maps), LEVELS), np.float32)
    for i, m in enumerate(maps):
        bins = len(levels) - np.searchsorted(levels, m.scores.ravel(), side="right")
        inside = bins < len(levels)     # what lies below all that is marked changes no precision
        for out, weight in ((found, m.marked), (alarms, m.counted - m.marked)):
            out[i] = np.bincount(bins[inside], weight.ravel()[inside], LEVELS)
    return found, alarms


def tested(draw: Draw, key: str, maps: dict[Path, np.ndarray]) -> Outcome:
    """The numbers of a defect; maps (defects, h, w) by photograph."""
    defective, good = draw.of(key)
    scored = [[p.scored(maps[p.path].sum(axis=0)) for p in some] for some in (defective, good)]
    own = [i for i, other in enumerate(draw.defects) if other.split("/")[0] == key.split("/")[0]]
    return Outcome({**pixel_numbers(sum(scored, [])),
                   **photograph_numbers(*([m.highest for m in some] for some in scored))},
                  *histograms(sum(scored, [])),
                  np.array([draw.parts[p.path] for p in (*defective, *good)]),
                  np.array([max(own, key=lambda i: p.scored(maps[p.path][i]).highest)
                            for p in defective]),
                  [np.round(m.scores * 255).astype(np.uint8) for m in scored[0]])


def kept(path: Path, keys: list[str]) -> dict[str, Outcome] | None:
    """What a file has of each defect; None if there is none, or a damaged one."""
    try:
        with np.load(path) as file:
            return {key: Outcome(dict(zip(NUMBERS, file[f"numbers {key}"].tolist())),
                                 *(file[f"{name} {key}"] for name in ARRAYS),
                                 [file[f"map {i} {key}"]
                                  for i in range(len(file[f"classes {key}"]))])
                    for key in keys}
    except (OSError, ValueError, KeyError, BadZipFile):
        return None


def trial(draw: Draw, way: str, seed: int, steps: int, device: str, path: Path) -> Trial:
    """The trial, or what a file has kept of it."""
    found = kept(path, draw.defects)
    if found is None:
        net = trained(sources(draw, way), draw.good, draw.defects, steps, draw.flip, seed, device)
        maps = {p.path: predicted(net, p, device) for p in (*draw.tested, *draw.untouched)}
        found = {key: tested(draw, key, maps) for key in draw.defects}
        with replacing(path) as temporary, open(temporary, "wb") as file:
            np.savez_compressed(file, **{name: values for key, some in found.items()
                                         for name, values in some.arrays(key).items()})
    return Trial(draw, way, seed, found)


def trials(draw: Draw, seeds: int, steps: int, device: str, folder: Path,
           report: Report) -> Iterator[Trial]:
    """Every way with every seed, and pairs alone where a part of the method was off."""
    wanted = [(way, draw, way) for way in WAYS]
    wanted += [(name, replace(draw, pairs=a.pairs), PAIRS) for name, a in draw.ablated.items()]
    todo = list(product(wanted, range(seeds)))
    for (name, some, way), seed in each(todo, f"training detectors, {draw.name}", len(todo),
                                        report):
        kept_in = folder / f"{some.sha256[:16]}-{WAYS.index(way)}-{seed}-{steps}.npz"
        yield replace(trial(some, way, seed, steps, device, kept_in), draw=draw, way=name)
