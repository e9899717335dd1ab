"""bench.py convergence: how many U-Net evaluations textual inversion takes to be as good as a plain run gets.

The plain run is textual inversion as first published: batch 4, one rate for everything, all vectors begin at one
point, independent t and noise, the squared error averaged over all masked cells of the batch. The goal is the best
held-out masked loss that it shows in STEPS steps at its best rate of three, and half a per cent. Each candidate
changes one thing, at its best rate of three; the last has all of those that helped. Rates are chosen on other
defects (TUNING) than those that are reported (the demo's). A run learns three defects in turn; its loss is on a
fixed grid of pairs and timesteps that it has not seen.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from anomaly.crop import augmented
from anomaly.dataset import Defect
from anomaly.embedding import ENCODER_RATE, INITIAL_NOISE, VECTOR_RATE, AnomalyEmbedding, seed_of, word_rms
from anomaly.output.console import Progress
from anomaly.output.files import replacing
from anomaly.output.generate import context_of
from anomaly.output.synthetic.demo import DEMO, FRAME
from anomaly.train import WARM_UP, Views, backward, encode, masked_losses, predict
from benchmarks.material import BATCH, encoded, material, scenes
from benchmarks.tables import table
from ldm.model import StableDiffusion
from weights import load

TUNING = (("metal", "stain"), ("pill", "crack"), ("tile", "burn"))
STEPS, LOOK, LOOKS = 3000, 250, 25      # of the plain run; every how many steps it is looked at, and a candidate
CAP = 750                               # steps of a candidate after which it is given up
PAIRS, TIMES = 32, 40                   # of the grid
TRAINING, ROUNDS, SIZE = 12, 6, 4       # scenes a defect, views of each, batch
RATES = (0.3, 1.0, 3.0)                 # tried, in units of VECTOR_RATE and ENCODER_RATE
WITHIN = 1.005                          # of the goal


@dataclass(frozen=True)
class Recipe:
    """A way to do textual inversion."""

    name: str
    separate: bool = False          # a rate for the vectors in rms of a word, another for the encoder
    spread: float = 0.0             # of the vectors round the word, in rms of a word
    per_mask: bool = False          # each picture's error averaged over its own mask
    antithetic: bool = False        # two pictures, each with eps and with -eps
    stratified: bool = False        # one t from each quarter
    noisy: bool = False             # t = T sqrt(u)
    shared: bool = False            # one picture with four t and eps


PLAIN = Recipe("plain")
CANDIDATES = [Recipe("separate rates", separate=True), Recipe("a word plus noise", spread=INITIAL_NOISE),
              Recipe("loss per mask", per_mask=True), Recipe("antithetic noise", antithetic=True),
              Recipe("stratified t", stratified=True), Recipe("more of the noisy t", noisy=True),
              Recipe("four t a picture", shared=True)]


def draw(recipe: Recipe, views: Views, timesteps: int, step: int) -> tuple[Tensor, ...]:
    """z_0, m, masks, t and eps of a step."""
    generator = torch.Generator().manual_seed(seed_of(0, step))
    i = torch.randint(len(views.latents), (SIZE,), generator=generator)
    u = torch.rand(SIZE, generator=generator)
    eps = torch.randn((SIZE, *views.latents.shape[1:]), generator=generator)
    if recipe.stratified:
        u = (torch.arange(SIZE) + u) / SIZE
    if recipe.noisy:
        u = u.sqrt()
    if recipe.shared:
        i = i[:1].expand(SIZE)
    if recipe.antithetic:
        half = SIZE // 2
        i, u, eps = i[:half].repeat(2), u[:half].repeat(2), torch.cat([eps[:half], -eps[:half]])
    return views.latents[i], views.cells[i], views.masks[i], (u * timesteps).long(), eps


def learner_of(sd: StableDiffusion, recipe: Recipe, defects: list[Defect]) -> AnomalyEmbedding:
    """Fresh vectors; the spread is replaced, not redrawn."""
    learner = AnomalyEmbedding(sd, defects, seed=0)
    with torch.no_grad():
        for vectors in learner.e_a.values():
            middle = vectors.mean(dim=0, keepdim=True)
            vectors.copy_(middle + (vectors - middle) * recipe.spread / INITIAL_NOISE)
    return learner


def learn(sd: StableDiffusion, recipe: Recipe, factor: float, learner: AnomalyEmbedding,
          views: dict[str, Views]) -> Iterator[int]:
    """Endless steps; yields the number done."""
    stems, timesteps = list(views), sd.schedule.config.train_timesteps
    vector_rate = VECTOR_RATE * word_rms(sd)
    groups = [(list(learner.e_a.values()), vector_rate),
              (list(learner.spatial_encoder.parameters()), ENCODER_RATE if recipe.separate else vector_rate)]
    optimizer = torch.optim.Adam([{"params": p, "lr": factor * rate} for p, rate in groups])
    rates, parameters, step = [g["lr"] for g in optimizer.param_groups], [p for g, _ in groups for p in g], 0
    while True:
        stem = stems[step % len(stems)]
        for group, rate in zip(optimizer.param_groups, rates):
            group["lr"] = rate * min(1.0, (step // len(stems) + 1) / WARM_UP)
        z_0, cells, masks, t, eps = draw(recipe, views[stem], timesteps, step)
        out = predict(sd, learner(stem, masks), z_0, t, eps)
        losses = masked_losses(out, sd.schedule.target(z_0, t, eps), cells)
        area = torch.ones(len(cells)) if recipe.per_mask else cells.sum(dim=(1, 2)).float()
        backward((losses * area).sum() / area.sum(), out, parameters)
        optimizer.step()
        step += 1
        yield step


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


class Course:
    """A set of defects to learn, with the pairs to be looked at; finished runs are kept on the disk."""

    def __init__(self, folder: Path, sd: StableDiffusion, pairs: tuple[tuple[str, str], ...], name: str):
        self.sd, self.name, self.path = sd, name, folder / "convergence.json"
        self.defects = [Defect(product, defect, ()) for product, defect in pairs]
        self.pairs = pairs
        self._views: dict[str, Views] = {}
        self._grids: dict[str, Grid] = {}

    def prepare(self) -> None:
        """Draw and encode, once."""
        if self._views:
            return
        size, factor = self.sd.native_size, self.sd.vae.config.factor
        shares = [PAIRS // len(self.pairs) + (i < PAIRS % len(self.pairs)) for i in range(len(self.pairs))]
        with Progress(f"encoding the pairs of {self.name}", len(self.pairs)) as progress:
            for (product, defect), count, d in zip(self.pairs, shares, self.defects):
                rng = np.random.default_rng(crc32(f"views/{product}/{defect}".encode()))
                drawn = [s.render(FRAME) for _, s in zip(range(TRAINING), scenes("training", product, defect))]
                views = [augmented(*pair, size, factor, True, rng) for pair in drawn * ROUNDS]
                self._views[d.stem] = encode(self.sd, views)
                self._grids[d.stem] = grid_of(self.sd, product, defect, count)
                progress.step()

    def run(self, recipe: Recipe, factor: float, steps: int, every: int, goal: float = 0.0) -> list[float]:
        """Held-out losses every so many steps, up to `steps`, or to the first at or below the goal."""
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        key = f"{self.name}/{recipe.name}/{factor:g}/{steps}/{every}/{goal:.6f}"
        if key not in kept:
            self.prepare()
            learner, losses = learner_of(self.sd, recipe, self.defects), []
            with Progress(f"{self.name}: {recipe.name}, rate x {factor:g}", steps) as progress:
                for step in learn(self.sd, recipe, factor, learner, self._views):
                    progress.step()
                    if step % every == 0:
                        losses.append(held_out(self.sd, learner, self._grids))
                    if step == steps or (losses and losses[-1] <= goal):
                        break
            kept[key] = losses
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(kept, indent=1) + "\n")
        return kept[key]


def reached(losses: list[float], every: int, goal: float) -> float:
    """Steps to the first loss at or below the goal; infinite if there is none."""
    return next(((i + 1) * every for i, loss in enumerate(losses) if loss <= goal), np.inf)


def best_rate(course: Course, recipe: Recipe, goal: float) -> tuple[float, float]:
    """The rate that reaches the goal first, or comes closest to it; and its steps."""
    found = []
    for factor in RATES:
        losses = course.run(recipe, factor, CAP, LOOKS, goal)
        found.append((reached(losses, LOOKS, goal), min(losses), factor))
    steps, _, factor = min(found)
    return factor, steps


def row(name: str, factor: float, losses: list[float], every: int, goal: float, plain: float) -> list[str]:
    """A line of the table."""
    steps = reached(losses, every, goal)
    cost = f"{steps * SIZE:.0f}" if np.isfinite(steps) else f"not in {len(losses) * every * SIZE}"
    return [name, f"{factor:g}", f"{min(losses):.4f}", cost, f"{steps / plain:.2f}" if np.isfinite(steps) else ""]


def main(folder: Path) -> None:
    """Choose on TUNING, report on the demo's defects."""
    folder.mkdir(parents=True, exist_ok=True)
    sd = load("tiny")
    tuning, report = Course(folder, sd, TUNING, "tuning"), Course(folder, sd, DEMO, "report")
    tried = {factor: tuning.run(PLAIN, factor, STEPS, LOOK) for factor in RATES}
    factor = min(tried, key=lambda f: min(tried[f]))
    goal = WITHIN * min(tried[factor])
    base = reached(tried[factor], LOOK, goal)
    chosen = {recipe: best_rate(tuning, recipe, goal) for recipe in [PLAIN, *CANDIDATES]}
    alone = chosen[PLAIN][1]
    helped = {name for recipe, (_, steps) in chosen.items() for name, value in vars(recipe).items()
              if recipe != PLAIN and steps < min(base, alone) and name != "name" and value != getattr(PLAIN, name)}
    values = {name: getattr(recipe, name) for recipe in CANDIDATES for name in helped if getattr(recipe, name)}
    together = replace(PLAIN, name="all that helped", **values)
    chosen[together] = best_rate(tuning, together, goal)
    plain = report.run(PLAIN, factor, STEPS, LOOK)
    goal = WITHIN * min(plain)
    base = reached(plain, LOOK, goal)
    rows = [row(f"plain, looked at every {LOOK}", factor, plain, LOOK, goal, base)]
    rows += [row(r.name, f, report.run(r, f, CAP, LOOKS, goal), LOOKS, goal, base) for r, (f, _) in chosen.items()]
    table(["recipe", "rate x", "best loss", "U-Net evaluations", "of the plain run's"], rows)
    print(f"\ngoal {goal:.5f}; of all that helped: {', '.join(sorted(helped)) or 'none'}")
