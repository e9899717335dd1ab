"""What is compared: draws of photographs, each with the pairs that were painted from it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from anomaly.dataset import Defect
from anomaly.files.atomic_files import link
from anomaly.files.names import slug
from anomaly.pairs import PairFolder, paint, training_masks
from anomaly.progress import Report, Stop, each, ending
from anomaly.reweight import adaptive
from anomaly.runs import learn
from anomaly.runs.run_folder import MASKED_LOSS, SPATIAL, Run, read_run
from anomaly.training_files import check_same, describe
from evaluation.collection import Collection, Painted, painted, spread
from evaluation.labelled import Labelled, labelled
from evaluation.trials import Draw
from ldm.model import StableDiffusion

PAIRS = 200         # of a defect that detectors learn from, at most
# What a draw is learned without, and how it is painted, if one part of the method is off.
ABLATED: dict[str, tuple[str | None, dict[str, Any]]] = {
    "masked loss off": (MASKED_LOSS, {}),
    "spatial embedding off": (SPATIAL, {}),
    "guidance off": (None, {"guidance": 1.0}),
    "re-weighting instead of guidance": (None, {"weigh": adaptive}),
    "gate off": (None, {"gate": "off"})}


def pairs_of(some: Painted, collection: Collection, report: Report) -> list[Labelled]:
    """What was painted, as detectors see it; ValueError if that is the data itself."""
    wanted = [(d, e) for d in some.defects for e in spread(some.pairs[d.key], PAIRS)]
    for _, example in wanted:
        if example.image in collection.seen:
            raise ValueError(f"{example.image}: a photograph of --data, no pair; --pairs takes a "
                             f"folder of what was painted")
    return [labelled(d.object, d.name, e, collection.resolution)
            for d, e in each(wanted, "reading pairs", len(wanted), report)]


def draw_of(name: str, some: Painted, collection: Collection, into: set[int],
            report: Report) -> Draw:
    """What the run has learned, and what is left to test on; ValueError if nothing is.

    into: the parts of the photographs that are painted into.
    """
    learned = collection.learned_by(some.run)
    good, untouched = list[Path](), list[Path]()
    for object_ in dict.fromkeys(d.object for d in some.defects):
        to_learn, to_test = collection.divided(object_, into)
        for paths, word, remedy in (
                (to_learn, "to learn from", "photographs of other parts to train/good"),
                (to_test, "to test on", "some that nothing is painted into to test/good")):
            if not paths:
                raise ValueError(f"--data: no photographs of {object_} without a defect are left "
                                 f"{word}; add {remedy}")
        good, untouched = good + to_learn, untouched + to_test
    taken = collection.parts_of(good) | into | learned
    tested = []
    for d in some.defects:
        left = [p for p in collection.defects[d.key] if collection.parts[p] not in taken]
        if not left:
            raise ValueError(f"--data: of {d.key} no photograph is left to test on; all "
                             f"{len(collection.defects[d.key])} are learned from, or show parts "
                             f"that are; add others, or name the parts with --parts")
        tested += left
    return Draw(name, min(len(d.examples) for d in some.defects),
                collection.of(e.image for d in some.defects for e in d.examples),
                pairs_of(some, collection, report),
                collection.of(good), collection.of(tested), collection.of(untouched),
                collection.parts, not some.run.config["options"]["no_flip"])


@dataclass(frozen=True)
class Study:
    """How each draw is learned and painted; what is there is kept."""

    sd: StableDiffusion
    draws: int                  # of each number of photographs
    pairs: int                  # painted of each defect
    steps: int | None           # of training, a defect
    flip: bool
    ablation: bool              # and with one part of the method off at a time
    folder: Path
    stop: Stop
    report: Report

    def learned(self, few: list[Defect], seed: int, folder: Path, without: str | None) -> Run:
        """A run in the folder, of these photographs."""
        run = folder / "run"
        if not (run / "preview.jpg").is_file():
            learn(self.sd, few, run, steps=self.steps, flip=self.flip, mask_model=False, seed=seed,
                  resume=(run / "config.json").is_file(), without=without, stop=self.stop,
                  report=self.report)
        check_same(run, read_run(run).config["defects"], describe(run, few))
        return read_run(run)

    def painted(self, run: Run, seed: int, folder: Path, **how: Any) -> Painted:
        """Its pairs, in the folder."""
        pairs = folder / "pairs"
        for _ in paint(self.sd, run, PairFolder(pairs, {"seed": seed}), n=self.pairs,
                       masks=training_masks, seed=seed, stop=self.stop, report=self.report, **how):
            pass
        return painted(run, pairs)


def chosen(defect: Defect, collection: Collection, count: int, turn: float) -> Defect:
    """The defect with some photographs, each of another part; ValueError if there are too few.

    turn: where in the parts to begin, 0 to 1. More photographs contain the fewer.
    """
    parts = list(dict.fromkeys(collection.parts[e.image] for e in defect.examples))
    if count >= len(parts):
        raise ValueError(f"--photographs: {count}, but the {len(defect.examples)} photographs of "
                         f"{defect.key} show {len(parts)} parts, and some must be left to test on; "
                         f"give at most {len(parts) - 1}, or name the parts with --parts")
    order = np.random.default_rng(crc32(defect.key.encode())).permutation(len(parts))
    wanted = [parts[i] for i in np.roll(order, -int(turn * len(parts)))[:count]]
    first = {collection.parts[e.image]: e for e in reversed(defect.examples)}
    return replace(defect, examples=tuple(first[part] for part in wanted))


def chosen_draws(defects: list[Defect], collection: Collection, counts: list[int],
                 study: Study) -> dict[str, list[Defect]]:
    """The defects of each draw, by its name, with the photographs to learn and to paint into."""
    return {f"{count}-{draw}": [replace(chosen(d, collection, count, draw / study.draws),
                                        normals=study.folder / "normals" / slug(d.object))
                                for d in defects]
            for count in counts for draw in range(study.draws)}


def link_normals(collection: Collection, study: Study) -> None:
    """The photographs to paint into, in study.folder; ValueError if it has others."""
    for object_ in collection.good:
        folder = study.folder / "normals" / slug(object_)
        to_learn = {folder / path.name: path for path in collection.divided(object_, set())[0]}
        if folder.is_dir() and (other := set(folder.iterdir()) - to_learn.keys()):
            raise ValueError(f"{min(other)}: painted into before, but --data or --parts has "
                             f"changed since and it is tested now; choose another --out")
        for there, path in to_learn.items():
            if not there.exists():
                link(path, there)


def learned_draws(wanted: dict[str, list[Defect]], collection: Collection,
                  study: Study) -> Iterator[Draw]:
    """Learn and paint each draw, into study.folder."""
    link_normals(collection, study)
    into = collection.parts_of(p for object_ in collection.good
                               for p in collection.divided(object_, set())[0])
    ended = ending(study.report, study.stop)
    for seed, (name, few) in enumerate(wanted.items()):
        seed, folder, ablated = seed % study.draws, study.folder / name, {}
        run = study.learned(few, seed, folder, None)
        draw = draw_of(name, study.painted(run, seed, folder), collection, into, ended)
        for part, (without, how) in ABLATED.items() if study.ablation else ():
            own = folder / slug(part)
            other = run if without is None else study.learned(few, seed, own, without)
            ablated[part] = pairs_of(study.painted(other, seed, own, **how), collection, ended)
        yield replace(draw, ablated=ablated)
