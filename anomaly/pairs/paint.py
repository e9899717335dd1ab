"""The story of sampling, told by `python tools/sample.py`: a run -> a data set of image-mask pairs.

    plan -> mask -> placement -> crop -> blended DDIM -> composite -> gate -> files

Pairs are painted in blocks of the batch size. The last block of a defect is filled up with the
pairs that would follow, which are not written: every kernel sees one shape, and a pair's bytes do
not depend on how many are made.
"""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anomaly.crop import Cropped, defect_crop, take, thin
from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.files.names import shown, whole
from anomaly.files.photographs import Photograph, white_of
from anomaly.painter import Settings, Weigh, context_of, paint_crops
from anomaly.pairs.card import source_of
from anomaly.pairs.composite import change, composite
from anomaly.pairs.foreground import Foreground, Objects, anywhere
from anomaly.pairs.masks import Masks, MaskSource, learned_masks
from anomaly.pairs.normals import Normal, find_normals
from anomaly.pairs.pair_folder import PairFolder
from anomaly.pairs.plan import Plan, Target, draw_plan
from anomaly.progress import Report, Stop, Stopped, each, ending, never, silent
from anomaly.runs import run_folder
from anomaly.runs.gating import load_gate
from anomaly.runs.run_folder import Run
from anomaly.sampler import STEPS, Guidance
from anomaly.scores.gate import Gate, Verdict, judge
from ldm.model import StableDiffusion

PAIRS, BATCH_SIZE = 16, 8       # pairs a defect, and how many are painted together
TRIES = 3                       # of a pair that the gate does not pass
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pair:
    """A pair on the disk."""

    image: Path
    mask: Path
    defect: Defect
    k: int
    change: float       # mean absolute change under the mask, 0 (nothing was painted) to 1
    doubtful: bool      # the gate did not pass it


def normals_of(defect: Defect, path: Path | None) -> list[Normal]:
    """The photographs to paint a defect into: of path, else of the data it was learned from."""
    folder = defect.normals if path is None else whole(path)
    if folder is None:
        raise ValueError(f"--normals: {defect.key} was learned from data without train/good; "
                         f"name a folder of defect-free photographs")
    return find_normals(folder)


@dataclass(frozen=True)
class Draft:
    """A try of a pair, painted and judged; its image is made from it when it is written."""

    plan: Plan
    target: Target
    painted: Tensor             # (3, size, size) in [-1, 1]: the crop
    verdict: Verdict | None     # None: not judged
    thin: bool                  # no two by two latent cells fit into the mask

    def image(self, size: int) -> tuple[Photograph, float]:
        """The finished photograph and its change, 0 to 1."""
        photograph, mask = self.target.normal.open(), self.target.mask
        image = composite(photograph, mask, defect_crop(mask, size), self.painted)
        return image, change(photograph, image, mask)

    def better_than(self, other: "Draft | None") -> bool:
        """Fewer scores out of their bounds, then more alike."""
        def rank(verdict: Verdict) -> tuple[bool, int, float]:
            return verdict.passed, -verdict.reason.count(";"), verdict.scores["alike"]
        if other is None or other.verdict is None or self.verdict is None:
            return True
        return rank(self.verdict) > rank(other.verdict)


def paint_block(sd: StableDiffusion, learner: AnomalyEmbedding, defect: Defect, plans: list[Plan],
                targets: list[Target], settings: Settings, gate: Gate | None) -> list[Draft]:
    """Paint and judge one try of each pair of a block.

    Only one photograph is held at a time: it may be a line scan of 200 megapixels.
    """
    factor = sd.vae.config.factor

    def view(photograph: np.ndarray, target: Target) -> Cropped:
        crop = defect_crop(target.mask, settings.size)
        return take(photograph, target.mask, crop, settings.size, factor)

    views = [view(t.normal.open().seen, t) for t in targets]
    masks = torch.stack([v.mask for v in views])
    context = context_of(sd, learner, defect.stem, masks)
    noise = torch.from_numpy(np.stack([p.noise for p in plans]))
    painted = paint_crops(sd, views, context, noise, settings)
    drafts = [Draft(plan, target, crop, None, thin(v))
              for plan, target, crop, v in zip(plans, targets, painted, views)]
    if gate is None:
        return drafts
    after = torch.stack([view(d.image(settings.size)[0].seen, d.target).image for d in drafts])
    judged = judge(sd.vae, gate, torch.stack([v.image for v in views]), after, masks)
    return [replace(draft, verdict=verdict) for draft, verdict in zip(drafts, judged)]


@dataclass(frozen=True)
class Job:
    """What is to be painted of one defect: everything that can be at fault is settled."""

    defect: Defect
    normals: list[Normal]
    masks: Masks
    settings: Settings
    blocks: list[range]     # of pairs painted together, as far as they are this worker's
    n: int                  # pairs beyond it fill up the last block and are not written
    gate: Gate | None

    @property
    def asked(self) -> set[int]:
        """The pairs that are this worker's to write."""
        return {k for block in self.blocks for k in block if k < self.n}


def best_drafts(sd: StableDiffusion, learner: AnomalyEmbedding, job: Job, block: range,
                wanted: set[int], seed: int, tries: int,
                tell: Callable[[str], None]) -> dict[int, Draft]:
    """The best try of every pair of a block that is wanted, by number.

    A pair that fails is drawn again, with the whole block, so that its bytes do not depend on which
    others failed.
    """
    cells = job.settings.size // sd.vae.config.factor
    shape = (sd.unet.config.latent_channels, cells, cells)
    best: dict[int, Draft] = {}
    waiting = wanted & set(block)
    for attempt in range(1 if job.gate is None else tries):
        plans = [draw_plan(job.defect, k, seed, shape, job.masks.references, len(job.normals),
                           attempt) for k in block]
        try:
            targets = job.masks.choose(plans, tell)
        except RuntimeError:
            if attempt == 0:
                raise
            break       # no masks for another try: the best so far is kept
        for draft in paint_block(sd, learner, job.defect, plans, targets, job.settings, job.gate):
            k = draft.plan.k
            if k in waiting and draft.better_than(best.get(k)):
                best[k] = draft
        waiting = {k for k in waiting if (v := best[k].verdict) is not None and not v.passed}
        if not waiting:
            break
        tell(f"{len(waiting)} doubtful, try {attempt + 1} of {tries}")
    return best


def paint_job(sd: StableDiffusion, learner: AnomalyEmbedding, job: Job, folder: PairFolder,
              seed: int, tries: int, strict: bool, stop: Stop, report: Report) -> Iterator[Pair]:
    """Paint the pairs of a job that are not there, block by block; yields each when written.

    Raises Stopped before a block, if stop() asks for it.
    """
    missing, total = {k for k in job.asked if not folder.done(job.defect, k)}, len(job.asked)
    label = f"painting {job.defect.key}, guidance {job.settings.guidance.scale:g}"
    report(label, total - len(missing), total, "")
    for block in job.blocks:
        if missing.isdisjoint(block):
            continue
        if stop():
            raise Stopped
        best = best_drafts(sd, learner, job, block, missing, seed, tries,
                           lambda note: report(label, total - len(missing), total, note))
        for k, draft in sorted(best.items()):
            image, changed = draft.image(job.settings.size)
            row = written(draft, job.settings.size, changed, seed)
            doubtful = row["verdict"] == "doubtful"
            paths = folder.write(job.defect, k, row, image, draft.target.mask, doubtful and strict)
            missing.remove(k)
            report(label, total - len(missing), total, "")
            if not (doubtful and strict):
                yield Pair(*paths, job.defect, k, changed, doubtful)


def written(draft: Draft, size: int, changed: float, seed: int) -> dict[str, object]:
    """What the manifest says of a pair beside its name and files."""
    verdict, side = draft.verdict, defect_crop(draft.target.mask, size).side
    scores = {} if verdict is None else {n: f"{v:.4g}" for n, v in verdict.scores.items()}
    return {"try": draft.plan.attempt, "seed": seed, "normal": shown(draft.target.normal.path),
            "normal_sha256": draft.target.normal.sha256,
            "mask_source": shown(draft.target.source), "change": f"{changed:.6g}",
            "scale": f"{side / size:.4g}", "thin": int(draft.thin), **scores,
            "verdict": "" if verdict is None else "pass" if verdict.passed else "doubtful",
            "reason": "" if verdict is None else verdict.reason}


def guidance_of(run: Run, defect: Defect, strength: float) -> float:
    """The scale at which a defect is strength times as strong as in its photographs."""
    found = run_folder.load_strength(run, defect)
    scale, expected = found.at(strength)
    if strength != 1:
        asked = strength * found.goal
        beyond = "" if abs(expected - asked) < 0.005 else \
            f", out of reach, the nearest is {expected:.2f}"
        log.info("%s: strength %g asks for a contrast of %.2f%s; guidance %g", defect.key, strength,
                 asked, beyond, scale)
    return scale


def paint(sd: StableDiffusion, run: Run, folder: PairFolder, *, defects: list[Defect] | None = None,
          n: int | None = None, normals: Path | None = None, masks: MaskSource = learned_masks,
          foreground: Foreground = anywhere, steps: int = STEPS, guidance: float | None = None,
          strength: float = 1.0, against_object: bool = False, weigh: Weigh | None = None,
          gate: str = "mark", tries: int = TRIES, batch_size: int = BATCH_SIZE, seed: int = 0,
          stop: Stop = never, report: Report = silent) -> Iterator[Pair]:
    """Paint n pairs of every defect of the run, without those that are there; yields each written.

    defects: None: all of the run's. n: a defect; None: PAIRS, or 1 for one photograph and one mask
    file. normals: a photograph or a folder; None: those of the data. foreground: finds the objects
    that masks are to lie on. guidance: a scale; None: what training found, or 1 with a
    re-weighting. strength: how strong the defect is to be, relative to its photographs; needs a
    guidance of None without a re-weighting. against_object: the negative prompt is the object's
    words, not empty. weigh: d, m -> w_m. gate: mark (a pair unlike the photographs is drawn again,
    tries times in all, and the best is kept), strict (or none is), off. stop: True ends it after a
    block, with Stopped. Of several workers each paints every n-th block (folder.shard). Every fault
    of the input raises before any painting.
    """
    defects = run.defects if defects is None else defects
    learner = run_folder.load_learner(run, sd, defects)
    to_rgb = run_folder.load_to_rgb(run).to(sd.device)
    if strength != 1 and (weigh is not None or guidance is not None):
        raise ValueError("--strength: belongs to --guidance auto without --reweight; leave one out")
    if weigh is not None and guidance is None:
        log.info("with a re-weighting the guidance is 1: both strengthen, and its scale was found "
                 "without")
        guidance = 1.0
    ended = ending(report, stop)
    jobs: list[Job] = []
    shard, blocks = folder.shard, 0
    objects: dict[tuple[Normal, ...], Objects] = {}     # the defects of an object share them
    for defect in defects:
        there = normals_of(defect, normals)
        if tuple(there) not in objects:
            objects[tuple(there)] = foreground(there, ended)
        source = masks(sd, run, defect, there, steps, objects[tuple(there)])
        wanted = n if n is not None else 1 if source.one_file and len(there) == 1 else PAIRS
        negative = defect.object.replace("_", " ") if against_object else ""
        scale = guidance_of(run, defect, strength) if guidance is None else guidance
        settings = Settings(run.config["size"], steps, Guidance(scale, sd.context(negative)),
                            to_rgb, weigh)
        every = [range(k, k + batch_size) for k in range(0, wanted, batch_size)]
        own = [block for i, block in enumerate(every, blocks) if i % shard.n == shard.i]
        blocks += len(every)
        jobs.append(Job(defect, there, source, settings, own, wanted,
                        None if gate == "off" else load_gate(run, defect)))
    for model in each([sd], "comparing the checkpoint with the run's", 1, ended):
        run_folder.check_weights(run, model.source, model.fingerprint())
    folder.settle({job.defect.object: job.normals for job in jobs},
                  max(white_of(job.normals[0].path.parent) for job in jobs),
                  source_of(run, sd, batch_size))
    work = f"{batch_size} {[(job.defect.key, job.n) for job in jobs]}"
    with folder.held(run.config["size"], work):
        for job in jobs:        # raises for what is not this tool's, before any painting
            _ = [folder.done(job.defect, k) for k in job.asked]
        for job in jobs:
            yield from paint_job(sd, learner, job, folder, seed, tries, gate == "strict", stop,
                                 report)
    said = folder.summaries([(job.defect, job.asked, job.n) for job in jobs])
    for job, summary in zip(jobs, said):
        log.info("%s: %s", job.defect.key,
                 "; ".join(filter(None, (summary, job.masks.refusals))))
