"""The story of sampling, told by `python tools/sample.py`: a run -> a data set of image-mask pairs.

    plan -> mask -> placement -> crop -> blended DDIM -> composite -> files

Pairs are painted in blocks of the batch size. The last block of a defect is filled up with the
pairs that would follow, which are not written: every kernel sees one shape, and a pair's bytes do
not depend on how many are made.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly.crop import defect_crop, take
from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.files.names import whole
from anomaly.files.photographs import open_photograph, read_photograph, white_of
from anomaly.painter import Settings, Weigh, context_of, paint_crops
from anomaly.pairs.composite import change, composite
from anomaly.pairs.foreground import Foreground, Objects, anywhere
from anomaly.pairs.masks import Masks, MaskSource, learned_masks
from anomaly.pairs.pair_folder import PairFolder
from anomaly.pairs.placement import Normal, find_normals
from anomaly.pairs.plan import Plan, Target, draw_plan
from anomaly.progress import Report, each, silent
from anomaly.runs import run_folder
from anomaly.runs.run_folder import Run
from anomaly.sampler import STEPS, Guidance
from ldm.model import StableDiffusion

PAIRS, BATCH_SIZE = 16, 8       # pairs a defect, and how many are painted together
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A pair on the disk."""

    image: Path
    mask: Path
    defect: Defect
    k: int
    change: float       # mean absolute change under the mask, 0 (nothing was painted) to 1


def normals_of(defect: Defect, path: Path | None) -> list[Normal]:
    """The photographs to paint a defect into: of path, else of the data it was learned from."""
    folder = defect.normals if path is None else whole(path)
    if folder is None:
        raise ValueError(f"--normals: {defect.key} was learned from data without train/good; "
                         f"name a folder of defect-free photographs")
    return find_normals(folder)


def paint_block(sd: StableDiffusion, learner: AnomalyEmbedding, defect: Defect, plans: list[Plan],
                targets: list[Target], settings: Settings) -> Tensor:
    """The painted crop of each plan, (b, 3, size, size) in [-1, 1].

    Only one photograph is held at a time: it may be a line scan of 200 megapixels.
    """
    views = [take(read_photograph(t.normal.path), t.mask, defect_crop(t.mask, settings.size),
                  settings.size, sd.vae.config.factor) for t in targets]
    context = context_of(sd, learner, defect.stem, torch.stack([v.mask for v in views]))
    noise = torch.from_numpy(np.stack([p.noise for p in plans]))
    return paint_crops(sd, views, context, noise, settings)


@dataclass(frozen=True)
class Job:
    """What is to be painted of one defect: everything that can be at fault is settled."""

    defect: Defect
    normals: list[Normal]
    masks: Masks
    settings: Settings
    n: int


def paint_job(sd: StableDiffusion, learner: AnomalyEmbedding, job: Job, folder: PairFolder,
              batch_size: int, seed: int, report: Report) -> Iterator[Pair]:
    """Paint the pairs of a job that are not there, block by block; yields each when written."""
    cells = job.settings.size // sd.vae.config.factor
    shape = (sd.unet.config.latent_channels, cells, cells)
    missing = {k for k in range(job.n) if not folder.done(job.defect, k)}
    label = f"painting {job.defect.key}, guidance {job.settings.guidance.scale:g}"
    report(label, job.n - len(missing), job.n, "")
    for start in range(0, job.n, batch_size):
        block = range(start, start + batch_size)
        if missing.isdisjoint(block):
            continue
        plans = [draw_plan(job.defect, k, seed, shape, job.masks.references, len(job.normals))
                 for k in block]
        targets = job.masks.choose(
            plans, lambda note: report(label, job.n - len(missing), job.n, note))
        painted = paint_block(sd, learner, job.defect, plans, targets, job.settings)
        for plan, target, crop in zip(plans, targets, painted):
            if plan.k in missing:
                photograph = open_photograph(target.normal.path)
                image = composite(photograph, target.mask,
                                  defect_crop(target.mask, job.settings.size), crop)
                changed = change(photograph, image, target.mask)
                paths = folder.write(job.defect, plan.k, target, image, changed, seed)
                missing.remove(plan.k)
                report(label, job.n - len(missing), job.n, "")
                yield Pair(*paths, job.defect, plan.k, changed)


def paint(sd: StableDiffusion, run: Run, folder: PairFolder, *, defects: list[Defect] | None = None,
          n: int | None = None, normals: Path | None = None, masks: MaskSource = learned_masks,
          foreground: Foreground = anywhere, steps: int = STEPS, guidance: float | None = None,
          against_object: bool = False, weigh: Weigh | None = None, batch_size: int = BATCH_SIZE,
          seed: int = 0, report: Report = silent) -> Iterator[Pair]:
    """Paint n pairs of every defect of the run, without those that are there; yields each written.

    defects: None: all of the run's. n: a defect; None: PAIRS, or 1 for one photograph and one mask
    file. normals: a photograph or a folder; None: those of the data. foreground: finds the objects
    that masks are to lie on. guidance: a scale; None: what training found, or 1 with a
    re-weighting. against_object: the negative prompt is the object's words, not empty. weigh: d, m
    -> w_m. Every fault of the input raises before any painting.
    """
    defects = run.defects if defects is None else defects
    learner = run_folder.load_learner(run, sd, defects)
    to_rgb = run_folder.load_module(run, "latent_to_rgb")["latent_to_rgb"].to(sd.device)
    if weigh is not None and guidance is None:
        log.info("with a re-weighting the guidance is 1: both strengthen, and its scale was found "
                 "without")
        guidance = 1.0
    jobs = []
    objects: dict[tuple[Normal, ...], Objects] = {}     # the defects of an object share them
    for defect in defects:
        there = normals_of(defect, normals)
        if tuple(there) not in objects:
            objects[tuple(there)] = foreground(there, report)
        source = masks(sd, run, defect, there, steps, objects[tuple(there)])
        wanted = n if n is not None else 1 if source.one_file and len(there) == 1 else PAIRS
        negative = defect.object.replace("_", " ") if against_object else ""
        scale = run_folder.load_guidance(run, defect) if guidance is None else guidance
        settings = Settings(run.config["size"], steps, Guidance(scale, sd.context(negative)),
                            to_rgb, weigh)
        jobs.append(Job(defect, there, source, settings, wanted))
    for model in each([sd], "comparing the checkpoint with the run's", 1, report):
        run_folder.check_weights(run, model.source, model.fingerprint())
    folder.settle_white(max(white_of(job.normals[0].path.parent) for job in jobs))
    with folder.held():
        for job in jobs:        # raises for what is not this tool's, before any painting
            _ = [folder.done(job.defect, k) for k in range(job.n)]
        for job in jobs:
            yield from paint_job(sd, learner, job, folder, batch_size, seed, report)
        folder.finish(run.config["size"])
