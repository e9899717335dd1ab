"""The story of training: photographs with masks -> a run. `python tools/train_embed.py` tells it.

    views -> latent-to-RGB -> e_a and E by masked textual inversion -> guidance -> gate -> e_m
          -> preview
"""

import logging
import platform
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from anomaly.dataset import Defect, check_names, read_example
from anomaly.embedding import AnomalyEmbedding, Learner, MaskEmbedding
from anomaly.files.atomic_files import write_image
from anomaly.files.holding import held
from anomaly.painter import Settings
from anomaly.progress import Report, each, silent
from anomaly.runs import run_folder, run_state
from anomaly.runs.gating import gate_of, save_gates
from anomaly.runs.guidance import Strength, strength_of
from anomaly.runs.preview import preview_row
from anomaly.runs.run_folder import Run
from anomaly.runs.sheets import sheet
from anomaly.sampler import STEPS, Guidance
from anomaly.scores.gate import Gate
from anomaly.scores.surfaces import frames_of
from anomaly.train import Views, textual_inversion
from anomaly.views import fit_latent_to_rgb, mask_views, random_views
from ldm.model import StableDiffusion

BATCH_SIZE = 4                          # views a step
SMALL_STEPS, SD_STEPS = 100, 1000       # steps a defect: of a small checkpoint, of Stable Diffusion
LARGEST = 4                             # times the side the model was trained on
SD_WIDTH = 512                          # of the text encoder; Stable Diffusion's have 768 and 1024
log = logging.getLogger(__name__)


def default_steps(sd: StableDiffusion) -> int:
    """Training steps a defect where none are given. Usual for Stable Diffusion: 1,000 to 3,000."""
    return SD_STEPS if sd.text_encoder.config.width >= SD_WIDTH else SMALL_STEPS


def describe_run(sd: StableDiffusion, defects: list[Defect], size: int,
                 options: dict[str, object]) -> dict[str, object]:
    """config.json of the run."""
    return {"options": options, "size": size, "weights_sha256": sd.fingerprint(),
            "prediction_type": "v" if sd.schedule.config.v_prediction else "eps",
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "numpy": np.__version__},
            "defects": run_folder.describe(defects)}


def train_stage(run: Run, stage: str, sd: StableDiffusion, views: dict[str, Views],
                learner: Learner, steps: int, batch_size: int, seed: int, report: Report) -> None:
    """Run the loop from the last saved state to the end, saving on the way."""
    optimizer = torch.optim.Adam(learner.rates(sd))
    start, end = run_state.load_state(run, stage, learner, optimizer), steps * len(views)
    run_state.open_losses(run, stage, start)
    label, records, saved = f"learning {stage}s", [], time.monotonic()
    report(label, start, end, "")
    for record in textual_inversion(sd, views, learner, optimizer, start, end, batch_size, seed):
        records.append(record)
        report(label, record.step, end, f"loss {np.mean([r.loss for r in records[-32:]]):.4f}")
        late = time.monotonic() - saved > run_state.SAVE_SECONDS
        if late or record.step % run_state.SAVE_EVERY == 0 or record.step == end:
            run_state.save_state(run, stage, learner, optimizer, record.step, records)
            records, saved = [], time.monotonic()


def find_guidance(sd: StableDiffusion, defects: list[Defect], learner: AnomalyEmbedding,
                  settings: Settings, report: Report) -> dict[str, Strength]:
    """The scale of each defect at which its contrast is that of its photographs, by stem."""
    found = {}
    for defect in each(defects, "finding the guidance", len(defects), report):
        strength = strength_of(sd, defect, learner, settings)
        log.info("%s: guidance %g, for a contrast of %.2f; the photographs have %.2f",
                 defect.key, strength.guidance, strength.contrast, strength.goal)
        found[defect.stem] = strength
    return found


def find_gates(sd: StableDiffusion, defects: list[Defect], settings: Settings,
               report: Report) -> dict[str, Gate]:
    """The gate of each defect, by stem, and a line that says what it is worth."""
    found = {}
    for defect in each(defects, "calibrating the gate", len(defects), report):
        gate = found[defect.stem] = gate_of(sd, defect, settings)
        log.info("%s: %s", defect.key, gate.worth)
    return found


def learn(sd: StableDiffusion, defects: list[Defect], out: Path, *, steps: int | None = None,
          batch_size: int = BATCH_SIZE, size: int | None = None, flip: bool = True,
          mask_model: bool = True, seed: int = 0, resume: bool = False,
          options: dict[str, object] | None = None, report: Report = silent) -> Run:
    """Learn every defect, then the masks of each, into the folder out; returns the run.

    steps: a defect; None: default_steps, or with resume the run's own. batch_size: views a step.
    size: side of the crops in pixels; None: the model's own. flip: views may be mirrored.
    mask_model: learn masks, too. resume: go on where the run in out was. options: what else
    config.json shall say; a resumed run must have the same. Every fault of the input raises before
    anything is written: ValueError or an OSError.
    """
    run_folder.check_out(out, resume)
    check_names(defects)
    if not defects or not all(defect.examples for defect in defects):
        raise ValueError("nothing to learn: expected defects with one photograph and mask at least")
    for example in (e for defect in defects for e in defect.examples):
        read_example(example)
    pixels = size or sd.native_size
    if pixels > LARGEST * sd.native_size:
        raise ValueError(f"--size: {pixels}, but the model was trained at {sd.native_size}; give "
                         f"at most {LARGEST * sd.native_size}")
    if pixels % sd.size_multiple:
        raise ValueError(f"--size: {pixels}, but the model takes multiples of {sd.size_multiple}")
    for defect in defects:      # what the gate will read, too
        frames_of(defect, pixels, sd.vae.config.factor)
    if steps is None:
        steps = run_folder.read_run(out).config["options"]["steps"] if resume else default_steps(sd)
    for model in each([sd], "reading the checkpoint's sha256", 1, report):
        model.fingerprint()
    config = describe_run(sd, defects, pixels, {
        "weights": sd.source, "steps": steps, "batch_size": batch_size, "size": size,
        "no_flip": not flip, "no_masks": not mask_model, "seed": seed, **(options or {})})
    with held(out):
        run_folder.check_out(out, resume)       # another process may have been quicker
        run = run_folder.start_run(out, config, resume)
        _learn(sd, run, defects, steps, batch_size, flip, mask_model, seed, report)
    return run


def _learn(sd: StableDiffusion, run: Run, defects: list[Defect], steps: int, batch_size: int,
           flip: bool, mask_model: bool, seed: int, report: Report) -> None:
    """What learn writes, in its order."""
    pixels = run.config["size"]
    run_folder.save_masks(run, defects)
    to_rgb = fit_latent_to_rgb(sd, defects, pixels, report)
    run_folder.save_module(run, "latent_to_rgb", {"latent_to_rgb": to_rgb})
    learner = AnomalyEmbedding(sd, defects, seed)
    views = {d.stem: random_views(sd, d, pixels, flip, seed, report) for d in defects}
    train_stage(run, "image", sd, views, learner, steps, batch_size, seed, report)

    uncond = sd.context("")
    settings = Settings(pixels, STEPS, Guidance(1.0, uncond), to_rgb, None)
    guidance = find_guidance(sd, defects, learner, settings, report)
    save_gates(run, find_gates(sd, defects, settings, report))
    run_folder.save_vectors(run, "embeddings", "", learner.e_a, guidance)
    run_folder.save_module(run, "spatial_encoder", learner.spatial_encoder.state_dict())

    masks = None
    if mask_model:
        masks = MaskEmbedding(sd, defects, seed)
        views = {d.stem: mask_views(sd, d, pixels, report) for d in defects}
        train_stage(run, "mask", sd, views, masks, steps, batch_size, seed, report)
        run_folder.save_vectors(run, "mask_embeddings", "-mask", masks.e_m)
    run_state.sort_losses(run)

    rows = []
    for defect in each(defects, "drawing the preview", len(defects), report):
        found = replace(settings, guidance=Guidance(guidance[defect.stem].guidance, uncond))
        rows.append(preview_row(sd, defect, learner, masks, found))
    write_image(run.preview, sheet(rows))
