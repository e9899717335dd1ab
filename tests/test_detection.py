"""Numbers of detectors, against scikit-learn's on every pixel and loops over thresholds."""

import numpy as np
import pytest
from scipy.ndimage import label
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from anomaly.scores.detection import POOL, Scored, photograph_numbers, pixel_numbers
from evaluation.labelled import in_cells

RNG = np.random.default_rng(0)


def photographs(side, levels=None):
    """Maps of cells of side pixels, with masks of pixels; levels: how many scores there are."""
    found = []
    for shape in ((37, 50), (24, 24), (41, 13)):
        mask = np.zeros(shape, bool)
        for top, left in RNG.integers(0, 10, (2, 2)):
            mask[top:top + 7, left:left + 3] = True
        cells = in_cells(mask, side)
        scores = RNG.random(cells.shape) + 0.5 * (cells > 0)
        if levels:
            scores = np.round(scores * levels) / levels
        found.append((Scored(scores, cells, in_cells(np.ones(shape), side)), mask))
    return found


def pixels(found, side):
    """Truth and score of every pixel: a cell's score is that of all of its pixels."""
    spread = [np.kron(m.scores, np.ones((side, side)))[:mask.shape[0], :mask.shape[1]]
              for m, mask in found]
    return (np.concatenate([mask.ravel() for _, mask in found]),
            np.concatenate([s.ravel() for s in spread]))


@pytest.mark.parametrize("side", [1, 3])
@pytest.mark.parametrize("levels", [None, 4])
def test_numbers_are_those_of_the_photographs_own_pixels(side, levels):
    found = photographs(side, levels)
    truth, score = pixels(found, side)
    numbers = pixel_numbers([m for m, _ in found])
    assert numbers["pixel_auroc"] == pytest.approx(roc_auc_score(truth, score))
    assert numbers["pixel_ap"] == pytest.approx(average_precision_score(truth, score))
    best = max(f1_score(truth, score >= t) for t in np.unique(score[truth]))
    assert numbers["pixel_f1"] == pytest.approx(best)


def regions_by_sklearn(found):
    """PRO as the mean over regions of the area below a region's own curve, up to 0.3."""
    normal = np.concatenate([m.scores[m.marked == 0] for m, _ in found])
    areas = []
    for m, mask in found:
        region, count = label(mask, np.ones((3, 3)))
        for i in range(1, count + 1):
            own = m.scores[region == i]
            standard = roc_auc_score(np.repeat([1, 0], [len(own), len(normal)]),
                                     np.concatenate([own, normal]), max_fpr=0.3)
            least, most = 0.3 ** 2 / 2, 0.3     # McClish's correction, undone
            areas.append(((2 * standard - 1) * (most - least) + least) / 0.3)
    return np.mean(areas)


@pytest.mark.parametrize("levels", [None, 3])
def test_pro_is_the_mean_over_regions_of_their_partial_areas(levels):
    found = photographs(1, levels)
    assert pixel_numbers([m for m, _ in found])["pro"] == pytest.approx(regions_by_sklearn(found))


def test_a_constant_map_is_worth_chance():
    marked = np.zeros((8, 8))
    marked[:4, :4] = 1
    numbers = pixel_numbers([Scored(np.full((8, 8), 0.5), marked, np.ones((8, 8)))])
    assert numbers == pytest.approx({"pixel_auroc": 0.5, "pixel_ap": 0.25,
                                     "pixel_f1": 2 * 0.25 / 1.25, "pro": 0.15})


def test_maps_that_cannot_be_judged_are_refused():
    scores, marked = RNG.random((6, 6)), np.eye(6)
    with pytest.raises(ValueError, match="not numbers"):
        pixel_numbers([Scored(scores * np.nan, marked, np.ones((6, 6)))])
    for all_alike in (marked * 0, np.ones((6, 6))):
        with pytest.raises(ValueError, match="all of one class"):
            pixel_numbers([Scored(scores, all_alike, np.ones((6, 6)))])


def test_a_photographs_score_is_its_highest_mean_of_a_square():
    scores = RNG.random((40, 128))
    side = round(POOL * 128)
    means = [scores[i:i + side, j:j + side].mean()
             for i in range(40 - side + 1) for j in range(128 - side + 1)]
    assert Scored(scores, scores, scores).highest == pytest.approx(max(means))
    assert Scored(scores[:5], scores, scores).highest > 0       # lower than the square


def test_false_alarms_are_counted_where_half_of_the_defects_are_found():
    numbers = photograph_numbers([0.1, 0.6, 0.9], [0.7, 0.6, 0.2, 0.05])
    assert numbers["false_alarms"] == 0.5
    assert numbers["image_auroc"] == pytest.approx(7.5 / 12)
