"""What is compared: draws of photographs, each with the pairs that were painted from it."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np

from anomaly.dataset import Defect
from anomaly.files.atomic_files import link
from anomaly.files.folders import image_files
from anomaly.files.names import slug
from anomaly.painter import Weigh
from anomaly.pairs import PairFolder, objects_found, paint, training_masks
from anomaly.progress import Report, Stop, each, ending
from anomaly.reweight import adaptive
from anomaly.runs import learn
from anomaly.runs.run_folder import Run, read_run
from anomaly.training_files import check_same, describe, sha256
from evaluation.collection import Collection, Painted, painted, spread
from evaluation.labelled import Labelled, labelled
from evaluation.trials import PAIRS, Ablated, Draw
from ldm.model import StableDiffusion

MOST = 200          # pairs of a defect that detectors learn from, at most


@dataclass(frozen=True)
class Method:
    """How a draw is learned and painted; by default as the tools do."""

    against: str = PAIRS            # what a detector trained on its pairs is compared with
    masked_loss: bool = True
    spatial: bool = True
    guidance: float | None = None   # None: as training found it; 0: the prompt is empty
    weigh: Weigh | None = None
    gate: str = "mark"

    @property
    def learned_otherwise(self) -> bool:
        """It needs a run of its own."""
        return not (self.masked_loss and self.spatial)


WHOLE = Method()
GUIDANCE_OFF, GATE_OFF = "guidance off", "gate off"
ABLATIONS = {
    "masked loss off": Method(masked_loss=False),
    "spatial embedding off": Method(spatial=False),
    GUIDANCE_OFF: Method(guidance=1.0),
    "guidance off, adaptive re-weighting on": Method(GUIDANCE_OFF, guidance=1.0, weigh=adaptive),
    GATE_OFF: Method(gate="off"),
    "gate off, empty prompt": Method(GATE_OFF, guidance=0.0, gate="off")}


@dataclass(frozen=True)
class Split:
    """The photographs that detectors learn from beside those of the run, and those of the test."""

    good: list[Path]            # without defect, to learn from
    tested: list[Path]          # with a defect, of parts that were not learned from
    untouched: list[Path]       # without, of parts that were neither learned from nor painted into


def split_of(defects: Iterable[Defect], collection: Collection, learned: set[int],
             into: set[int]) -> Split:
    """Of the defects' objects; ValueError if nothing is left to learn from or to test on.

    learned: the parts with a defect that are not to be tested; into: those painted into.
    """
    found = Split([], [], [])
    for object_ in dict.fromkeys(d.object for d in defects):
        to_learn, to_test = collection.divided(object_, into)
        to_test = [path for path in to_test if collection.parts[path] not in learned]
        for paths, word, remedy in (
                (to_learn, "to learn from", "photographs of other parts to train/good"),
                (to_test, "to test on", "some that nothing is painted into to test/good")):
            if not paths:
                raise ValueError(f"--data: no photographs of {object_} without a defect are left "
                                 f"{word}; add {remedy}")
        found.good.extend(to_learn)
        found.untouched.extend(to_test)
    taken = collection.parts_of(found.good) | into | learned
    for d in defects:
        left = [p for p in collection.defects[d.key] if collection.parts[p] not in taken]
        if not left:
            raise ValueError(f"--data: of {d.key} no photograph is left to test on; all "
                             f"{len(collection.defects[d.key])} are learned from, or show parts "
                             f"that are; add others, or name the parts with --parts")
        found.tested.extend(left)
    return found


def pairs_of(some: Painted, collection: Collection, report: Report) -> list[Labelled]:
    """What was painted, as detectors see it; ValueError if that is the data itself."""
    wanted = [(d, e) for d in some.defects for e in spread(some.pairs[d.key], MOST)]
    for _, example in wanted:
        if example.image in collection.seen:
            raise ValueError(f"{example.image}: a photograph of --data, no pair; --pairs takes a "
                             f"folder of what was painted")
    return [labelled(d.object, d.name, e, collection.resolution)
            for d, e in each(wanted, "reading pairs", len(wanted), report)]


def draw_of(name: str, some: Painted, collection: Collection, split: Split,
            report: Report) -> Draw:
    """What the run has learned, what was painted from it, and what is left to test on."""
    return Draw(name, min(len(d.examples) for d in some.defects),
                collection.of(e.image for d in some.defects for e in d.examples),
                pairs_of(some, collection, report), collection.of(split.good),
                collection.of(split.tested), collection.of(split.untouched), collection.parts,
                not some.run.config["options"]["no_flip"])


def painted_draws(made: list[Painted], collection: Collection, report: Report) -> Iterator[Draw]:
    """A draw for each run and its pairs."""
    for some in made:
        yield draw_of(str(some.folder), some, collection, split_of(
            some.defects, collection, collection.learned_by(some.run),
            collection.painted_into(some)), report)


@dataclass(frozen=True)
class Study:
    """How each draw is learned and painted; what is there is kept."""

    sd: StableDiffusion
    draws: int                  # of each number of photographs
    pairs: int                  # painted of each defect
    steps: int | None           # of training, a defect
    flip: bool
    ablation: bool              # and as each of ABLATIONS
    folder: Path
    stop: Stop
    report: Report

    def learned(self, few: list[Defect], seed: int, folder: Path, method: Method) -> Run:
        """A run in the folder, of these photographs."""
        run = folder / "run"
        if not (run / "preview.jpg").is_file():
            learn(self.sd, few, run, steps=self.steps, flip=self.flip, mask_model=False, seed=seed,
                  resume=(run / "config.json").is_file(), masked_loss=method.masked_loss,
                  spatial=method.spatial, stop=self.stop, report=self.report)
        check_same(run, read_run(run).config["defects"], describe(run, few))
        return read_run(run)

    def painted(self, run: Run, seed: int, folder: Path, method: Method) -> Painted:
        """Its pairs, in the folder: as sample.py paints them with --masks train."""
        pairs = PairFolder(folder / "pairs", {
            "run": sha256(run.folder / "spatial_encoder.safetensors"), "masks": "train",
            "guidance": "auto" if method.guidance is None else method.guidance,
            "reweight": "off" if method.weigh is None else "adaptive", "gate": method.gate,
            "seed": seed})
        for _ in paint(self.sd, run, pairs, n=self.pairs, masks=training_masks,
                       foreground=objects_found, guidance=method.guidance, weigh=method.weigh,
                       gate=method.gate, seed=seed, stop=self.stop, report=self.report):
            pass
        return painted(run, folder / "pairs")


@dataclass(frozen=True)
class Chosen:
    """What a draw is to be learned from and tested on."""

    name: str
    seed: int
    defects: list[Defect]       # with the photographs to learn from and to paint into
    split: Split


def check_counts(defects: list[Defect], counts: list[int]) -> None:
    """ValueError if there cannot be enough parts, before anything is read."""
    for d in defects:
        if max(counts) >= len(d.examples):
            raise ValueError(f"--photographs: {max(counts)}, but {d.key} has {len(d.examples)}, "
                             f"and some must be left to test on; at most {len(d.examples) - 1}")


def chosen(defect: Defect, collection: Collection, count: int, turn: float) -> Defect:
    """The defect with some photographs, each of another part; ValueError if there are too few.

    turn: where in the parts to begin, 0 to 1. More photographs contain the fewer.
    """
    parts = list(dict.fromkeys(collection.parts[e.image] for e in defect.examples))
    if count >= len(parts):
        raise ValueError(f"--photographs: {count}, but the {len(defect.examples)} photographs of "
                         f"{defect.key} show {len(parts)} parts (those of one part are listed "
                         f"above), and some must be left to test on; give fewer, or name the parts "
                         f"with --parts")
    order = np.random.default_rng(crc32(defect.key.encode())).permutation(len(parts))
    wanted = [parts[i] for i in np.roll(order, -int(turn * len(parts)))[:count]]
    first = {collection.parts[e.image]: e for e in reversed(defect.examples)}
    return replace(defect, examples=tuple(first[part] for part in wanted))


def chosen_draws(defects: list[Defect], collection: Collection, counts: list[int],
                 study: Study) -> list[Chosen]:
    """Every draw; all counts are tested on the same photographs, what the largest leaves."""
    into = collection.parts_of(p for object_ in collection.good
                               for p in collection.divided(object_, set())[0])
    found = []
    for count in counts:
        for draw in range(study.draws):
            few, most = ([replace(chosen(d, collection, n, draw / study.draws),
                                  normals=study.folder / "normals" / slug(d.object))
                          for d in defects] for n in (count, max(counts)))
            learned = collection.parts_of(e.image for d in most for e in d.examples)
            found.append(Chosen(f"{count}-{draw}", draw, few,
                                split_of(few, collection, learned, into)))
    return found


def link_normals(collection: Collection, study: Study) -> None:
    """The photographs to paint into, in study.folder; ValueError if it has others."""
    for object_ in collection.good:
        folder = study.folder / "normals" / slug(object_)
        to_learn = {folder / path.name: path for path in collection.divided(object_, set())[0]}
        if folder.is_dir() and (other := set(image_files(folder)) - to_learn.keys()):
            raise ValueError(f"{min(other)}: painted into before, but --data or --parts has "
                             f"changed since and it is tested now; choose another --out")
        for there, path in to_learn.items():
            if not there.exists():
                link(path, there)


def learned_draws(wanted: list[Chosen], collection: Collection, study: Study) -> Iterator[Draw]:
    """Learn and paint each draw, into study.folder."""
    link_normals(collection, study)
    ended = ending(study.report, study.stop)
    for one in wanted:
        folder, ablated = study.folder / one.name, {}
        run = study.learned(one.defects, one.seed, folder, WHOLE)
        draw = draw_of(one.name, study.painted(run, one.seed, folder, WHOLE), collection,
                       one.split, ended)
        for name, method in ABLATIONS.items() if study.ablation else ():
            own = folder / slug(name)
            other = study.learned(one.defects, one.seed, own, method) \
                if method.learned_otherwise else run
            ablated[name] = Ablated(method.against, pairs_of(
                study.painted(other, one.seed, own, method), collection, ended))
        yield replace(draw, ablated=ablated)
