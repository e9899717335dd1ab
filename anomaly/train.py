"""Masked textual inversion: learn e_a and E from a few photographs, everything else frozen.

    L = || m * (eps - eps_theta(z_t, t, {e_a, e_s})) ||^2       paper, section 3.2

A v model is trained on its own target, v in the place of eps. The mask model is learned by the same
loop on pictures of masks, with m = 1 everywhere (section 3.4).
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from anomaly import processes
from anomaly.crop import Cropped
from anomaly.embedding import Learner, seed_of, word_rms
from anomaly.prompt import learned_context
from ldm.model import StableDiffusion

WARM_UP = 20        # steps of a defect over which the rates rise
PLATEAU = 200       # steps of a defect after which the rates fall as 1 / sqrt(step)
# Largest entry of the gradient sent back through the U-Net. Inside a random SD 1.5 entries are 2e-8
# to 5 times as large, and float16 holds 6e-8 to 65504: 256 puts them in the middle.
INTO_UNET = 256.0
RETRIES = 4         # scales tried, each 64 times smaller, before a step is given up


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


def masked_loss(out: Tensor, target: Tensor, cells: Tensor) -> Tensor:
    """Squared error averaged over each sample's mask, then the batch; cells (b, h, w), none empty.

    departs from the released code: it averages over all cells of the batch, so that a small defect
    is out-voted by a large one.
    """
    m = cells[:, None].to(target.dtype)
    error = (m * (target - out)).square().sum(dim=(1, 2, 3))
    return (error / (m.sum(dim=(1, 2, 3)) * target.shape[1])).mean()


def more_precise(dtype: torch.dtype) -> str:
    """What to do where the frozen model, computed in dtype, gave numbers that are not finite."""
    return {torch.float16: "use --dtype bf16 or fp32", torch.bfloat16: "use --dtype fp32"}.get(
        dtype, "the model is in float32 already, so its files or the photographs are at fault")


def backward(loss: Tensor, out: Tensor, parameters: list[nn.Parameter], dtype: torch.dtype) -> None:
    """loss.backward() through a frozen half-precision U-Net: fills the parameters' float32 grad.

    The loss is a mean, so its gradient at the U-Net's output is small, and on the way to the
    context it would fall below float16's smallest number (6e-8). So it enters the U-Net with a
    largest entry of about INTO_UNET and is divided by the same power of two where it leaves the
    model: exact in float32, and without the state of a dynamic loss scale. What overflows on the
    way is sent again, smaller. dtype: of the frozen model, for the advice. Raises RuntimeError if
    the loss is not finite or no scale gives finite gradients, and tells NaN, which no scale can
    mend, from overflow.
    """
    gradient, = torch.autograd.grad(loss, out)
    # All stays on the device: a GPU that is asked something waits meanwhile.
    largest = gradient.abs().max()
    scale = INTO_UNET * torch.frexp(largest).mantissa / largest     # the power of two, exactly
    scale = torch.where(scale.isfinite(), scale, 1.0)
    for _ in range(RETRIES):
        found = torch.autograd.grad(out, parameters, gradient * scale,
                                    retain_graph=True, allow_unused=True)
        norm = get_total_norm([g for g in found if g is not None], torch.inf)
        if (norm + loss).isfinite():
            for parameter, g in zip(parameters, found):
                parameter.grad = None if g is None else g / scale       # None: Adam passes it over
            return
        if not loss.isfinite():
            raise RuntimeError(f"the loss is {loss.item()}; {more_precise(dtype)}")
        scale = scale / 2 ** 6
    nan = any(g is not None and bool(g.isnan().any()) for g in found)
    raise RuntimeError(f"the gradients {'are NaN' if nan else 'overflow'} at each of {RETRIES} "
                       f"scales, the loss is {loss.item():g}; {more_precise(dtype)}")


def rate(step: int) -> float:
    """Factor on the learning rates at a defect's step, 0 first.

    Warm-up, plateau, then 1 / sqrt: it does not know the last step, so a run can be extended and
    still end where a longer run would have, and the vectors' random walk stays within a few norms
    of a word.
    """
    return min(1.0, (step + 1) / WARM_UP, (PLATEAU / (step + 1)) ** 0.5)


def draw(views: Views, batch_size: int, timesteps: int, seed: int,
         step: int) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """z_0, m, masks, t, eps of a step, from (seed, step) alone: nothing to store for resuming."""
    generator = torch.Generator().manual_seed(seed_of(seed, step))
    i = torch.randint(len(views.latents), (batch_size,), generator=generator)
    t = torch.randint(timesteps, (batch_size,), generator=generator)
    z_0 = views.latents[i]
    return z_0, views.cells[i], views.masks[i], t, torch.randn(z_0.shape, generator=generator)


def predict(sd: StableDiffusion, vectors: dict[str, Tensor], z_0: Tensor, t: Tensor,
            eps: Tensor) -> Tensor:
    """The frozen U-Net's output for z_t and e, float32, with gradients into the vectors."""
    z_t = sd.schedule.q_sample(z_0, t, eps)
    context = learned_context(sd, torch.cat(list(vectors.values()), dim=1))
    return sd.unet(z_t, t, context)


def gradients(sd: StableDiffusion, views: Views, stem: str, learner: Learner,
              parameters: list[nn.Parameter], batch_size: int, seed: int,
              step: int) -> tuple[float, dict[str, float]]:
    """One batch of a defect, whose gradients the parameters get -> its loss, the rms of each e.

    Of processes that learn together each takes batch_size of the batch, and all get the means.
    """
    mine = slice(processes.rank() * batch_size, (processes.rank() + 1) * batch_size)
    z_0, cells, masks, t, eps = (x[mine].to(sd.device) for x in draw(
        views, processes.count() * batch_size, sd.schedule.config.train_timesteps, seed, step))
    vectors = learner(stem, masks)
    out = predict(sd, vectors, z_0, t, eps)
    loss = masked_loss(out, sd.schedule.target(z_0, t, eps), cells)
    backward(loss, out, parameters, sd.dtype)
    squares = [v.detach().square().mean() for v in vectors.values()]
    own = {p: p.grad for p in parameters if p.grad is not None}     # the same p in every process
    means = processes.average([loss.detach(), *squares, *own.values()])
    for parameter, gradient in zip(own, means[1 + len(squares):]):
        parameter.grad = gradient
    mean, *squared = torch.stack(means[:1 + len(squares)]).tolist()
    return mean, {name: square ** 0.5 for name, square in zip(vectors, squared)}


def textual_inversion(sd: StableDiffusion, views: dict[str, Views], learner: Learner,
                      optimizer: torch.optim.Optimizer, start: int, end: int, batch_size: int,
                      seed: int) -> Iterator[Record]:
    """Steps start..end-1, each on a batch of one defect, in turn; yields after every step.

    learner(stem, masks) gives the vectors in their order in the prompt; its parameters are the
    optimizer's. What has been yielded is complete: the caller may save between steps.
    """
    stems, word = list(views), word_rms(sd)
    rates = [group["lr"] for group in optimizer.param_groups]
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for step in range(start, end):
        stem = stems[step % len(stems)]
        for group, base in zip(optimizer.param_groups, rates):
            group["lr"] = base * rate(step // len(stems))
        loss, rms = gradients(sd, views[stem], stem, learner, parameters, batch_size, seed, step)
        optimizer.step()
        yield Record(step + 1, stem, loss, {name: value / word for name, value in rms.items()})
