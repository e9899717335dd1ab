"""The verdict: what it takes to help, and that controls and empty pairs do not."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import t
from sklearn.metrics import average_precision_score

from anomaly.progress import silent
from anomaly.scores.detection import Scored
from evaluation import detector
from evaluation import trials as trials_file
from evaluation.labelled import Labelled
from evaluation.trials import (
    BOTH,
    PAIRS,
    PASTED,
    REAL,
    SHUFFLED,
    WAYS,
    Ablated,
    Draw,
    Outcome,
    Trial,
    trials,
)
from evaluation.verdict import ablations, average_precisions, compare, verdict, verdicts

SIDE = 32
RNG = np.random.default_rng(0)


def photograph(name, shape=None, dark=True):
    """Noise, with a square (top, left, side), dark or light, that is marked."""
    pixels = RNG.integers(90, 150, (SIDE, SIDE, 1), np.uint8).repeat(3, 2)
    marked = np.zeros((SIDE, SIDE), np.float32)
    if shape is not None:
        top, left, side = shape
        marked[top:top + side, left:left + side] = 1
        pixels[marked > 0] = 20 if dark else 220
    return Labelled(Path(name), "tile", "spot" if shape is not None else "", pixels, marked,
                    np.ones_like(marked), 1)


def spots(name, count, dark):
    places = RNG.integers(2, SIDE - 12, (count, 2))
    return [photograph(f"{name}{i}", (*place, 8), dark) for i, place in enumerate(places)]


def draw(number, pairs):
    """Of one dark spot; those that are tested are light, and so are good pairs."""
    tested, untouched = spots(f"test{number}-", 6, False), [
        photograph(f"untouched{number}-{i}") for i in range(6)]
    return Draw(str(number), 1, spots(f"real{number}-", 1, True), pairs,
                [photograph(f"good{number}-{i}") for i in range(8)], tested, untouched,
                {p.path: i for i, p in enumerate([*tested, *untouched])}, True)


def drawn_by(monkeypatch):
    """How many windows with a defect and without are drawn from now on, and how many steps."""
    counts, window, loss = Counter(), detector.window, detector.focal_loss

    def counted(seen, *rest):
        counts["defective" if seen[3].any() else "good"] += 1
        return window(seen, *rest)
    monkeypatch.setattr(detector, "window", counted)
    monkeypatch.setattr(detector, "focal_loss", lambda *a: (counts.update(["steps"]), loss(*a))[1])
    return counts


@pytest.mark.parametrize("way", WAYS)
def test_all_ways_get_the_same_steps_and_the_same_share_of_defects(monkeypatch, way):
    counts, some = drawn_by(monkeypatch), draw(0, light())
    monkeypatch.setattr(detector, "WINDOW", 16)
    detector.trained(trials_file.sources(some, way), some.good, some.defects, 3, True, 0, "cpu")
    assert counts == {"defective": 24, "good": 24, "steps": 3}


def test_a_control_has_other_masks_even_if_all_are_alike():
    one = light()[0]
    some = draw(0, [replace(one, path=Path(str(i))) for i in range(3)])
    for pair in trials_file.many_shuffled(some):
        assert pair.marked.sum() == one.marked.sum() and not (pair.marked * one.marked).any()
        assert (pair.pixels == one.pixels).all()


def light():
    return spots("pair", 12, False)


def empty():
    """Pairs in which nothing was painted, as an empty prompt leaves them."""
    surfaces = [photograph(f"pair{i}") for i in range(12)]
    return [replace(surface, defect="spot", marked=pair.marked)
            for surface, pair in zip(surfaces, light())]


def misplaced():
    """Pairs whose masks lie elsewhere."""
    return [replace(pair, marked=np.roll(pair.marked, SIDE // 2, axis=(0, 1))) for pair in light()]


@pytest.mark.parametrize("pairs, words", [
    (light, ["helps: "]), (empty, ["no difference seen", "harms"]),
    (misplaced, ["no difference seen", "harms"])])
def test_good_pairs_help_and_neither_empty_nor_misplaced_ones_do(
        tmp_path, monkeypatch, pairs, words):
    for name, value in {"WINDOW": 16, "BATCH": 8, "CHANNELS": (8, 16)}.items():
        monkeypatch.setattr(detector, name, value)
    draws = [draw(number, pairs()) for number in range(2)]

    def run():
        return [one for some in draws for one in trials(some, 3, 30, "cpu", tmp_path, silent)]
    line, = verdicts(run())
    assert line.startswith(tuple(f"tile/spot: {word}" for word in words)), line
    monkeypatch.setattr(trials_file, "trained", None)       # all of it is kept
    assert [line] == list(verdicts(run()))


BEST = {"real": 0.2, "pasted": 0.4, "both": 0.5, "shuffled": 0.2}


def trial(number, seed, way, ap, parts=6):
    """One in which every defective photograph has this precision at all levels."""
    found = np.zeros((parts + 3, trials_file.LEVELS), np.float32)
    found[:parts] = 1
    alarms = np.zeros_like(found)
    alarms[:parts] = 1 / ap - 1
    some = [Labelled(Path(f"{i}"), "tile", "spot" if i < parts else "", *[found] * 3, 1)
            for i in range(parts + 3)]
    real = [replace(some[0], path=Path(f"real{number}"))]
    numbers = {"pixel_ap": ap, "false_alarms": 0.25}
    return Trial(Draw(str(number), 1, real, [], [], some[:parts], some[parts:], {}, True), way,
                 seed, {"tile/spot": Outcome(numbers, found, alarms, np.arange(parts + 3),
                                      np.zeros(parts), [])})


def study(draws=2, parts=6, **precisions):
    """precisions: of each way, one for all draws and seeds or one for each."""
    ways = {"real": REAL, "pasted": PASTED, "both": BOTH, "shuffled": SHUFFLED, "pairs": PAIRS}
    return [trial(number, seed, ways[name], value if isinstance(value, float)
                  else value[3 * number + seed], parts)
            for number in range(draws) for seed in range(3) for name, value in precisions.items()]


@pytest.mark.parametrize("changes, begins, says", [
    ({}, "helps: AP 0.20 -> 0.50 (difference 0.30 to 0.30, better in 6 of 6 trials) with 1 photo",
     "tested on 6 parts; against crop-and-paste better (difference 0.10 to 0.10, "),
    ({"pasted": 0.5}, "helps: ", "against crop-and-paste no difference seen"),
    ({"pasted": 0.6}, "helps: ", "against crop-and-paste worse"),
    ({"shuffled": 0.5}, "not shown to help: the control with shuffled masks has 0.50", ""),
    ({"both": (0.5, 0.5, 0.5, 0.5, 0.5, 0.19)}, "no difference seen: ", "in 5 of 6 trials"),
    ({"both": 0.1}, "harms: ", ""),
    ({"draws": 1}, "no verdict (it takes 2 draws", "here 1, 3 and 6)"),
    ({"parts": 4}, "no verdict (it takes 2 draws", "here 2, 6 and 4)")])
def test_the_verdict_takes_one_sign_two_draws_and_an_interval_without_zero(changes, begins, says):
    line = verdict(study(**{**BEST, **changes}), ["tile/spot"])
    assert line.startswith(begins) and says in line, line
    assert line.endswith("half of the defects are found 0.25 -> 0.25")


@pytest.mark.parametrize("off, says", [
    (0.3, "worse (difference -0.20 to -0.20, better in 0 of 6"), (0.6, "better (difference 0.10 t"),
    ((0.4, 0.4, 0.4, 0.4, 0.4, 0.51), "no difference seen ("), (0.5, "the same pairs")])
def test_a_part_that_is_off_is_compared_with_the_whole_method(off, says):
    found = study(pairs=0.5) + [replace(one, way="gate off") for one in study(pairs=off)]
    made, = ablations([replace(one, draw=replace(one.draw, ablated={
        "gate off": Ablated(PAIRS, light()[:one.draw.name == "1"])})) for one in found])
    assert f"{made.word} {made.difference.interval}".startswith(says)
    assert str(made).startswith(f"tile/spot, 1 learned from, gate off: {made.word}: AP 0.50 with "
                                "the whole method -> ") and made.pairs == 0


def test_two_draws_of_the_same_photographs_are_one():
    found = study(**BEST)
    same = [replace(one, draw=replace(one.draw, real=found[0].draw.real)) for one in found]
    line = verdict(same, ["tile/spot"])
    assert line.startswith("no verdict") and "against crop-and-paste no verdict" in line


def test_the_parts_that_count_are_those_of_the_draw_with_the_fewest():
    found = study(**BEST) + [replace(one, draw=replace(one.draw, name="2")) for one in
                             study(draws=1, parts=4, **BEST)]
    assert verdict(found, ["tile/spot"]).startswith("no verdict")


def test_photographs_of_two_defects_are_resampled_together():
    """They share those without a defect, and may show the same part."""
    found = study(real=0.2, both=0.5)
    for one in found:
        one.tested["tile/dent"] = one.tested["tile/spot"]
        one.draw.tested[:] = [x for p in one.draw.tested for x in (p, replace(p, defect="dent"))]
    for one in (one for one in found if one.way == BOTH):
        one.tested["tile/spot"].alarms[:6] *= np.array([[0], [0], [0], [9], [9], [9]])
    alone, both = (compare(found, REAL, BOTH, keys)
                   for keys in (["tile/spot"], ["tile/spot", "tile/dent"]))
    assert (both.low, both.high) == pytest.approx((alone.low, alone.high))


def test_an_interval_is_as_wide_as_the_parts_differ():
    found = study(real=0.2, both=0.5)
    for one in (one for one in found if one.way == BOTH):
        one.tested["tile/spot"].alarms[:6] *= np.array([[0], [0], [0], [9], [9], [9]])
    wide = compare(found, REAL, BOTH, ["tile/spot"])
    assert wide.high - wide.low > 0.2
    same = [replace(one, tested={k: replace(x, parts=np.zeros_like(x.parts))
                                 for k, x in one.tested.items()}) for one in found]
    narrow = compare(same, REAL, BOTH, ["tile/spot"])       # one part: nothing to resample
    assert narrow.high == pytest.approx(narrow.low)


def test_a_mean_over_few_parts_has_the_interval_of_students_t():
    """Of a defect in which nothing is found but what is marked, AP is a mean over parts."""
    found = study(real=0.5, both=0.5, parts=8)
    values = RNG.normal(100, 5, 8)
    for one in (one for one in found if one.way == BOTH):
        some = one.tested["tile/spot"]
        some.found[:8], some.alarms[:8] = 0, 0
        some.found[:8, 0] = values
        some.found[:8, 1], some.alarms[:8, 1] = 200 - values, 1e9       # found last, at no use
    wide = compare(found, REAL, BOTH, ["tile/spot"])
    half = t.ppf(0.975, 7) * values.std(ddof=1) / 8 ** 0.5 / 200
    assert (wide.high - wide.low) / 2 == pytest.approx(half, rel=0.1)


def test_average_precision_of_resampled_photographs_is_sklearns():
    maps = [Scored(RNG.random((20, 20)) + 0.2 * m, m, np.ones((20, 20)))
            for m in (RNG.random((5, 20, 20)) < 0.1).astype(np.float32)]
    counts = np.array([[1, 1, 1, 1, 1], [0, 3, 1, 1, 0], [2, 0, 0, 2, 1]])
    expected = [average_precision_score(
        np.concatenate([m.marked.ravel() for m in maps]),
        np.concatenate([m.scores.ravel() for m in maps]),
        sample_weight=np.repeat(row, 400)) for row in counts]
    found = average_precisions(*trials_file.histograms(maps), counts)
    np.testing.assert_allclose(found, expected, atol=0.01)
