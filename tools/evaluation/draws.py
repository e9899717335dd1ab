"""What is compared: draws of photographs, each with the pairs that were painted from it."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from anomaly.dataset import Defect, find_defects
from anomaly.files.atomic_files import link
from anomaly.files.names import slug
from anomaly.pairs import PairFolder, paint, training_masks
from anomaly.progress import Report, Stop
from anomaly.runs import learn
from anomaly.runs.run_folder import read_run
from anomaly.training_files import check_same, describe
from evaluation.collection import Collection, Painted, painted
from evaluation.labelled import labelled
from evaluation.trials import Draw
from ldm.model import StableDiffusion


def draw_of(name: str, some: Painted, collection: Collection) -> Draw:
    """What the run has learned, and what is left to test on; ValueError if nothing is."""
    for image in (image for images in some.pairs.values() for image in images):
        if image in collection.seen:
            raise ValueError(f"{image}: a photograph of --data, no pair; --pairs takes a folder of "
                             f"what was painted")
    learned = [e.image for d in some.defects for e in d.examples]
    into = collection.parts_of(p for p in some.normals if p in collection.parts)
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
    taken = collection.parts_of([*learned, *good]) | into
    tested = []
    for d in some.defects:
        there = collection.defects.get(d.key, [])
        left = [p for p in there if collection.parts[p] not in taken]
        if not left:
            raise ValueError(f"--data: of {d.key} no photograph is left to test on; all "
                             f"{len(there)} are learned from, or show parts that are; add others")
        tested += left
    made = {e.image: (d, e) for d in find_defects(some.folder) for e in d.examples}
    pairs = [labelled(d.object, d.name, made[image][1], collection.resolution)
             for d in some.defects for image in some.pairs[d.key]]
    return Draw(name, min(len(d.examples) for d in some.defects), collection.of(learned), pairs,
                collection.of(good), collection.of(tested), collection.of(untouched),
                collection.parts, not some.run.config["options"]["no_flip"])


@dataclass(frozen=True)
class Study:
    """How many photographs to learn from, and how often."""

    counts: list[int]           # photographs a defect
    draws: int                  # of each
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
                         f"give at most {len(parts) - 1}")
    order = np.random.default_rng(crc32(defect.key.encode())).permutation(len(parts))
    wanted = [parts[i] for i in np.roll(order, -int(turn * len(parts)))[:count]]
    first = {collection.parts[e.image]: e for e in reversed(defect.examples)}
    return replace(defect, examples=tuple(first[part] for part in wanted))


def learned_draws(sd: StableDiffusion, defects: list[Defect], collection: Collection, study: Study,
                  stop: Stop, report: Report) -> Iterator[Draw]:
    """Learn and paint each draw of each count, into study.folder; what is there is kept."""
    wanted = {(count, draw): [replace(chosen(d, collection, count, draw / study.draws),
                                      normals=study.folder / "normals" / slug(d.object))
                              for d in defects]
              for count in study.counts for draw in range(study.draws)}
    for object_ in dict.fromkeys(d.object for d in defects):
        for path in collection.divided(object_, set())[0]:
            there = study.folder / "normals" / slug(object_) / path.name
            if not there.exists():
                link(path, there)
    for (count, draw), few in wanted.items():
        folder = study.folder / f"{count}-{draw}"
        run, pairs = folder / "run", PairFolder(folder / "pairs", {"seed": draw})
        if not (run / "preview.jpg").is_file():
            learn(sd, few, run, steps=study.steps, flip=study.flip, mask_model=False, seed=draw,
                  resume=(run / "config.json").is_file(), stop=stop, report=report)
        check_same(run, read_run(run).config["defects"], describe(run, few))
        for _ in paint(sd, read_run(run), pairs, n=study.pairs, masks=training_masks, seed=draw,
                       stop=stop, report=report):
            pass
        yield draw_of(folder.name, painted(read_run(run), folder / "pairs"), collection)
