"""The photographs of a data set, as a detector sees them, and which may be learned or tested."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly.dataset import Defect, Example, find_defects
from anomaly.files.atomic_files import read_json
from anomaly.files.folders import image_files
from anomaly.files.names import shown, unshown, whole
from anomaly.pairs.selection import rows_of
from anomaly.progress import Report, T, each
from anomaly.runs.run_folder import Run
from anomaly.training_files import sha256
from evaluation.labelled import Labelled, labelled
from evaluation.parts import grouped, named_parts, near_duplicates

GOOD, TESTED_GOOD = 100, 30     # photographs without defect of an object: at most; to test on
SMALL = 9                       # cells of a defect below which a detector hardly sees it
log = logging.getLogger("anomaly.evaluation")       # the tools show the packages' remarks


@dataclass(frozen=True)
class Painted:
    """A folder of pairs of a run, as far as they are of its defects."""

    run: Run
    folder: Path
    defects: list[Defect]           # of the run
    pairs: dict[str, list[Example]]     # by object/defect: those that passed the gate, or all
    normals: dict[Path, str]        # what was painted into, with its object
    into: set[str]                  # sha256 of these


def painted(run: Run, folder: Path) -> Painted:
    """ValueError if they are another run's, or if no pair is of one of its defects."""
    folder = whole(folder)
    rows = {folder / unshown(row["image"]): row for row in rows_of(folder)}
    made_by = read_json(folder / "_meta/config.json", {}, "paint again").get("run")
    if made_by not in (None, sha256(run.folder / "spatial_encoder.safetensors")):
        raise ValueError(f"{folder}: painted by another run than {run.folder}, which may have "
                         f"learned what is tested here; give the --run that painted them")
    made = {d.stem: d for d in find_defects(folder)}
    defects = [d for d in run.defects if d.stem in made]
    if not defects:
        raise ValueError(f"{folder}: no pairs of what {run.folder} has learned, "
                         f"{', '.join(d.key for d in run.defects)}; give its own pairs")
    pairs = {}
    for d in defects:
        every = list(made[d.stem].examples)
        passed = [e for e in every if rows.get(e.image, {}).get("verdict") != "doubtful"]
        pairs[d.key] = passed or every
        log.info("%s: %d pairs%s", d.key, len(pairs[d.key]),
                 ", all of them doubtful" if not passed else f", {len(every) - len(passed)} "
                 "doubtful left out" if len(passed) < len(every) else "")
    return Painted(run, folder, defects, pairs,
                   {whole(unshown(row["normal"])): row["object"] for row in rows.values()},
                   {row["normal_sha256"] for row in rows.values()})


@dataclass(frozen=True)
class Collection:
    """Photographs of a data set and of what runs have learned."""

    seen: dict[Path, Labelled]
    sha256: dict[Path, str]
    parts: dict[Path, int]
    defects: dict[str, list[Path]]          # by object/defect, in order of name
    good: dict[str, list[Path]]             # by object: of train/good
    kept_back: dict[str, list[Path]]        # by object: of test/good
    resolution: int

    def of(self, paths: Iterable[Path]) -> list[Labelled]:
        """The photographs themselves."""
        return [self.seen[path] for path in paths]

    def parts_of(self, paths: Iterable[Path]) -> set[int]:
        """The parts that they show."""
        return {self.parts[path] for path in paths}

    def learned_by(self, run: Run) -> set[int]:
        """The parts that a run has learned from; a copy of a photograph is known by its bytes."""
        learned = {e.image for d in run.defects for e in d.examples}
        return self.parts_of(p for p, sha in self.sha256.items()
                             if p in learned or sha in run.hashes.values())

    def painted_into(self, some: Painted) -> set[int]:
        """The parts that pairs are painted into."""
        return self.parts_of(p for p, sha in self.sha256.items()
                             if p in some.normals or sha in some.into)

    def divided(self, object_: str, taken: set[int]) -> tuple[list[Path], list[Path]]:
        """Photographs without defect, to learn from and to test on; no part is in both.

        taken: parts that were painted into. Of the others those of test/good are tested, then all,
        or every second one if nothing was painted yet, until there are TESTED_GOOD. What shows a
        part with a defect is left out.
        """
        defective = self.parts_of(p for paths in self.defects.values() for p in paths)
        tested = self.parts_of(self.kept_back[object_]) - taken - defective
        both = [p for p in (*self.kept_back[object_], *self.good[object_])
                if self.parts[p] not in defective - taken]
        free = list(dict.fromkeys(self.parts[p] for p in both
                                  if self.parts[p] not in taken | tested))
        for part in free if taken else free[::2]:
            if sum(self.parts[p] in tested for p in both) < TESTED_GOOD:
                tested.add(part)
        learned = [p for p in both if self.parts[p] not in tested and p in self.good[object_]]
        return learned, [p for p in both if self.parts[p] in tested]


def spread(items: list[T], most: int) -> list[T]:
    """At most so many, evenly over the list."""
    if len(items) <= most:
        return items
    return [items[i * len(items) // most] for i in range(most)]


def good_files(defects: list[Defect], name: str) -> list[Path]:
    """Those of OBJECT/NAME/good."""
    folder = defects[0].examples[0].image.parents[2] / name / "good"
    return spread(image_files(folder), GOOD) if folder.is_dir() else []


def check_runs(defects: list[Defect], runs: list[Painted]) -> None:
    """ValueError unless the runs are of the same defects, of which the data set has photographs.

    And FileNotFoundError for a photograph of theirs that nothing can be compared with.
    """
    there = {d.key: d for d in defects}
    for run in runs:
        for d in run.defects:
            if d.key not in there:
                raise ValueError(f"--data: has no {d.key}, which {run.run.folder} has learned; it "
                                 f"has {', '.join(there)}")
        learned, first = ({d.key: len(d.examples) for d in some.defects} for some in (run, runs[0]))
        if learned != first:
            raise ValueError(f"--run: {run.run.folder} has learned {learned}, and "
                             f"{runs[0].run.folder} {first} photographs; expected as many of each")
        for path in (e.image for d in run.run.defects for e in d.examples):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: {run.run.folder} has learned it, and it is gone; "
                                        f"bring it back")


def collect(defects: list[Defect], runs: list[Painted], resolution: int, parts: str | None,
            report: Report) -> Collection:
    """The data set's photographs with and without defects, and what runs learned and painted into.

    What was learned or painted into may lie elsewhere: copies of it are recognised as one part.
    """
    check_runs(defects, runs)
    objects = {d.object: [other for other in defects if other.object == d.object] for d in defects}
    good, kept_back = ({o: good_files(own, name) for o, own in objects.items()}
                       for name in ("train", "test"))
    wanted: dict[Path, tuple[str, str, Example | Path]] = {
        e.image: (d.object, d.name, e)
        for d in (*defects, *(d for run in runs for d in run.run.defects)) for e in d.examples}
    wanted |= {p: (run.normals[p], "", p) for run in runs
               for p in spread(sorted(run.normals), GOOD) if p.is_file()}
    wanted |= {p: (o, "", p) for some in (good, kept_back) for o, paths in some.items()
               for p in paths}
    seen = {path: labelled(*wanted[path], resolution)
            for path in each(wanted, "reading photographs", len(wanted), report)}
    for d in defects:
        cells = np.median([(seen[e.image].marked > 0).sum() for e in d.examples])
        if cells < SMALL and (side := seen[d.examples[0].image].side) > 1:
            log.info("%s: half of the defects cover %d cells of %d x %d pixels at most; give a "
                     "larger --resolution than %d", d.key, cells, side, side, resolution)
    named = {p: f"{seen[p].object}/{part}" for p, part in named_parts(list(seen), parts).items()}
    numbers = grouped(list(seen), named, near_duplicates(list(seen.values()), report))
    shared = sorted({n for n in numbers.values() if list(numbers.values()).count(n) > 1})
    log.info("%d photographs of %d parts; %d are named by --parts, the others told by their looks",
             len(seen), len(set(numbers.values())), len(named))
    for part in shared:
        log.info("%s show the same part", ", ".join(
            shown("/".join(p.parts[-3:])) for p in seen if numbers[p] == part))
    return Collection(seen, {p: sha256(p) for p in seen}, numbers,
                      {d.key: [e.image for e in d.examples] for d in defects}, good, kept_back,
                      resolution)
