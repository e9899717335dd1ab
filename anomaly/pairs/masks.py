"""Where the pairs' masks come from: drawn by the mask model, moved training masks, or given files.

A source takes a defect and the photographs to paint into, and gives Masks: a function of a block of
plans. Every fault of the input is found then, before anything is painted.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly.dataset import Defect, Example, read_example_mask
from anomaly.embedding import E_M_VECTORS
from anomaly.files.pairing import mask_files_in, masks_of
from anomaly.files.remarks import remark
from anomaly.mask_model import mask_picture, refusal, sample_masks, shape_of
from anomaly.pairs.foreground import Objects, no_object
from anomaly.pairs.normals import Normal
from anomaly.pairs.placement import (
    MaskPatch,
    fits,
    learned_patch,
    mask_patch,
    placed,
)
from anomaly.pairs.plan import Plan, Target
from anomaly.pairs.variation import size_of_patch, varied
from anomaly.runs.run_folder import Run, load_masks, load_vectors
from ldm.model import StableDiffusion

KEPT, NO_PLACE = "kept", "no place"
TRIED = 8       # photographs in which a variation is
VARIATIONS = 8  # of a training mask that are tried for a place, before it is taken as it is
GIVE_UP = 64    # generated masks refused in a row before the mask model is judged useless
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Masks:
    """The masks of one defect."""

    # Of a block of pairs; the second argument is told in words how it goes.
    choose: Callable[[list[Plan], Callable[[str], None]], list[Target]]
    references: int = 1         # how many training masks a plan draws one of
    one_file: bool = False      # a single file was given
    drawn: Counter[str] = field(default_factory=Counter)    # generated ones: KEPT, or why not

    @property
    def refusals(self) -> str:
        """How many generated masks were refused, and why, in words; "" if none was drawn."""
        refused, drawn = self.drawn.total() - self.drawn[KEPT], self.drawn.total()
        if not drawn:
            return ""
        why = ", ".join(f"{reason} {count}" for reason, count in self.drawn.most_common()
                        if reason != KEPT)
        return (f"{refused} of {drawn} generated masks refused" + (f" ({why})" if why else "")
                + (": --masks train is the better choice" if 2 * refused > drawn else ""))


# A source: the model, the run, the defect, the photographs, DDIM steps, the objects to lie on.
MaskSource = Callable[[StableDiffusion, Run, Defect, list[Normal], int, Objects], Masks]


def _targets(patch: MaskPatch, normals: Iterable[Normal], objects: Objects) -> Iterator[Target]:
    """The patch in each of the photographs that it fits into, on the object."""
    for normal in normals:
        if fits(patch, normal):
            mask = placed(patch, normal, objects(normal))
            if mask is not None:
                yield Target(normal, mask, patch.source)


def _patches(run: Run, defect: Defect) -> list[MaskPatch]:
    """The training masks as patches."""
    return [mask_patch(mask, run.config["size"], example.source)
            for example, mask in zip(defect.examples, load_masks(run, defect))]


def training_masks(sd: StableDiffusion, run: Run, defect: Defect, normals: list[Normal],
                   steps: int, objects: Objects = no_object) -> Masks:
    """The training masks, varied, moved to their relative place in a photograph."""
    usable, large = [], True
    for patch in _patches(run, defect):
        if any(True for _ in _targets(patch, normals, objects)):
            usable.append(patch)
            continue
        large = not any(fits(patch, normal) for normal in normals)
        log.info("%s: %dx%d pixels, which fit %s; left out", patch.source, patch.mask.shape[1],
                 patch.mask.shape[0],
                 "into no photograph" if large else "on the object of no photograph")
    if not usable:
        where, remedy = ("into", "use larger photographs") if large else (
            "on the object of", "use others, or --foreground none")
        raise ValueError(f"--masks train: no training mask of {defect.key} fits {where} a "
                         f"photograph of --normals; {remedy}")

    sizes = [size_of_patch(patch) for patch in usable]
    flip = not run.config["options"].get("no_flip")

    def target(plan: Plan) -> Target:
        real = usable[plan.reference]
        patches = (varied(real, (min(sizes), max(sizes)), flip, plan.rng)
                   for _ in range(VARIATIONS))
        in_turn = [normals[i] for i in plan.order]
        # A variation is tried in few photographs, the real mask, which has a place, in all.
        return next(chain(
            (found for patch in patches for found in _targets(patch, in_turn[:TRIED], objects)),
            _targets(real, in_turn, objects)))
    return Masks(lambda plans, tell: [target(p) for p in plans], len(usable))


@dataclass(frozen=True)
class GivenMask:
    """A mask of the user's own and the photographs that it is for."""

    example: Example
    normals: frozenset[Path]

    @property
    def mask(self) -> np.ndarray:
        """bool (h, w), read when its turn comes: a thousand large masks need no memory at once."""
        return read_example_mask(self.example)


def _given_masks(path: Path, normals: list[Normal]) -> list[GivenMask]:
    """The masks of a file or folder, each for the photograph of its name, else all of its size.

    Raises ValueError for a mask that fits none.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path}: no such file or folder; --masks takes learned, train, or mask files")
    named, unnamed = masks_of([normal.path for normal in normals], mask_files_in(path))
    sets = [(tuple(f for mask in own for f in mask.files),
             [normal for normal in normals if normal.path == image])
            for image, own in named.items()] + [(mask.files, normals) for mask in unnamed]
    given = []
    for files, possible in sorted(sets, key=lambda pair: pair[0]):
        example = Example(possible[0].path, files)
        height, width = read_example_mask(example).shape
        own = frozenset(n.path for n in possible if (n.height, n.width) == (height, width))
        if not own:
            what = "no photograph has that size, the first has" if possible is normals else \
                f"{possible[0].path.name}, the photograph of its name, has"
            raise ValueError(f"{files[0]}: {width}x{height} pixels, but {what} {possible[0].width}x"
                             f"{possible[0].height}; draw it over the photograph it is for")
        given.append(GivenMask(example, own))
    return given


def mask_files(path: Path) -> MaskSource:
    """A mask file or a folder of them, in turn, each as it lies in the photograph it is for."""
    def given(sd: StableDiffusion, run: Run, defect: Defect, normals: list[Normal],
              steps: int, objects: Objects = no_object) -> Masks:
        """The source of these files, whatever the defect."""
        masks = _given_masks(path, normals)

        def target(plan: Plan) -> Target:
            chosen = masks[plan.k % len(masks)]
            normal = next(normals[i] for i in plan.order if normals[i].path in chosen.normals)
            mask, there = chosen.mask, objects(normal)
            if there is not None and there.any() and there[mask].mean() < 0.5:
                remark(chosen.example.masks[0], "most of it lies beside the object in %s",
                       normal.path.name)
            return Target(normal, mask, chosen.example.source)
        return Masks(lambda plans, tell: [target(p) for p in plans], one_file=path.is_file())
    return given


def learned_masks(sd: StableDiffusion, run: Run, defect: Defect, normals: list[Normal],
                  steps: int, objects: Objects = no_object) -> Masks:
    """Masks drawn by the mask model: a pair's first draw that looks like a real mask and fits.

    Draws for the pairs still waiting fill a batch. Choosing raises RuntimeError after GIVE_UP
    refusals in a row.
    """
    if run.config["options"].get("no_masks"):
        raise ValueError(f"--masks learned: {run.folder} has no mask_embeddings, it was trained "
                         f"with --no-masks; use --masks train")
    like = torch.empty(E_M_VECTORS, sd.text_encoder.config.width)
    e_m = load_vectors(run, "mask_embeddings", defect, like).to(sd.device)
    size, factor = run.config["size"], sd.vae.config.factor
    patches = _patches(run, defect)
    real = [shape_of(mask_picture(mask, size, factor).mask, factor)
            for mask in load_masks(run, defect)]

    tally: Counter[str] = Counter()

    def target(picture: Tensor, plan: Plan) -> Target | None:
        reason = refusal(picture, real, factor)
        patch = learned_patch(picture.numpy(), patches[plan.reference]) if reason is None else None
        found = None if patch is None else next(
            _targets(patch, (normals[i] for i in plan.order), objects), None)
        tally[reason or (NO_PLACE if found is None else KEPT)] += 1
        return found

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
    return Masks(choose, len(patches), drawn=tally)
