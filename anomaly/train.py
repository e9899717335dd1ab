"""Masked textual inversion: learn e_a and E from a few photographs, everything else frozen.

    L = || m * (eps - eps_theta(z_t, t, {e_a, e_s})) ||^2       paper, section 3.2

The mask model is learned by the same loop on pictures of masks, with m = 1 everywhere (section 3.4).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from anomaly.crop import Cropped
from anomaly.embedding import seed_of, word_rms
from anomaly.prompt import learned_context
from ldm.model import StableDiffusion

WARM_UP = 20        # steps of a defect over which the rates rise
PLATEAU = 200       # steps of a defect after which the rates fall as 1 / sqrt(step)


@dataclass(frozen=True)
class Views:
    """The encoded training pictures of one defect, on the CPU."""

    latents: Tensor     # (n, 4, h, w): z_0, the VAE's mean
    cells: Tensor       # (n, h, w) bool: m on the latent grid
    masks: Tensor       # (n, size, size) bool: what the spatial encoder sees


@dataclass(frozen=True)
class Record:
    """What one step did."""

    step: int                   # counts from 1 over all defects
    stem: str                   # the defect it was about
    loss: float
    norms: dict[str, float]     # of e_a, e_s or e_m, in norms of a word


@torch.no_grad()
def encode(sd: StableDiffusion, pictures: Iterable[Cropped]) -> Views:
    """Encode pictures one by one, ahead of the loop: the VAE is not needed again.

    The VAE's mean, not a sample: the sample's noise is far below that of any t.
    """
    latents, cells, masks = [], [], []
    for picture in pictures:
        mean, _ = sd.vae.encode(picture.image[None].to(sd.device))
        latents.append(mean[0].cpu())
        cells.append(picture.cells)
        masks.append(picture.mask)
    return Views(torch.stack(latents), torch.stack(cells), torch.stack(masks))


def masked_loss(eps_hat: Tensor, eps: Tensor, cells: Tensor) -> Tensor:
    """Mean over the batch of each sample's squared error averaged over its own mask; cells (b, h, w).

    departs from the released code: it averages over all cells of the batch, so that a small defect is
    out-voted by a large one. Every sample has at least one cell.
    """
    m = cells[:, None].to(eps.dtype)
    error = (m * (eps - eps_hat)).square().sum(dim=(1, 2, 3))
    return (error / (m.sum(dim=(1, 2, 3)) * eps.shape[1])).mean()


def rate(step: int) -> float:
    """Factor on the learning rates at a defect's step, 0 first.

    Warm-up, plateau, then 1 / sqrt: it does not know the last step, so a run can be extended and still end
    where a longer run would have, and the vectors' random walk stays within a few words' norms.
    """
    return min(1.0, (step + 1) / WARM_UP, (PLATEAU / (step + 1)) ** 0.5)


def draw(views: Views, batch_size: int, timesteps: int, seed: int,
         step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z_0, m, masks, t and eps of a step, from (seed, step) alone: nothing to store for a resumed run."""
    generator = torch.Generator().manual_seed(seed_of(seed, step))
    i = torch.randint(len(views.latents), (batch_size,), generator=generator)
    t = torch.randint(timesteps, (batch_size,), generator=generator)
    z_0 = views.latents[i]
    return z_0, views.cells[i], views.masks[i], t, torch.randn(z_0.shape, generator=generator)


def predict(sd: StableDiffusion, vectors: dict[str, Tensor], z_0: Tensor, t: Tensor,
            eps: Tensor) -> Tensor:
    """eps_theta(z_t, t, e) of the frozen model, with gradients into the vectors."""
    z_t = sd.schedule.q_sample(z_0, t, eps)
    context = learned_context(sd, torch.cat(list(vectors.values()), dim=1))
    return sd.unet(z_t, t, context).float()


def textual_inversion(sd: StableDiffusion, views: dict[str, Views], learner: nn.Module,
                      optimizer: torch.optim.Optimizer, start: int, end: int, batch_size: int,
                      seed: int) -> Iterator[Record]:
    """Steps start..end-1, each on a batch of one defect, in turn; yields after every step.

    learner(stem, masks) gives the vectors in their order in the prompt; its parameters are the
    optimizer's. What has been yielded is complete: the caller may save between steps.
    """
    stems, rms = list(views), word_rms(sd)
    rates = [group["lr"] for group in optimizer.param_groups]
    for step in range(start, end):
        stem = stems[step % len(stems)]
        z_0, cells, masks, t, eps = (x.to(sd.device) for x in draw(
            views[stem], batch_size, sd.schedule.config.train_timesteps, seed, step))
        for group, base in zip(optimizer.param_groups, rates):
            group["lr"] = base * rate(step // len(stems))
        vectors = learner(stem, masks)
        loss = masked_loss(predict(sd, vectors, z_0, t, eps), eps, cells)
        optimizer.zero_grad(set_to_none=True)       # None: Adam leaves the other defects untouched
        loss.backward()
        optimizer.step()
        norms = {name: float(v.detach().square().mean().sqrt()) / rms for name, v in vectors.items()}
        yield Record(step + 1, stem, float(loss.detach()), norms)
