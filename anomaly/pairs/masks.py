"""Where the pairs' masks come from: drawn by the mask model, moved training masks, or given files.

A source takes a defect and the photographs to paint into, and gives Masks: a function of a block of
plans. Every fault of the input is found then, before anything is painted.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly.dataset import Defect, read_example
from anomaly.mask_model import accepted, mask_picture, sample_masks, shape_of
from anomaly.pairs.placement import (
    MaskPatch,
    Normal,
    fits,
    learned_patch,
    placed,
    read_mask_files,
    training_patches,
)
from anomaly.pairs.plan import Plan, Target
from anomaly.runs.run_folder import Run, load_vectors
from ldm.model import StableDiffusion

GIVE_UP = 64    # generated masks refused in a row before the mask model is judged useless
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masks:
    """The masks of one defect."""

    # Of a block of pairs; the second argument is told in words how it goes.
    choose: Callable[[list[Plan], Callable[[str], None]], list[Target]]
    references: int = 1         # how many training masks a plan draws one of
    one_file: bool = False      # a single file was given


# A source: the model, the run, the defect, the photographs, DDIM steps.
MaskSource = Callable[[StableDiffusion, Run, Defect, list[Normal], int], Masks]


def _place(patch: MaskPatch, plan: Plan, normals: list[Normal]) -> Target:
    """The patch in the first photograph of the plan that it fits into; there must be one."""
    normal = next(normals[i] for i in plan.order if fits(patch, normals[i]))
    return Target(normal, placed(patch, normal), patch.source)


def training_masks(sd: StableDiffusion, run: Run, defect: Defect, normals: list[Normal],
                   steps: int) -> Masks:
    """The training masks at their size in pixels, moved to their relative place in a photograph."""
    usable = []
    for patch in training_patches(defect.examples, run.config["size"]):
        if any(fits(patch, normal) for normal in normals):
            usable.append(patch)
        else:
            log.info("%s: %dx%d pixels, which fit into no photograph; left out", patch.source,
                     patch.mask.shape[1], patch.mask.shape[0])
    if not usable:
        raise ValueError(f"--masks train: no training mask of {defect.key} fits into a photograph "
                         f"of --normals; use larger photographs")
    return Masks(lambda plans, tell: [_place(usable[p.reference], p, normals) for p in plans],
                 len(usable))


def mask_files(path: Path) -> MaskSource:
    """A mask file or a folder of them, in turn, each as it lies, in a photograph of its size."""
    def given(sd: StableDiffusion, run: Run, defect: Defect, normals: list[Normal],
              steps: int) -> Masks:
        """The source of these files, whatever the defect."""
        masks = read_mask_files(path, normals)

        def target(plan: Plan) -> Target:
            file, mask = masks[plan.k % len(masks)]
            sized = (normals[i] for i in plan.order
                     if (normals[i].height, normals[i].width) == mask.shape)
            return Target(next(sized), mask, str(file))
        return Masks(lambda plans, tell: [target(p) for p in plans], one_file=path.is_file())
    return given


def learned_masks(sd: StableDiffusion, run: Run, defect: Defect, normals: list[Normal],
                  steps: int) -> Masks:
    """Masks drawn by the mask model: a pair's first draw that looks like a real mask and fits.

    Draws for the pairs still waiting fill a batch. Choosing raises RuntimeError after GIVE_UP
    refusals in a row.
    """
    if run.config["options"]["no_masks"]:
        raise ValueError(f"--masks learned: {run.folder} has no mask_embeddings, it was trained "
                         f"with --no-masks; use --masks train")
    e_m = load_vectors(run, "mask_embeddings", defect).to(sd.device)
    size, factor = run.config["size"], sd.vae.config.factor
    patches = training_patches(defect.examples, size)
    real = [shape_of(mask_picture(read_example(e)[1], size, factor).mask, factor)
            for e in defect.examples]

    def target(picture: Tensor, plan: Plan) -> Target | None:
        if not accepted(picture, real, factor):
            return None
        patch = learned_patch(picture.numpy(), patches[plan.reference])
        if patch is None or not any(fits(patch, normal) for normal in normals):
            return None
        return _place(patch, plan, normals)

    def choose(plans: list[Plan], tell: Callable[[str], None]) -> list[Target]:
        """A mask for every plan; those still without one share the batch."""
        found: dict[int, Target] = {}
        refused = drawn = 0
        while len(found) < len(plans):
            waiting = [i for i in range(len(plans)) if i not in found]
            turns = [waiting[j % len(waiting)] for j in range(len(plans))]
            noise = np.stack([plans[i].rng.standard_normal(plans[i].noise.shape, dtype=np.float32)
                              for i in turns])
            pictures = sample_masks(sd, e_m, torch.from_numpy(noise).to(sd.device), steps)
            for i, picture in zip(turns, pictures):
                if i in found:
                    continue
                drawn += 1
                if (result := target(picture, plans[i])) is None:
                    refused += 1
                else:
                    found[i], refused = result, 0
            tell(f"{len(found)} of {len(plans)} masks found, {drawn - len(found)} refused")
            if refused >= GIVE_UP:
                raise RuntimeError(f"{defect.key}: none of {refused} masks was accepted; use "
                                   f"--masks train, or train longer")
        return [found[i] for i in range(len(plans))]
    return Masks(choose, len(patches))
