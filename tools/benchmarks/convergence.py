"""bench.py convergence: how many U-Net evaluations textual inversion takes to be as good as a plain run gets.

The plain run is textual inversion as first published: batch 4, one rate for everything, all vectors begin at one
point, independent t and noise, the squared error averaged over all masked cells of the batch. The goal is the best
held-out masked loss that it shows in STEPS steps at the best of three rates, and half a per cent. There are two such
runs, from crops round the defects and from whole photographs.

Candidates change one thing each; but of one picture there is one mask, so that "four t a picture" and "batches of one"
average over each picture's own mask, too. They are tried on other defects (TUNING) than those that are reported, the
demo's: TRIAL steps at each of three rates; at the best of them with a second seed, too, since seeds differ as much as
recipes. Reported are the plain recipe and the best candidate, with both seeds, and what the tools do; candidates are
looked at more often, for a fifth of the steps that the plain run takes to the goal.

Steps are counted in batches of SIZE whatever a recipe does with them: a step is SIZE evaluations of the U-Net.

A run learns three defects in turn; its loss is on a fixed grid of pairs and timesteps that it has not seen. Every
recipe is measured in crops round the defects, where defects are painted, and all but one learn from such crops.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from anomaly.crop import Crop, Cropped, augmented, take, turned
from anomaly.dataset import Defect
from anomaly.embedding import ENCODER_RATE, VECTOR_RATE, AnomalyEmbedding
from anomaly.output.console import Progress
from anomaly.output.files import replacing
from anomaly.output.generate import context_of
from anomaly.output.synthetic.demo import DEMO, FRAME
from anomaly.train import Views, encode, masked_losses
from benchmarks.material import BATCH, encoded, material, scenes
from benchmarks.recipes import CANDIDATES, PLAIN, SIZE, TOOLS, WHOLE, Recipe, learn, learner_of
from benchmarks.tables import check_made_with, table
from ldm.model import StableDiffusion
from weights import fingerprint, load

TUNING = (("metal", "stain"), ("pill", "crack"), ("tile", "burn"))
STEPS, LOOK = 3000, 250                 # of the plain run; every how many steps it is looked at
TRIAL = 300                             # of a recipe on the tuning defects, looked at once
ASKED, FINE = 5, 25                     # of a candidate: part of the plain run's steps; every how many it is looked at
PAIRS, TIMES = 32, 40                   # of the grid
TRAINING, ROUNDS = 12, 6                # scenes a defect, views of each
RATES = (0.3, 1.0, 3.0)                 # tried, in units of VECTOR_RATE and ENCODER_RATE
SEEDS = (0, 1)
WITHIN = 1.005                          # of the goal
HORIZON = 100                           # steps over which vectors are averaged


@dataclass(frozen=True)
class Grid:
    """Held-out pairs of a defect, each at TIMES timesteps with fixed noise."""

    masks: Tensor
    cells: Tensor
    x_t: Tensor
    t: Tensor
    target: Tensor
    pair: Tensor        # which pair each is of


def grid_of(sd: StableDiffusion, product: str, defect: str, count: int) -> Grid:
    """The grid's part of one defect."""
    scene = material(sd, "held out", product, defect, count, sd.native_size)
    x_0, pair = encoded(sd, scene.real), torch.arange(count).repeat_interleave(TIMES)
    t = ((torch.arange(TIMES) + 0.5) / TIMES * sd.schedule.config.train_timesteps).long().repeat(count)
    eps = torch.randn((len(t), *x_0.shape[1:]), generator=torch.Generator().manual_seed(0))
    return Grid(scene.masks, scene.cells, sd.schedule.q_sample(x_0[pair], t, eps), t,
                sd.schedule.target(x_0[pair], t, eps), pair)


@torch.no_grad()
def held_out(sd: StableDiffusion, learner: AnomalyEmbedding, grids: dict[str, Grid]) -> float:
    """Mean masked loss of the grid."""
    losses = []
    for stem, g in grids.items():
        context = context_of(sd, learner, stem, g.masks)
        for part in torch.arange(len(g.t)).split(2 * BATCH):
            out = sd.unet(g.x_t[part], g.t[part], context[g.pair[part]])
            losses.append(masked_losses(out, g.target[part], g.cells[g.pair[part]]))
    return float(torch.cat(losses).mean())


Losses = list[tuple[int, float]]        # after how many steps, and how much


class Course:
    """A set of defects to learn, with the pairs to be looked at; finished runs are kept on the disk."""

    def __init__(self, folder: Path, sd: StableDiffusion, pairs: tuple[tuple[str, str], ...], name: str):
        self.sd, self.name, self.path = sd, name, folder / "convergence.json"
        self.defects = [Defect(product, defect, ()) for product, defect in pairs]
        self.pairs = pairs
        self._views: dict[bool, dict[str, Views]] = {False: {}, True: {}}     # crops; whole photographs
        self._grids: dict[str, Grid] = {}

    def prepare(self) -> None:
        """Draw and encode, once."""
        if self._grids:
            return
        size, factor = self.sd.native_size, self.sd.vae.config.factor
        shares = [PAIRS // len(self.pairs) + (i < PAIRS % len(self.pairs)) for i in range(len(self.pairs))]
        with Progress(f"encoding the pairs of {self.name}", len(self.pairs)) as progress:
            for (product, defect), count, d in zip(self.pairs, shares, self.defects):
                drawn = [s.render(FRAME) for _, s in zip(range(TRAINING), scenes("training", product, defect))]
                for whole in self._views:
                    rng = np.random.default_rng(crc32(f"views/{product}/{defect}".encode()))
                    view = whole_view if whole else augmented
                    self._views[whole][d.stem] = encode(
                        self.sd, [view(*pair, size, factor, True, rng) for pair in drawn * ROUNDS])
                self._grids[d.stem] = grid_of(self.sd, product, defect, count)
                progress.step()

    def run(self, recipe: Recipe, factor: float, steps: int, look: int, goal: float = 0.0) -> Losses:
        """Held-out losses every `look` steps, up to `steps` or to the first at or below the goal."""
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        check_made_with(self.path, kept, {"weights": fingerprint("tiny"), "rates": [VECTOR_RATE, ENCODER_RATE],
                                          "grid": [PAIRS, TIMES], "learned from": [TRAINING, ROUNDS, SIZE]})
        key = f"{self.name}/{recipe}/{factor:g}/{steps}/{look}/{goal:.6f}"
        if key not in kept:
            self.prepare()
            with Progress(f"{self.name}: {recipe.name}, rate x {factor:g}", steps) as progress:
                kept[key] = list(self._losses(recipe, factor, steps, look, goal, progress))
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(kept, indent=1) + "\n")
        return [(step, loss) for step, loss in kept[key]]

    def _losses(self, recipe: Recipe, factor: float, steps: int, look: int, goal: float,
                progress: Progress) -> Iterator[tuple[int, float]]:
        learner = learner_of(self.sd, recipe, self.defects)
        shown = deepcopy(learner)
        for step in learn(self.sd, recipe, factor, learner, self._views[recipe.whole]):
            progress.step()
            with torch.no_grad():
                for average, new in zip(shown.parameters(), learner.parameters()):
                    average.lerp_(new, 1 / min(step, HORIZON) if recipe.averaged else 1.0)
            if step % look == 0:
                loss = held_out(self.sd, shown, self._grids)
                yield step, loss
                if loss <= goal or step >= steps:
                    return


def whole_view(photograph: np.ndarray, mask: np.ndarray, size: int, factor: int, flip: bool,
               rng: np.random.Generator) -> Cropped:
    """As augmented, without the crop; the photograph is square."""
    photograph, mask = turned(photograph, mask, flip, rng)
    return take(photograph, mask, Crop(0, 0, len(mask)), size, factor)


def reached(losses: Losses, goal: float) -> float:
    """Steps to the first loss at or below the goal; infinite if there is none."""
    return next((step for step, loss in losses if loss <= goal), np.inf)


def lowest(losses: Losses) -> float:
    """The best loss of a run."""
    return min(loss for _, loss in losses)


@dataclass(frozen=True)
class Trial:
    """What a recipe came to on the tuning defects: its best rate, its losses with each seed at that."""

    factor: float
    losses: tuple[float, ...]

    @property
    def mean(self) -> float:
        return float(np.mean(self.losses))


def seeded(recipe: Recipe, seed: int) -> Recipe:
    """The recipe with another seed."""
    return replace(recipe, name=f"{recipe.name}, another seed", seed=seed) if seed else recipe


def trial(course: Course, recipe: Recipe, rates: tuple[float, ...]) -> Trial:
    """Losses after TRIAL steps, at the rate whose loss is the lowest with the first seed."""
    def loss(seed: int, factor: float) -> float:
        return lowest(course.run(seeded(recipe, seed), factor, TRIAL, TRIAL))

    factor = min(rates, key=partial(loss, 0))
    return Trial(factor, tuple(loss(seed, factor) for seed in SEEDS))


def row(name: str, factor: float, losses: Losses, goal: float, plain: float) -> list[str]:
    """A line of the table."""
    steps = reached(losses, goal)
    cost = f"{steps * SIZE:.0f}" if np.isfinite(steps) else f"not by {losses[-1][0] * SIZE}"
    return [name, f"{factor:g}", f"{lowest(losses):.4f}", cost, f"{steps / plain:.2f}" if np.isfinite(steps) else ""]


def race(report: Course, plain: Recipe, again: tuple[Recipe, ...], candidates: list[tuple[Recipe, float]]) -> None:
    """Two tables: the plain recipe's losses at every rate; who comes to its best, and when.

    again: the plain recipe with other seeds, at its best rate. candidates: each with its rate.
    """
    runs = {factor: report.run(plain, factor, STEPS, LOOK) for factor in RATES}
    looks = [str(step) for step, _ in runs[RATES[0]]]
    print(f"\nLosses of {plain.name} after so many steps:")
    table(["rate x", *looks], [[f"{f:g}", *(f"{loss:.4f}" for _, loss in losses)] for f, losses in runs.items()])
    goal = WITHIN * min(map(lowest, runs.values()))
    best = min(RATES, key=lambda factor: reached(runs[factor], goal))
    base = reached(runs[best], goal)
    rows = [row(f"{plain.name}, {STEPS} steps", f, losses, goal, base) for f, losses in runs.items()]
    rows += [row(f"{recipe.name}, {STEPS} steps", best, report.run(recipe, best, STEPS, LOOK), goal, base)
             for recipe in again]
    rows += [row(recipe.name, factor, report.run(recipe, factor, base // ASKED, FINE, goal), goal, base)
             for recipe, factor in dict.fromkeys(candidates)]
    print(f"\nTo a loss of {goal:.4f}:")
    table(["recipe", "rate x", "lowest loss", "U-Net evaluations", "of the plain run's"], rows)


def main(folder: Path) -> None:
    """Choose on TUNING, report on the demo's defects."""
    folder.mkdir(parents=True, exist_ok=True)
    sd = load("tiny")
    tuning, report = Course(folder, sd, TUNING, "tuning"), Course(folder, sd, DEMO, "report")
    tried = {recipe: trial(tuning, recipe, RATES) for recipe in [PLAIN, *CANDIDATES]}
    best = min(tried, key=lambda recipe: tried[recipe].mean)
    tried[TOOLS] = trial(tuning, TOOLS, (1.0,))
    print(f"\nOn other defects, after {TRIAL} steps:")
    table(["recipe", "rate x", "loss", "with another seed", "mean"],
          [[r.name, f"{t.factor:g}", *(f"{x:.4f}" for x in (*t.losses, t.mean))] for r, t in tried.items()])
    others = [*((seeded(best, seed), tried[best].factor) for seed in SEEDS), (TOOLS, 1.0)]
    race(report, PLAIN, tuple(seeded(PLAIN, seed) for seed in SEEDS[1:]), others)
    race(report, WHOLE, (), [*((seeded(PLAIN, seed), tried[PLAIN].factor) for seed in SEEDS), *others])
