"""Do pairs make an inspection better? The story of `tools/evaluate.py inspect`.

    draws (real photographs, pairs) -> trials (five ways to train a detector) -> verdict
"""

from collections.abc import Iterable
from pathlib import Path

from anomaly.files.atomic_files import write_rows
from anomaly.progress import Report
from evaluation.trials import NUMBERS, Draw, Trial, trials

COLUMNS = ["photographs", "draw", "trained_on", "seed", "object_defect", *NUMBERS]


def inspected(draws: Iterable[Draw], seeds: int, steps: int, device: str, folder: Path,
              report: Report) -> list[Trial]:
    """All trials, kept in the folder: the same command goes on where it stopped."""
    return [one for draw in draws
            for one in trials(draw, seeds, steps, device, folder / "trials", report)]


def write_results(found: list[Trial], path: Path) -> None:
    """results.csv: a row a trial and defect."""
    write_rows(path, COLUMNS, [
        {"photographs": one.draw.photographs, "draw": one.draw.name, "trained_on": one.way,
         "seed": one.seed, "object_defect": key,
         **{name: f"{value:.4f}" for name, value in some.numbers.items()}}
        for one in found for key, some in one.tested.items()])
