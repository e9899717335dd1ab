"""From a learned defect to finished pictures: plan each pair, find its mask, paint a block, composite.

Everything random about try r of pair k of a defect comes from one generator, seeded with
[seed, crc32("object/defect"), k, r], so that a pair depends on no other. Pairs are painted in blocks of the
batch size; the last block is filled up with the pairs that would follow, which the caller does not write.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import Tensor

from anomaly.crop import Crop, Cropped, defect_crop, take
from anomaly.dataset import Defect, read_example, read_photograph
from anomaly.embedding import AnomalyEmbedding
from anomaly.mask_model import accepted, mask_picture, sample_masks, shape_of
from anomaly.output.composite import change, composite
from anomaly.output.placement import Normal, Stamp, fits, learned_stamp, placed
from anomaly.prompt import learned_context
from anomaly.sampler import Guidance, blended_ddim
from ldm.model import StableDiffusion

GIVE_UP = 64    # generated masks refused in a row before the mask model is judged useless


@dataclass(frozen=True)
class Plan:
    """What the pair's generator decides before any mask is known; always in this order."""

    k: int
    noise: np.ndarray       # (4, h, w) float32
    donor: int              # which training mask gives shape, size or place
    order: np.ndarray       # the photographs, in the order they are tried
    rng: np.random.Generator    # at the first draw for a generated mask


@dataclass(frozen=True)
class Target:
    """A photograph and the mask to be painted in it."""

    normal: Normal
    mask: np.ndarray        # bool (h, w)
    source: str             # the mask's file, or "learned"


@dataclass(frozen=True)
class Painted:
    """A finished pair."""

    plan: Plan
    target: Target
    image: np.ndarray       # uint8, as the photograph
    change: float           # mean absolute change under the mask, 0..1


@dataclass(frozen=True)
class Settings:
    """How pairs are sampled."""

    size: int
    steps: int
    guidance: Guidance
    to_rgb: Tensor
    weigh: Callable[[Tensor, Tensor], Tensor] | None


Masks = Callable[[list[Plan]], list[Target]]


def plan(defect: Defect, k: int, seed: int, shape: tuple[int, int, int], donors: int,
         normals: int) -> Plan:
    """Try 0 of pair k. shape is that of its latents."""
    rng = np.random.default_rng([seed, crc32(defect.key.encode()), k, 0])
    noise = rng.standard_normal(shape, dtype=np.float32)
    return Plan(k, noise, int(rng.integers(donors)), rng.permutation(normals), rng)


def _place(stamp: Stamp, plan: Plan, normals: list[Normal]) -> Target | None:
    """The stamp in the first photograph of the plan that it fits into."""
    for i in plan.order:
        if fits(stamp, normals[i]):
            return Target(normals[i], placed(stamp, normals[i]), stamp.source)
    return None


def training_masks(stamps: list[Stamp], normals: list[Normal]) -> Masks:
    """--masks train: every stamp must fit into one of the photographs."""
    return lambda plans: [_place(stamps[p.donor], p, normals) for p in plans]


def given_masks(masks: list[tuple[Path, np.ndarray]], normals: list[Normal]) -> Masks:
    """--masks PATH: in turn, each as it lies, in a photograph of its size."""
    def choose(plans: list[Plan]) -> list[Target]:
        """The mask that is the pair's turn, in the first photograph of its size."""
        targets = []
        for p in plans:
            file, mask = masks[p.k % len(masks)]
            normal = next(normals[i] for i in p.order if (normals[i].height, normals[i].width) == mask.shape)
            targets.append(Target(normal, mask, str(file)))
        return targets
    return choose


def learned_masks(sd: StableDiffusion, e_m: Tensor, defect: Defect, stamps: list[Stamp],
                  normals: list[Normal], size: int, steps: int) -> Masks:
    """--masks learned: each pair takes the first of its own draws that looks like a real mask and fits.

    Draws for the pairs still waiting fill a batch. Raises RuntimeError after GIVE_UP refusals in a row.
    """
    factor = sd.vae.config.factor
    real = [shape_of(mask_picture(read_example(e)[1], size, factor).mask, factor) for e in defect.examples]

    def target(picture: Tensor, p: Plan) -> Target | None:
        if not accepted(picture, real, factor):
            return None
        stamp = learned_stamp(picture.numpy(), stamps[p.donor])
        return None if stamp is None else _place(stamp, p, normals)

    def choose(plans: list[Plan]) -> list[Target]:
        """A mask for every plan; those still without one share the batch."""
        found: dict[int, Target] = {}
        refused = 0
        while len(found) < len(plans):
            waiting = [i for i in range(len(plans)) if i not in found]
            turns = [waiting[j % len(waiting)] for j in range(len(plans))]
            noise = np.stack([plans[i].rng.standard_normal(plans[i].noise.shape, dtype=np.float32)
                              for i in turns])
            pictures = sample_masks(sd, e_m, torch.from_numpy(noise).to(sd.device), steps)
            for i, picture in zip(turns, pictures):
                if i in found:
                    continue
                if (result := target(picture, plans[i])) is None:
                    refused += 1
                else:
                    found[i], refused = result, 0
            if refused >= GIVE_UP:
                raise RuntimeError(f"{defect.key}: none of {refused} masks was accepted; use --masks train, "
                                   f"or train longer")
        return [found[i] for i in range(len(plans))]
    return choose


@torch.no_grad()
def context_of(sd: StableDiffusion, learner: AnomalyEmbedding, stem: str, masks: Tensor) -> Tensor:
    """What a defect is painted with at crop masks (b, size, size) bool: the context, (b, L, d)."""
    vectors = learner(stem, masks.to(sd.device))
    return learned_context(sd, torch.cat(list(vectors.values()), dim=1))


@torch.no_grad()
def paint_crops(sd: StableDiffusion, crops: list[Cropped], context: Tensor, noise: Tensor,
                settings: Settings) -> Tensor:
    """What context (b, L, d) says, painted into normal photographs in their crops: (b, 3, size, size) in [-1, 1].

    noise: (b, 4, h, w).
    """
    y_0, _ = sd.vae.encode(torch.stack([c.image for c in crops]).to(sd.device))
    m = torch.stack([c.cells for c in crops]).float().to(sd.device)
    *_, last = blended_ddim(sd, y_0, m, noise.to(sd.device), context, settings.guidance, settings.steps,
                            settings.to_rgb, settings.weigh)
    return sd.vae.decode(last.x)


def paint(sd: StableDiffusion, learner: AnomalyEmbedding, defect: Defect, plans: list[Plan],
          targets: list[Target], settings: Settings) -> list[Painted]:
    """A block of pairs, painted together; each photograph keeps every pixel outside its mask."""
    photographs = [read_photograph(t.normal.path) for t in targets]
    crops: list[Crop] = [defect_crop(t.mask, settings.size) for t in targets]
    views = [take(p, t.mask, c, settings.size, sd.vae.config.factor)
             for p, t, c in zip(photographs, targets, crops)]
    context = context_of(sd, learner, defect.stem, torch.stack([v.mask for v in views]))
    noise = torch.from_numpy(np.stack([p.noise for p in plans]))
    done = []
    for i, picture in enumerate(paint_crops(sd, views, context, noise, settings)):
        image = composite(photographs[i], targets[i].mask, crops[i], picture)
        done.append(Painted(plans[i], targets[i], image, change(photographs[i], image, targets[i].mask)))
    return done
