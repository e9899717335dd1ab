"""How noisy the gradient of textual inversion is, for bench.py details: at which t, and with -eps beside eps."""

from collections.abc import Iterator

import torch
from torch import Tensor

from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.output.console import Progress
from anomaly.train import Views, masked_losses, predict
from benchmarks.material import BATCH
from benchmarks.painting import Bench
from ldm.model import StableDiffusion

TIMES = tuple(range(50, 1000, 100))
VIEWS = 32      # at each timestep, each with a noise, with the same of the other sign, and with another noise


def of_samples(sd: StableDiffusion, learner: AnomalyEmbedding, stem: str, views: Views, i: Tensor, t: int,
               eps: Tensor) -> Tensor:
    """The gradient of each sample's own masked loss at e_a, (n, values of e_a): of views i, with noise eps."""
    found = []
    for part in torch.arange(len(i)).split(BATCH):
        z_0, noise, now = views.latents[i[part]], eps[part], torch.full((len(part),), t)
        with torch.no_grad():
            vectors = learner(stem, views.masks[i[part]])
        e_a = vectors["e_a"].clone().requires_grad_()       # each sample has its own
        out = predict(sd, vectors | {"e_a": e_a}, z_0, now, noise)
        losses = masked_losses(out, sd.schedule.target(z_0, now, noise), views.cells[i[part]])
        found.append(torch.autograd.grad(losses.sum(), e_a)[0].flatten(1))
    return torch.cat(found).double()


def variance(gradients: Tensor) -> Tensor:
    """Of samples (..., n, values), summed over the values: (...)."""
    return gradients.var(dim=-2).sum(dim=-1)


def signal_to_noise(gradients: Tensor) -> Tensor:
    """|mean|^2 / variance of one sample (..., n, values); |mean|^2 less what of it is chance, variance / n: (...)."""
    return gradients.mean(dim=-2).square().sum(dim=-1) / variance(gradients) - 1 / gradients.shape[-2]


def paired(a: Tensor, b: Tensor) -> float:
    """Variance of a batch's mean, two noises a picture, over that of as large a batch, one a picture; all at one t.

    a, b (T, n, values): gradients of the same pictures with the one noise and with the other; variances are averaged
    over T. v / n for n samples; for n / 2 pairs that of a pair's mean over n / 2.
    """
    return float(2 * variance((a + b) / 2).mean() / variance(torch.cat([a, b], dim=-2)).mean())


def measured(bench: Bench, learner: AnomalyEmbedding, defect: Defect, name: str) -> list[float]:
    """signal_to_noise at each of TIMES; paired with eps and -eps and with two noises.

    The same views and noises for each name.
    """
    key = f"gradients/{defect.key}/{name}/{len(TIMES)} x {VIEWS}, at each t"
    if key not in bench.found:
        views, generator, found = bench.views(0, False)[defect.stem], torch.Generator().manual_seed(0), []
        with Progress(f"gradients: {defect.key}, {name}", len(TIMES)) as progress:
            for t in progress.each(TIMES):
                i = torch.randint(len(views.latents), (VIEWS,), generator=generator)
                eps, other = torch.randn((2, VIEWS, *views.latents.shape[1:]), generator=generator)
                found.append(torch.stack([of_samples(bench.sd, learner, defect.stem, views, i, t, noise)
                                          for noise in (eps, -eps, other)]))
        plus, minus, other = torch.stack(found, dim=1)
        bench.keep(key, [*signal_to_noise(plus).tolist(), paired(plus, minus), paired(plus, other)])
    return bench.found[key]


def noises(bench: Bench) -> Iterator[list[str]]:
    """Two lines a defect: as learning starts, and when it is done."""
    start = AnomalyEmbedding(bench.sd, bench.defects, 0)
    for defect in bench.defects:
        for name, learner in (("at the start", start), ("learned", bench.learners["learned"])):
            yield [defect.key, name, *(f"{x:.2f}" for x in measured(bench, learner, defect, name))]
