"""What the spatial embedding knows of the place."""

import torch
from torch import Tensor

from anomaly.dataset import Defect
from anomaly.output.console import Progress
from anomaly.output.generate import context_of
from anomaly.output.quality import intersection_over_union, place
from anomaly.sampler import STEPS, Guidance, guided
from anomaly.train import masked_losses
from benchmarks.material import BATCH, Material, encoded, material
from benchmarks.painting import Bench, Numbers, Row
from benchmarks.variants import ALL
from ldm.model import StableDiffusion

TIMES = (100, 300, 500, 700, 900)   # of the losses
START = 700                         # the unblended painting starts at the first timestep of its steps that is not above


def unblended(sd: StableDiffusion, y_0: Tensor, noise: Tensor, context: Tensor, guidance: Guidance) -> Tensor:
    """DDIM from q(y_t) at the first t up to START, where nothing holds the surroundings."""
    pairs = [pair for pair in sd.schedule.timesteps(STEPS) if pair[0] <= START]
    x_t = sd.schedule.q_sample(y_0, torch.full((len(y_0),), pairs[0][0]), noise)
    for pair in pairs:
        t, t_prev = (torch.full((len(y_0),), value) for value in pair)
        out = guided(sd, x_t, t, context, guidance)
        x_t = sd.schedule.ddim_step(sd.schedule.x0_hat(x_t, t, out), sd.schedule.eps_hat(x_t, t, out), t_prev)
    return x_t


def scenes_of(bench: Bench, variant: str, defect: Defect) -> Material:
    """Scenes in such crops as the variant learned from."""
    count = bench.scale.main[0]
    if ALL[variant].wide:
        return material(bench.sd, "report", defect.object, defect.name, count, bench.size, wide=True)
    return bench.material("report", defect, count)[0]


@torch.no_grad()
def measured(bench: Bench, variant: str, defect: Defect) -> Numbers:
    """Of each scene: the losses in the mask and outside it, with e_s of it, of its mirror image, of the next scene's.

    The same t and noise in all three, and the guidance of what the tools learned. And how much more an unblended
    painting changes the mask without its mirror image than the mirror image without the mask, with e_s of the one
    and of the other. And the overlap (IoU) of the mask and its mirror image.
    """
    sd, scene = bench.sd, scenes_of(bench, variant, defect)
    learner, masks, mirrored = bench.learners[variant], scene.masks, scene.masks.flip(2)
    guidance = bench.settings(bench.settled(Row(""), defect)).guidance
    x_0, y_0 = encoded(sd, scene.real), encoded(sd, scene.normal)
    eps = torch.randn(x_0.shape, generator=torch.Generator().manual_seed(0))
    contexts = {name: context_of(sd, learner, defect.stem, m)
                for name, m in (("right", masks), ("mirrored", mirrored), ("another", masks.roll(1, 0)))}
    numbers: Numbers = {}
    for name, context in contexts.items():
        inside, outside = [], []
        for time in TIMES:
            t = torch.full((len(x_0),), time)
            x_t, target = sd.schedule.q_sample(x_0, t, eps), sd.schedule.target(x_0, t, eps)
            out = torch.cat([sd.unet(*part) for part in zip(*(x.split(BATCH) for x in (x_t, t, context)))])
            inside.append(masked_losses(out, target, scene.cells))
            outside.append(masked_losses(out, target, ~scene.cells))
        numbers[f"loss, {name}"], numbers[f"background, {name}"] = (
            torch.stack(losses).mean(dim=0).tolist() for losses in (inside, outside))
    here, there = masks & ~mirrored, mirrored & ~masks
    numbers["overlap"] = intersection_over_union(masks, mirrored).tolist()
    for name in ("right", "mirrored"):
        parts = zip(*(x.split(BATCH) for x in (y_0, eps, contexts[name])))
        pictures = torch.cat([sd.vae.decode(unblended(sd, *part, guidance)) for part in parts])
        numbers[f"change, {name}"] = place(pictures, scene.normal_seen, here, there).tolist()
    return numbers


def location(bench: Bench, variant: str, defect: Defect) -> Numbers:
    """What `measured` finds; measured once, then read."""
    key = f"location/{defect.key}/{bench.scale.main[0]}/{variant}/in and outside the mask/{STEPS} steps"
    if key not in bench.found:
        with Progress(f"place: {defect.key}, {variant}", 1) as progress:
            bench.keep(key, measured(bench, variant, defect))
            progress.step()
    return bench.found[key]
