"""bench.py convergence: how many U-Net evaluations textual inversion takes to be as good as a plain run gets.

The plain run is textual inversion as first published: batch 4, one rate for everything, all vectors begin at one
point, independent t and noise, the squared error averaged over all masked cells of the batch. The goal is the best
held-out masked loss that it shows in STEPS steps at the best of three rates, and half a per cent.

Candidates change one thing each. They are tried on other defects (TUNING) than those that are reported, the demo's:
TRIAL steps at each of three rates, of which the best is taken. The last recipe begins with the best of them and takes
on each other that was below the plain one, the best first, if it is lower still with it. Reported are the best
candidate, the last recipe, and what the tools do at their own rates.

A run learns three defects in turn; its loss is on a fixed grid of pairs and timesteps that it has not seen. Every
recipe is measured in crops round the defects, where defects are painted, and all but one learn from such crops.
"""

import json
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from anomaly.crop import Crop, Cropped, augmented, take, turned
from anomaly.dataset import Defect
from anomaly.embedding import ENCODER_RATE, INITIAL_NOISE, VECTOR_RATE, AnomalyEmbedding, seed_of, word_rms
from anomaly.output.console import Progress
from anomaly.output.files import replacing
from anomaly.output.generate import context_of
from anomaly.output.synthetic.demo import DEMO, FRAME
from anomaly.train import WARM_UP, Views, backward, encode, masked_losses, predict
from benchmarks.material import BATCH, encoded, material, scenes
from benchmarks.tables import check_made_with, table
from ldm.model import StableDiffusion
from weights import fingerprint, load

TUNING = (("metal", "stain"), ("pill", "crack"), ("tile", "burn"))
STEPS, LOOK = 3000, 250                 # of the plain run; every how many steps it is looked at
TRIAL = 300                             # of a recipe on the tuning defects, looked at once
CAP, FIRST, FINE = 600, 150, 25         # of a candidate: given up after so many; looked at; before the first good look
PAIRS, TIMES = 32, 40                   # of the grid
TRAINING, ROUNDS, SIZE = 12, 6, 4       # scenes a defect, views of each, batch
RATES = (0.3, 1.0, 3.0)                 # tried, in units of VECTOR_RATE and ENCODER_RATE
WITHIN = 1.005                          # of the goal
HORIZON = 100                           # steps over which vectors are averaged


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
    whole: bool = False             # whole photographs in the place of crops
    averaged: bool = False          # the moving average of the vectors and the encoder is what is looked at
    seed: int = 0                   # of the vectors and of all draws


PLAIN = Recipe("plain")
TOOLS = Recipe("what the tools do", separate=True, spread=INITIAL_NOISE, per_mask=True)
CANDIDATES = [Recipe("separate rates", separate=True), Recipe("a word plus noise", spread=INITIAL_NOISE),
              Recipe("loss per mask", per_mask=True), Recipe("antithetic noise", antithetic=True),
              Recipe("stratified t", stratified=True), Recipe("more of the noisy t", noisy=True),
              Recipe("four t a picture", shared=True), Recipe("whole photographs", whole=True),
              Recipe("averaged vectors", averaged=True)]


def draw(recipe: Recipe, views: Views, timesteps: int, step: int) -> tuple[Tensor, ...]:
    """z_0, m, masks, t and eps of a step."""
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, step))
    i = torch.randint(len(views.latents), (SIZE,), generator=generator)
    u = torch.rand(SIZE, generator=generator)
    eps = torch.randn((SIZE, *views.latents.shape[1:]), generator=generator)
    if recipe.stratified:
        drawn = SIZE // 2 if recipe.antithetic else SIZE
        u[:drawn] = (torch.arange(drawn) + u[:drawn]) / drawn
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
    learner = AnomalyEmbedding(sd, defects, recipe.seed)
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

    def run(self, recipe: Recipe, factor: float, steps: int, look: int, fine: int, goal: float = 0.0) -> Losses:
        """Held-out losses every `look` steps, up to `steps` or to the first at or below the goal.

        Before that first one, every `fine` steps up to one that is there already.
        """
        kept = json.loads(self.path.read_text()) if self.path.exists() else {}
        check_made_with(self.path, kept, {"weights": fingerprint("tiny"), "rates": [VECTOR_RATE, ENCODER_RATE],
                                          "grid": [PAIRS, TIMES], "learned from": [TRAINING, ROUNDS, SIZE]})
        key = f"{self.name}/{recipe}/{factor:g}/{steps}/{look}/{fine}/{goal:.6f}"
        if key not in kept:
            self.prepare()
            with Progress(f"{self.name}: {recipe.name}, rate x {factor:g}", steps) as progress:
                kept[key] = list(self._losses(recipe, factor, steps, look, fine, goal, progress))
            with replacing(self.path) as temporary:
                temporary.write_text(json.dumps(kept, indent=1) + "\n")
        return [(step, loss) for step, loss in kept[key]]

    def _losses(self, recipe: Recipe, factor: float, steps: int, look: int, fine: int, goal: float,
                progress: Progress) -> Iterator[tuple[int, float]]:
        learner, since = learner_of(self.sd, recipe, self.defects), {}
        shown = deepcopy(learner)
        for step in learn(self.sd, recipe, factor, learner, self._views[recipe.whole]):
            progress.step()
            with torch.no_grad():
                for average, new in zip(shown.parameters(), learner.parameters()):
                    average.lerp_(new, 1 / min(step, HORIZON) if recipe.averaged else 1.0)
            if step % look:
                if step % fine == 0:
                    since[step] = deepcopy(shown)
                continue
            loss = held_out(self.sd, shown, self._grids)
            if loss <= goal:
                for earlier, state in since.items():
                    yield earlier, (before := held_out(self.sd, state, self._grids))
                    if before <= goal:
                        return
            yield step, loss
            if loss <= goal or step >= steps:
                return
            since.clear()


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


def trial(course: Course, recipe: Recipe) -> tuple[float, float]:
    """The lowest loss after TRIAL steps, and the rate that has it."""
    return min((lowest(course.run(recipe, factor, TRIAL, TRIAL, TRIAL)), factor) for factor in RATES)


def together(course: Course, tried: dict[Recipe, tuple[float, float]]) -> tuple[Recipe, tuple[float, float]]:
    """The best candidate with all that lowers its loss at its rate; that loss and rate."""
    helpful = sorted((r for r in CANDIDATES if tried[r][0] < tried[PLAIN][0]), key=tried.get)
    if not helpful:
        return PLAIN, tried[PLAIN]
    best, (loss, factor) = helpful[0], tried[helpful[0]]
    for recipe in helpful[1:]:
        change = {k: v for k, v in vars(recipe).items() if k != "name" and v != getattr(PLAIN, k)}
        both = replace(best, name=f"{best.name}, {recipe.name}", **change)
        found = lowest(course.run(both, factor, TRIAL, TRIAL, TRIAL))
        if found < loss:
            best, loss = both, found
    return best, (loss, factor)


def row(name: str, factor: float, losses: Losses, goal: float, plain: float) -> list[str]:
    """A line of the table."""
    steps = reached(losses, goal)
    cost = f"{steps * SIZE:.0f}" if np.isfinite(steps) else f"not in {losses[-1][0] * SIZE}"
    return [name, f"{factor:g}", f"{lowest(losses):.4f}", cost, f"{steps / plain:.2f}" if np.isfinite(steps) else ""]


def main(folder: Path) -> None:
    """Choose on TUNING, report on the demo's defects."""
    folder.mkdir(parents=True, exist_ok=True)
    sd = load("tiny")
    tuning, report = Course(folder, sd, TUNING, "tuning"), Course(folder, sd, DEMO, "report")
    tried = {recipe: trial(tuning, recipe) for recipe in [PLAIN, *CANDIDATES]}
    last, found = together(tuning, tried)
    tried[last] = found
    tried[TOOLS] = lowest(tuning.run(TOOLS, 1.0, TRIAL, TRIAL, TRIAL)), 1.0
    best = min([PLAIN, *CANDIDATES], key=tried.get)
    for recipe in dict.fromkeys([PLAIN, best]):     # how much is chance
        factor = tried[recipe][1]
        other = replace(recipe, name=f"{recipe.name}, another seed", seed=1)
        tried[other] = lowest(tuning.run(other, factor, TRIAL, TRIAL, TRIAL)), factor
    print(f"\nOn other defects, after {TRIAL} steps:")
    table(["recipe", "rate x", "loss"], [[r.name, f"{f:g}", f"{loss:.4f}"] for r, (loss, f) in tried.items()])
    plain = {factor: report.run(PLAIN, factor, STEPS, LOOK, LOOK) for factor in RATES}
    looks = [str(step) for step, _ in plain[RATES[0]]]
    print("\nThe plain recipe's losses after so many steps:")
    table(["rate x", *looks], [[f"{f:g}", *(f"{loss:.4f}" for _, loss in losses)] for f, losses in plain.items()])
    goal = WITHIN * min(map(lowest, plain.values()))
    base = min(reached(losses, goal) for losses in plain.values())
    rows = [row(f"plain, {STEPS} steps", f, losses, goal, base) for f, losses in plain.items()]
    for recipe in dict.fromkeys([best, last, TOOLS]):
        factor = tried[recipe][1]
        losses = report.run(recipe, factor, CAP, FIRST, FINE, goal)
        rows.append(row(recipe.name, factor, losses, goal, base))
    print(f"\nTo a loss of {goal:.4f}:")
    table(["recipe", "rate x", "best loss", "U-Net evaluations", "of the plain run's"], rows)
