"""Do pairs help? Paired differences of average precision, and what may be said of them in words.

    helps: better than real photographs alone and than the control with shuffled masks
    better: with every seed of every draw, and with a 95 % interval over parts that is above 0, of
            the photographs that were drawn
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, product

import numpy as np

from anomaly.scores.gate import t_quantile
from evaluation.trials import BOTH, PAIRS, PASTED, REAL, SHUFFLED, Trial

RESAMPLED = 1000
# Fewer draws of photographs, detectors of a kind, or parts with a defect, are no proof.
DRAWS, DETECTORS, PARTS = 2, 6, 5


@dataclass(frozen=True)
class Comparison:
    """One way to train less another, of the same draws and seeds."""

    before: float           # mean average precision of pixels
    after: float
    low: float              # 95 % interval of the difference, over parts
    high: float
    differences: tuple[float, ...]      # of each draw and seed
    parts: int              # with the defect, that the draw with the fewest tests
    draws: int              # of photographs, different ones

    @property
    def proof(self) -> bool:
        """Enough of each."""
        return (self.draws >= DRAWS and len(self.differences) >= DETECTORS
                and self.parts >= PARTS)

    def is_better(self, sign: int = 1) -> bool:
        """With one sign everywhere, and an interval without 0; sign -1: worse."""
        return self.proof and min(sign * d for d in self.differences) > 0 \
            and min(sign * self.low, sign * self.high) > 0

    @property
    def word(self) -> str:
        """better, worse or neither."""
        return "no verdict" if not self.proof else "better" if self.is_better() else \
            "worse" if self.is_better(-1) else "no difference seen"

    @property
    def interval(self) -> str:
        """In words."""
        better = sum(d > 0 for d in self.differences)
        low, high = (round(x, 2) + 0.0 for x in (self.low, self.high))      # no -0.00
        return (f"(difference {low:.2f} to {high:.2f}, better in {better} of "
                f"{len(self.differences)} trials)")


def average_precisions(found: np.ndarray, alarms: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Of the pixels of photographs that count so often, (b, photographs): (b,).

    Between two levels precision is that at the lower one; within 1 % of recall of the exact value.
    """
    marked, others = counts @ found, counts @ alarms
    precision = marked.cumsum(1) / np.maximum(marked.cumsum(1) + others.cumsum(1), 1e-9)
    return (precision * marked).sum(1) / np.maximum(marked.sum(1), 1e-9)


def resampled(trials: list[Trial], keys: list[str]) -> dict[int, np.ndarray]:
    """How often each part counts, (RESAMPLED,): parts with a defect, and others, drawn anew."""
    rng, kinds = np.random.default_rng(0), (set[int](), set[int]())
    for some, key in product(trials, keys):
        parts, defective = some.tested[key].parts.tolist(), len(some.draw.of(key)[0])
        kinds[0].update(parts[:defective])
        kinds[1].update(parts[defective:])
    found = {}
    for parts in (sorted(kinds[0]), sorted(kinds[1] - kinds[0])):
        if parts:
            drawn = rng.multinomial(len(parts), [1 / len(parts)] * len(parts), RESAMPLED)
            found |= dict(zip(parts, drawn.T))
    return found


def compare(trials: list[Trial], before: str, after: str, keys: list[str]) -> Comparison:
    """Of the trials of one number of photographs; the mean over defects, if there are several."""
    drawn, counts = np.zeros(RESAMPLED), resampled(trials, keys)
    exact: dict[tuple[str, int, str], float] = {}
    pairs = {(t.draw.name, t.seed, t.way): t for t in trials if t.way in (before, after)}
    for key in keys:
        for (draw, seed, way), one in pairs.items():
            some = one.tested[key]
            value = average_precisions(some.found, some.alarms,
                                       np.stack([counts[p] for p in some.parts.tolist()], axis=1))
            share = (1 if way == after else -1) * 2 / len(pairs) / len(keys)
            drawn += share * value
            exact[draw, seed, way] = exact.get((draw, seed, way), 0.0) \
                + some.numbers["pixel_ap"] / len(keys)
    parts = min(len(set(t.tested[key].parts[:len(t.draw.of(key)[0])].tolist()))
                for t, key in product(trials, keys))
    runs = sorted({(draw, seed) for draw, seed, _ in exact})
    n = max(2, parts)
    # Quantiles of resampled means are those of a normal distribution with the deviation of n, not
    # n - 1; of few parts Student's are wider.
    wider = t_quantile(0.975, n - 1) / 1.96 * (n / (n - 1)) ** 0.5
    low, middle, high = np.quantile(drawn, [0.025, 0.5, 0.975])
    old, new = ([exact[*run, way] for run in runs] for way in (before, after))
    return Comparison(float(np.mean(old)), float(np.mean(new)),
                      float(middle - wider * (middle - low)),
                      float(middle + wider * (high - middle)),
                      tuple(b - a for a, b in zip(old, new)), parts,
                      len({frozenset(p.path for p in t.draw.real) for t in trials}))


def mean_number(trials: list[Trial], way: str, keys: list[str], name: str) -> float:
    """Over draws, seeds and defects."""
    return float(np.mean([t.tested[k].numbers[name] for t in trials if t.way == way for k in keys]))


def verdict(trials: list[Trial], keys: list[str]) -> str:
    """A line, of the trials of one number of photographs."""
    real, control, paste = (compare(trials, way, BOTH, keys) for way in (REAL, SHUFFLED, PASTED))
    n = trials[0].draw.photographs
    figures = f"AP {real.before:.2f} -> {real.after:.2f} {real.interval} with {n} " \
        f"photograph{'s' if n > 1 else ''}, tested on {real.parts} parts"
    if not real.proof:
        word = (f"no verdict (it takes {DRAWS} draws of photographs, {DETECTORS} trials, draws "
                f"times --seeds, and {PARTS} parts; here {real.draws}, {len(real.differences)} and "
                f"{real.parts})")
    elif real.is_better() and control.is_better():
        word = "helps"
    elif real.is_better():
        word = (f"not shown to help: the control with shuffled masks has {control.before:.2f}, a "
                f"difference of {control.interval}")
    else:
        word = "harms" if real.is_better(-1) else real.word
    alarms = [mean_number(trials, way, keys, "false_alarms") for way in (REAL, BOTH)]
    return (f"{word}: {figures}; against crop-and-paste {paste.word} {paste.interval}; "
            f"false alarms where half of the defects are found {alarms[0]:.2f} -> {alarms[1]:.2f}")


def by_count(found: list[Trial]) -> Iterator[tuple[int, list[Trial]]]:
    """The trials of each number of photographs."""
    ordered = sorted(found, key=lambda one: one.draw.photographs)
    for count, some in groupby(ordered, key=lambda one: one.draw.photographs):
        yield count, list(some)


def by_defect(found: list[Trial]) -> Iterator[tuple[str, list[Trial], list[str]]]:
    """For each number of photographs each defect, and all of them, if there are more."""
    for _, some in by_count(found):
        keys = list(some[0].tested)
        yield from ((key, some, [key]) for key in keys)
        if len(keys) > 1:
            yield "all defects", some, keys


def verdicts(found: list[Trial]) -> Iterator[str]:
    """A line each."""
    for name, some, keys in by_defect(found):
        yield f"{name}: {verdict(some, keys)}"


@dataclass(frozen=True)
class Ablation:
    """One part of the method off: what it changes for a detector that learns from pairs alone."""

    defect: str
    photographs: int
    off: str
    against: str
    difference: Comparison
    pairs: int              # of the defect, at least

    @property
    def word(self) -> str:
        """How pairs without the part are."""
        return self.difference.word if any(self.difference.differences) else "the same pairs"

    def __str__(self) -> str:
        change = self.difference
        return (f"{self.defect}, {self.photographs} learned from, {self.off}: {self.word}: AP "
                f"{change.before:.2f} with {self.against} -> {change.after:.2f} {change.interval}")


def ablations(found: list[Trial]) -> Iterator[Ablation]:
    """Of every defect and number of photographs; none without --ablation."""
    for name, some, keys in by_defect(found):
        for off, ablated in some[0].draw.ablated.items():
            against = "the whole method" if ablated.against == PAIRS else ablated.against
            yield Ablation(name, some[0].draw.photographs, off, against,
                           compare(some, ablated.against, off, keys),
                           min(sum(p.key in keys for p in t.draw.ablated[off].pairs)
                               for t in some))
