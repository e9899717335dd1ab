"""Tables of figures with their intervals."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np

RESAMPLES = 2000


def table(columns: list[str], rows: Iterable[list[str]]) -> None:
    """A markdown table on stdout."""
    print(f"\n| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for row in rows:
        print(f"| {' | '.join(row)} |", flush=True)


def interval(statistic: Callable[..., np.ndarray], *columns: list[float]) -> tuple[float, float, float]:
    """A statistic of columns of numbers, one a picture, with the 95 % bootstrap interval over the pictures.

    statistic(*means) of the columns' means; pictures are drawn with replacement, the same in every column.
    """
    values = np.array(columns, dtype=float)
    picks = np.random.default_rng(0).integers(values.shape[1], size=(RESAMPLES, values.shape[1]))
    drawn = statistic(*values[:, picks].mean(axis=2))
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(statistic(*values.mean(axis=1))), float(low), float(high)


def shown(values: tuple[float, float, float], digits: int = 2) -> str:
    """A figure and its interval."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low} to {high})"


def check_made_with(path: Path, found: dict, now: dict) -> None:
    """Note in `found`, kept at `path`, what its figures are made with; ValueError if it was something else."""
    if (then := found.setdefault("made with", now)) != now:
        raise ValueError(f"{path}: made with {then}, expected {now}; give another --out")


def paired(differences: np.ndarray, digits: int = 3) -> str:
    """Mean of paired differences and its standard error."""
    error = differences.std(ddof=1) / len(differences) ** 0.5 if len(differences) > 1 else np.nan
    return f"{differences.mean():+.{digits}f} +- {error:.{digits}f}"
