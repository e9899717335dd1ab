"""Numbers of a detector: how well its maps find what masks mark.

A map has a score a cell, higher where a defect is more likely; a cell is a square of the
photograph's pixels, of which some are marked. All its pixels have its score, so that the numbers
are those of the photographs' own pixels: no mask is shrunk, eroded or dilated. Ties are exact. Only
the regions of PRO are of cells: what touches there is one.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

PRO_LIMIT = 0.3         # false positive rate up to which PRO is integrated, as in MVTec AD
POOL = 21 / 256         # side of the square whose mean is a photograph's score, of a map's longer
EIGHT = np.ones((3, 3))     # a region's cells touch by their corners, too


@dataclass(frozen=True)
class Scored:
    """A photograph's map and what is marked in it; all (h, w)."""

    scores: np.ndarray      # float
    marked: np.ndarray      # marked pixels of each cell
    counted: np.ndarray     # pixels of each cell

    @property
    def highest(self) -> float:
        """The photograph's score: the highest mean of a square of side POOL."""
        side = max(1, round(POOL * max(self.scores.shape)))
        rows, columns = (min(side, n) for n in self.scores.shape)
        total = np.pad(self.scores.astype(np.float64).cumsum(0).cumsum(1), ((1, 0), (1, 0)))
        boxes = (total[rows:, columns:] - total[:-rows, columns:] - total[rows:, :-columns]
                 + total[:-rows, :-columns])
        return float(boxes.max()) / (rows * columns)


def sums(maps: list[Scored]) -> tuple[np.ndarray, ...]:
    """Each score, lowest first, (n,), and of it: marked pixels, others, shares of regions.

    A region is a connected part of a mask. ValueError if no pixel is marked, if all are, or if a
    score is not a number.
    """
    def joined(values: Iterable[np.ndarray]) -> np.ndarray:
        return np.concatenate([some.ravel() for some in values]).astype(np.float64)

    def share_of_region(m: Scored) -> np.ndarray:
        region, count = label(m.marked > 0, EIGHT)
        size = np.bincount(region.ravel(), m.marked.ravel(), count + 1)
        return m.marked / np.maximum(size, 1)[region]

    if not all(np.isfinite(m.scores).all() for m in maps):
        raise ValueError("a detector's map has values that are not numbers; nothing can be ranked")
    scores, place = np.unique(joined(m.scores for m in maps), return_inverse=True)
    marked, others, shares = (np.bincount(place, joined(some)) for some in (
        (m.marked for m in maps), (m.counted - m.marked for m in maps),
        (share_of_region(m) for m in maps)))
    if not marked.any() or not others.any():
        raise ValueError("the test photographs' pixels are all of one class; expected defects, and "
                         "pixels without one")
    return scores, marked, others, shares


def pro(others: np.ndarray, shares: np.ndarray) -> float:
    """Per-region overlap (Bergmann et al. 2021), normalised: 1 is perfect, chance is 0.15.

        1/limit * integral over FPR from 0 to limit of mean over regions of the share found

    FPR is of all pixels that are not marked. Both as in sums.
    """
    found, alarms = (np.concatenate([[0.0], v[::-1].cumsum()]) for v in (shares, others))
    found, alarms = found / found[-1], alarms / alarms[-1]
    inside = alarms < PRO_LIMIT
    x = np.append(alarms[inside], PRO_LIMIT)
    y = np.append(found[inside], np.interp(PRO_LIMIT, alarms, found))
    return float(np.trapezoid(y, x)) / PRO_LIMIT


def pixel_numbers(maps: list[Scored]) -> dict[str, float]:
    """AUROC, average precision and the best F1 of all thresholds, of pixels; and PRO."""
    scores, marked, others, shares = sums(maps)
    some, rest = marked > 0, others > 0         # as sklearn has them: truth, score, weight
    truth = np.repeat([1, 0], [some.sum(), rest.sum()])
    score = np.concatenate([scores[some], scores[rest]])
    weight = np.concatenate([marked[some], others[rest]])
    precision, recall, _ = precision_recall_curve(truth, score, sample_weight=weight)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return {"pixel_auroc": float(roc_auc_score(truth, score, sample_weight=weight)),
            "pixel_ap": float(average_precision_score(truth, score, sample_weight=weight)),
            "pixel_f1": float(f1.max()), "pro": pro(others, shares)}


def photograph_numbers(defective: list[float], good: list[float]) -> dict[str, float]:
    """Of photographs' scores. false_alarms: share of the good as high as half of the defective."""
    truth = np.repeat([1, 0], [len(defective), len(good)])
    score = np.array([*defective, *good])
    return {"image_auroc": float(roc_auc_score(truth, score)),
            "image_ap": float(average_precision_score(truth, score)),
            "false_alarms": float((np.array(good) >= np.median(defective)).mean())}
