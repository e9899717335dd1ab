"""What is compared: draws of photographs, each with the pairs that were painted from it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from anomaly.dataset import Defect
from anomaly.files.atomic_files import link
from anomaly.files.names import slug
from anomaly.pairs import PairFolder, paint, training_masks
from anomaly.progress import Report, Stop, each, ending
from anomaly.runs import learn
from anomaly.runs.run_folder import read_run
from anomaly.training_files import check_same, describe
from evaluation.collection import Collection, Painted, painted, spread
from evaluation.labelled import labelled
from evaluation.trials import Draw
from ldm.model import StableDiffusion

PAIRS = 200         # of a defect that detectors learn from, at most


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
    wanted = [(d, e) for d in some.defects for e in spread(some.pairs[d.key], PAIRS)]
    for _, example in wanted:
        if example.image in collection.seen:
            raise ValueError(f"{example.image}: a photograph of --data, no pair; --pairs takes a "
                             f"folder of what was painted")
    pairs = [labelled(d.object, d.name, e, collection.resolution)
             for d, e in each(wanted, "reading pairs", len(wanted), report)]
    return Draw(name, min(len(d.examples) for d in some.defects),
                collection.of(e.image for d in some.defects for e in d.examples), pairs,
                collection.of(good), collection.of(tested), collection.of(untouched),
                collection.parts, not some.run.config["options"]["no_flip"])


@dataclass(frozen=True)
class Study:
    """How each draw is learned and painted."""

    draws: int                  # of each number of photographs
    pairs: int                  # painted of each defect
    steps: int | None           # of training, a defect
    flip: bool
    folder: Path


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


def learned_draws(sd: StableDiffusion, wanted: dict[str, list[Defect]], collection: Collection,
                  study: Study, stop: Stop, report: Report) -> Iterator[Draw]:
    """Learn and paint each draw, into study.folder; what is there is kept."""
    link_normals(collection, study)
    into = collection.parts_of(p for object_ in collection.good
                               for p in collection.divided(object_, set())[0])
    for seed, (name, few) in enumerate(wanted.items()):
        seed %= study.draws
        run, pairs = study.folder / name / "run", study.folder / name / "pairs"
        if not (run / "preview.jpg").is_file():
            learn(sd, few, run, steps=study.steps, flip=study.flip, mask_model=False, seed=seed,
                  resume=(run / "config.json").is_file(), stop=stop, report=report)
        check_same(run, read_run(run).config["defects"], describe(run, few))
        for _ in paint(sd, read_run(run), PairFolder(pairs, {"seed": seed}), n=study.pairs,
                       masks=training_masks, seed=seed, stop=stop, report=report):
            pass
        yield draw_of(name, painted(read_run(run), pairs), collection, into,
                      ending(report, stop))
