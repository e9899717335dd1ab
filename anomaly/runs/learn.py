"""The story of training: photographs with masks -> a run. `python tools/train_embed.py` tells it.

    views -> latent-to-RGB -> e_a and E by masked textual inversion -> guidance -> gate -> e_m
          -> preview
"""

import logging
import platform
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from anomaly import processes
from anomaly.dataset import Defect, check_names, read_example
from anomaly.embedding import AnomalyEmbedding, Learner, MaskEmbedding
from anomaly.files.atomic_files import write_image
from anomaly.files.holding import held
from anomaly.painter import Settings
from anomaly.progress import Report, Stop, Stopped, each, ending, never, silent
from anomaly.runs import run_folder, run_state
from anomaly.runs.gating import gate_of, save_gates
from anomaly.runs.guidance import Strength, strength_of
from anomaly.runs.preview import preview_row
from anomaly.runs.run_folder import Run
from anomaly.runs.sheets import sheet
from anomaly.sampler import STEPS, Guidance
from anomaly.scores.surfaces import frames_of
from anomaly.train import Views, textual_inversion
from anomaly.training_files import describe, reading
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
                 options: dict[str, object], out: Path) -> dict[str, object]:
    """config.json of the run in the folder out."""
    return {"options": options, "size": size, "weights_sha256": sd.fingerprint(),
            "prediction_type": "v" if sd.schedule.config.v_prediction else "eps",
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "numpy": np.__version__},
            "defects": describe(out, defects)}


def check_input(sd: StableDiffusion, defects: list[Defect], size: int, report: Report) -> None:
    """ValueError or an OSError for what training would stumble on: the names, files and crops.

    And the checkpoint is read through once for its sha256.
    """
    check_names(defects)
    if not defects or not all(defect.examples for defect in defects):
        raise ValueError("nothing to learn: expected defects with one photograph and mask at least")
    for example in (e for defect in defects for e in defect.examples):
        read_example(example)
    if size > LARGEST * sd.native_size:
        raise ValueError(f"--size: {size}, but the model was trained at {sd.native_size}; give "
                         f"at most {LARGEST * sd.native_size}")
    if size % sd.size_multiple:
        raise ValueError(f"--size: {size}, but the model takes multiples of {sd.size_multiple}")
    for defect in defects:      # what the gate will read, too
        frames_of(defect, size, sd.vae.config.factor)
    for model in each([sd], "reading the checkpoint's sha256", 1, report):
        model.fingerprint()


def train_stage(run: Run, stage: str, sd: StableDiffusion, views: dict[str, Views],
                learner: Learner, batch_size: int, report: Report, stop: Stop) -> None:
    """Run the loop from the last saved state to the end, saving on the way.

    stop ends it after a step, once that is saved: Stopped.
    """
    optimizer = torch.optim.Adam(learner.rates(sd))
    steps, seed = (run.config["options"][name] for name in ("steps", "seed"))
    start, first = run_state.load_state(run, stage, learner, optimizer), processes.rank() == 0
    if first:
        run_state.open_losses(run, stage, start)
    label, end, records, saved = f"learning {stage}s", steps * len(views), [], time.monotonic()
    report(label, start, end, "")
    for record in textual_inversion(sd, views, learner, optimizer, start, end, batch_size, seed):
        records.append(record)
        report(label, record.step, end, f"loss {np.mean([r.loss for r in records[-32:]]):.4f}")
        stopped = processes.anywhere(stop())
        late = time.monotonic() - saved > run_state.SAVE_SECONDS
        if stopped or late or record.step % run_state.SAVE_EVERY == 0 or record.step == end:
            if first:
                run_state.save_state(run, stage, learner, optimizer, record.step, records)
            records, saved = [], time.monotonic()
        if stopped:
            raise Stopped


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


def measure(sd: StableDiffusion, run: Run, defects: list[Defect], learner: AnomalyEmbedding,
            settings: Settings, report: Report) -> dict[str, Strength]:
    """The strength of each defect and, beside it, its gate; writes both, and what was learned."""
    gates = {}
    with reading(run.hashes):
        guidance = find_guidance(sd, defects, learner, settings, report)
        for defect in each(defects, "calibrating the gate", len(defects), report):
            gate = gates[defect.stem] = gate_of(sd, defect, settings)
            log.info("%s: %s", defect.key, gate.worth)
    save_gates(run, gates)
    run_folder.save_vectors(run, "embeddings", "", learner.e_a, guidance)
    run_folder.save_module(run, "spatial_encoder", learner.spatial_encoder.state_dict())
    return guidance


def draw_preview(sd: StableDiffusion, run: Run, defects: list[Defect], learner: AnomalyEmbedding,
                 masks: MaskEmbedding | None, settings: Settings, guidance: dict[str, Strength],
                 report: Report) -> None:
    """The last file of a run."""
    rows = []
    with reading(run.hashes):
        for defect in each(defects, "drawing the preview", len(defects), report):
            found = replace(settings.guidance, scale=guidance[defect.stem].guidance)
            rows.append(preview_row(sd, defect, learner, masks, replace(settings, guidance=found)))
    write_image(run.preview, sheet(rows))
    for defect in defects:      # what --add has drawn; its row is in the preview now
        run_folder.added_preview(run, defect).unlink(missing_ok=True)


def learn(sd: StableDiffusion, defects: list[Defect], out: Path, *, steps: int | None = None,
          batch_size: int = BATCH_SIZE, size: int | None = None, flip: bool = True,
          mask_model: bool = True, seed: int = 0, resume: bool = False,
          options: dict[str, object] | None = None, masked_loss: bool = True,
          spatial: bool = True, report: Report = silent, stop: Stop = never) -> Run:
    """Learn every defect, then the masks of each, into the folder out; returns the run.

    steps: a defect; None: default_steps, or with resume the run's own. batch_size: views a step, of
    each process. size: side of the crops in pixels; None: the model's own. flip: views may be
    mirrored. mask_model: learn masks, too. resume: go on where the run in out was. options: what
    else config.json shall say; a resumed run must have the same. For an ablation, without
    masked_loss every cell counts alike, without spatial e is e_a alone. Every fault of the input
    raises before anything is written: ValueError or an OSError. Stopped if stop() ends it before
    the end.
    Of several processes (anomaly/processes.py) only the first one writes.
    """
    first = processes.rank() == 0
    if first:
        run_folder.check_out(out, resume)
    pixels = size or sd.native_size
    check_input(sd, defects, pixels, ending(report, stop))
    if steps is None:
        steps = run_folder.read_run(out).config["options"]["steps"] if resume else default_steps(sd)
    config = describe_run(sd, defects, pixels, {
        "weights": sd.source, "steps": steps, "batch_size": batch_size, "size": size,
        "no_flip": not flip, "no_masks": not mask_model, "seed": seed, **(options or {}),
        **({} if masked_loss else {"no_masked_loss": True}),
        **({} if spatial else {"no_spatial": True}),
        **({} if processes.count() == 1 else {"processes": processes.count()})}, out)
    with held(out) if first else nullcontext():
        if first:
            run_folder.check_out(out, resume)       # another process may have been quicker
            run_folder.start_run(out, config, resume)
        processes.anywhere(False)       # the run is there
        run = run_folder.read_run(out)
        learn_into(sd, run, defects, batch_size, report, stop)
    return run


def learn_into(sd: StableDiffusion, run: Run, defects: list[Defect], batch_size: int,
               report: Report, stop: Stop, base: Run | None = None) -> None:
    """What learn does with the run that it has started, in its order.

    base: the run whose map and E, frozen, are used; None: both are learned.
    """
    options, first, ended = run.config["options"], processes.rank() == 0, ending(report, stop)
    learner = AnomalyEmbedding(sd, defects, options["seed"], not options.get("no_spatial"))
    if base is not None:
        run_folder.load_encoder(base, learner)
    with reading(run.hashes):
        views = {d.stem: random_views(sd, d, run.config["size"], not options["no_flip"],
                                      options["seed"], ended) for d in defects}
        if options.get("no_masked_loss"):
            views = {s: replace(v, cells=torch.ones_like(v.cells)) for s, v in views.items()}
        if first:
            run_folder.save_masks(run, defects)
            to_rgb = fit_latent_to_rgb(sd, defects, run.config["size"], ended) if base is None \
                else run_folder.load_to_rgb(base)
            run_folder.save_module(run, "latent_to_rgb", {"latent_to_rgb": to_rgb})
    train_stage(run, "image", sd, views, learner, batch_size, report, stop)
    if first:
        settings = Settings(run.config["size"], STEPS, Guidance(1.0, sd.context("")), to_rgb, None)
        guidance = measure(sd, run, defects, learner, settings, ended)

    masks = None if options["no_masks"] else MaskEmbedding(sd, defects, options["seed"])
    if masks is not None:
        with reading(run.hashes):
            views = {d.stem: mask_views(sd, d, run.config["size"], ended) for d in defects}
        train_stage(run, "mask", sd, views, masks, batch_size, report, stop)
    if first:
        if masks is not None:
            run_folder.save_vectors(run, "mask_embeddings", "-mask", masks.e_m)
        run_state.sort_losses(run)
        draw_preview(sd, run, defects, learner, masks, settings, guidance, ended)
