"""The photographs of a data set, as a detector sees them, and which may be learned or tested."""

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from anomaly.dataset import Defect, Example, find_defects
from anomaly.files.folders import image_files
from anomaly.files.names import shown, unshown, whole
from anomaly.pairs.manifest import manifest_rows
from anomaly.progress import Report, each
from anomaly.runs.run_folder import Run
from evaluation.labelled import Labelled, labelled
from evaluation.parts import grouped, named_parts, near_duplicates

GOOD, TESTED_GOOD = 100, 30     # photographs without defect of an object: at most; to test on
log = logging.getLogger("anomaly.evaluation")       # the tools show the packages' remarks


@dataclass(frozen=True)
class Painted:
    """A folder of pairs of a run, as far as they are of its defects."""

    run: Run
    folder: Path
    defects: list[Defect]           # of the run
    pairs: dict[str, list[Path]]    # by object/defect: the images that passed the gate, or all
    normals: dict[Path, str]        # what was painted into, with its object


def painted(run: Run, folder: Path) -> Painted:
    """ValueError if no pair is of a defect of the run."""
    folder = whole(folder)
    rows = {str(folder / unshown(row["image"])): row for row in manifest_rows(folder)}
    made = {d.stem: d for d in find_defects(folder)}
    defects = [d for d in run.defects if d.stem in made]
    if not defects:
        raise ValueError(f"{folder}: no pairs of what {run.folder} has learned, "
                         f"{', '.join(d.key for d in run.defects)}; give its own pairs")
    pairs = {}
    for d in defects:
        images = [e.image for e in made[d.stem].examples]
        doubtful = [i for i in images if rows.get(str(i), {}).get("verdict") == "doubtful"]
        pairs[d.key] = [i for i in images if i not in doubtful] or images
        log.info("%s: %d pairs%s", d.key, len(pairs[d.key]),
                 "" if not doubtful else f", {len(doubtful)} doubtful left out"
                 if len(doubtful) < len(images) else ", all of them doubtful")
    return Painted(run, folder, defects, pairs,
                   {whole(unshown(row["normal"])): row["object"] for row in rows.values()})


@dataclass(frozen=True)
class Collection:
    """Photographs of a data set and of what runs have learned."""

    seen: dict[Path, Labelled]
    parts: dict[Path, int]
    defects: dict[str, list[Path]]          # by object/defect, in order of name
    good: dict[str, list[Path]]             # by object: of train/good
    kept_back: dict[str, list[Path]]        # by object: of test/good
    resolution: int
    remarks: list[str]                      # what is worth saying of it

    def of(self, paths: Iterable[Path]) -> list[Labelled]:
        """The photographs themselves."""
        return [self.seen[path] for path in paths]

    def parts_of(self, paths: Iterable[Path]) -> set[int]:
        """The parts that they show."""
        return {self.parts[path] for path in paths}

    def divided(self, object_: str, taken: set[int]) -> tuple[list[Path], list[Path]]:
        """Photographs without defect, to learn from and to test on; no part is in both.

        taken: parts that were painted into. Of the others those of test/good are tested, then every
        second one, until there are TESTED_GOOD. What shows a part with a defect is left out.
        """
        defective = self.parts_of(p for paths in self.defects.values() for p in paths)
        tested = self.parts_of(self.kept_back[object_]) - taken - defective
        both = [p for p in (*self.kept_back[object_], *self.good[object_])
                if self.parts[p] not in defective - taken]
        free = list(dict.fromkeys(self.parts[p] for p in both
                                  if self.parts[p] not in taken | tested))
        for part in free[::2]:
            if sum(self.parts[p] in tested for p in both) < TESTED_GOOD:
                tested.add(part)
        learned = [p for p in both if self.parts[p] not in tested and p in self.good[object_]]
        return learned, [p for p in both if self.parts[p] in tested]


def spread(paths: list[Path], most: int) -> list[Path]:
    """At most so many, evenly over the list."""
    if len(paths) <= most:
        return paths
    return [paths[i * len(paths) // most] for i in range(most)]


def good_files(defects: list[Defect], name: str) -> list[Path]:
    """Those of OBJECT/NAME/good."""
    folder = defects[0].examples[0].image.parents[2] / name / "good"
    return spread(image_files(folder), GOOD) if folder.is_dir() else []


def collect(defects: list[Defect], runs: list[Painted], resolution: int, parts: str | None,
            report: Report) -> Collection:
    """The data set's photographs with and without defects, and what runs learned and painted into.

    What was learned or painted into may lie elsewhere: copies of it are recognised as one part.
    """
    objects = {d.object: [other for other in defects if other.object == d.object] for d in defects}
    good, kept_back = ({o: good_files(own, name) for o, own in objects.items()}
                       for name in ("train", "test"))
    wanted: dict[Path, tuple[str, str, Example | Path]] = {
        e.image: (d.object, d.name, e)
        for d in (*defects, *(d for run in runs for d in run.defects)) for e in d.examples}
    wanted |= {p: (run.normals[p], "", p) for run in runs
               for p in spread(sorted(run.normals), GOOD) if p.is_file()}
    wanted |= {p: (o, "", p) for some in (good, kept_back) for o, paths in some.items()
               for p in paths}
    seen = {path: labelled(*wanted[path], resolution)
            for path in each(wanted, "reading photographs", len(wanted), report)}
    paths = list(seen)
    same = near_duplicates(list(seen.values()), report)
    named = named_parts(paths, parts)
    numbers = grouped(paths, named, same)
    remarks = [f"{len(paths)} photographs of {len(set(numbers.values()))} parts"]
    twins = {numbers[paths[i]] for pair in same for i in pair}
    remarks += [", ".join(shown(p.relative_to(p.parents[2])) for p in paths if numbers[p] == part)
                + " show the same part" for part in sorted(twins)]
    return Collection(seen, numbers, {d.key: [e.image for e in d.examples] for d in defects},
                      good, kept_back, resolution, remarks)
