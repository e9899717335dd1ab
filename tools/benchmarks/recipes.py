"""Ways to do textual inversion, for bench.py convergence."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from anomaly.dataset import Defect
from anomaly.embedding import ENCODER_RATE, INITIAL_NOISE, VECTOR_RATE, AnomalyEmbedding, seed_of, word_rms
from anomaly.train import WARM_UP, Views, backward, masked_losses, predict, rate
from ldm.model import StableDiffusion

SIZE = 4        # of a batch


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
    single: bool = False            # a step of the optimizer for each picture of a batch, one after the other
    falling: bool = False           # rates that fall in the end, as the tools' do
    seed: int = 0                   # of the vectors and of what a step draws; the views are the same


PLAIN, WHOLE = Recipe("plain"), Recipe("whole photographs", whole=True)
TOOLS = Recipe("what the tools do", separate=True, spread=INITIAL_NOISE, per_mask=True, falling=True)
CANDIDATES = [Recipe("separate rates", separate=True), Recipe("a word plus noise", spread=INITIAL_NOISE),
              Recipe("loss per mask", per_mask=True), Recipe("antithetic noise", antithetic=True),
              Recipe("stratified t", stratified=True), Recipe("more of the noisy t", noisy=True),
              Recipe("four t a picture", shared=True), WHOLE,
              Recipe("averaged vectors", averaged=True), Recipe("batches of one", single=True)]


def draw(recipe: Recipe, views: Views, timesteps: int, step: int) -> tuple[Tensor, ...]:
    """z_0, m, masks, t and eps of a step."""
    generator = torch.Generator().manual_seed(seed_of(recipe.seed, step))
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
        done = step // len(stems)
        for group, base in zip(optimizer.param_groups, rates):
            group["lr"] = base * (rate(done) if recipe.falling else min(1.0, (done + 1) / WARM_UP))
        drawn = draw(recipe, views[stem], timesteps, step)
        for z_0, cells, masks, t, eps in zip(*(x.split(1 if recipe.single else SIZE) for x in drawn)):
            out = predict(sd, learner(stem, masks), z_0, t, eps)
            losses = masked_losses(out, sd.schedule.target(z_0, t, eps), cells)
            area = torch.ones(len(cells)) if recipe.per_mask else cells.sum(dim=(1, 2)).float()
            backward((losses * area).sum() / area.sum(), out, parameters)
            optimizer.step()
        step += 1
        yield step
