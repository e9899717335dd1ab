"""More defects for a finished run: e_a and e_m of each on the frozen E, by many jobs at once.

A job learns a defect in RUN/state/add/OBJECT-DEFECT, a run of its own that no other job touches. At
the end it joins what it learned to the run, under the run's lock and in a moment. config.json is
written last: until then the run is the one it was, and the same command joins it all again.
"""

import logging
import shutil
from contextlib import ExitStack
from pathlib import Path

from anomaly import processes
from anomaly.dataset import Defect, check_names
from anomaly.files.atomic_files import read_json, replacing, write_json
from anomaly.files.holding import held
from anomaly.progress import Report, Stop, ending, never, silent
from anomaly.runs import run_folder
from anomaly.runs.gating import load_gate, save_gates
from anomaly.runs.learn import check_input, learn_into
from anomaly.runs.run_folder import Run
from anomaly.runs.run_state import join_losses, join_states
from anomaly.training_files import check_files, describe, sha256
from ldm.model import StableDiffusion

log = logging.getLogger(__name__)


def add(sd: StableDiffusion, defects: list[Defect], folder: Path, *, report: Report = silent,
        stop: Stop = never) -> Run:
    """Learn the defects one by one, then join them to the finished run in the folder; returns it.

    All else is as the run has it; its E, and what it has of other defects, stays as it is. What a
    defect's files hold depends on it and the run alone: not on other jobs, nor on their order.
    ValueError or an OSError for a fault of the input; Stopped if stop() ends it before the end.
    """
    if processes.count() > 1:
        raise ValueError(f"--add: found {processes.count()} processes that learn together, "
                         f"expected one; start one for each defect, all at once if you like")
    run, jobs = run_folder.read_run(folder), [folder / "state/add" / d.stem for d in defects]
    if _joined(run, defects):       # maybe by this command, which was killed just below
        log.info("%s: has %s already", folder, ", ".join(d.key for d in defects))
    else:
        _check(run, defects)
        check_input(sd, defects, run.config["size"], ending(report, stop))
        run_folder.check_weights(run, sd.source, sd.fingerprint())
        with ExitStack() as locks:
            for job in jobs:
                locks.enter_context(held(job))
            learned = [_learn(sd, run, *each, report, stop) for each in zip(defects, jobs)]
            processes.hold_at_last(locks, folder, stop)
            run = _join(folder, learned)
    for job in jobs:
        shutil.rmtree(job, ignore_errors=True)
    return run


def _joined(run: Run, defects: list[Defect]) -> bool:
    """True if the run has these defects, from the same files."""
    keys = {(d.object, d.name) for d in defects}
    rows = [row for row in run.config["defects"] if (row["object"], row["defect"]) in keys]
    return len(rows) == len(defects) and all(
        row in rows for row in describe(run.folder, defects))


def _check(run: Run, defects: list[Defect]) -> None:
    """ValueError or FileNotFoundError unless the run is finished and can take the defects."""
    for key in {d.key for d in defects} & {d.key for d in run.defects}:
        raise ValueError(f"--add: {key} is in the run in {run.folder} already; leave it out, or "
                         f"give the other defect another name")
    check_names([*run.defects, *defects])
    run_folder.load_module(run, "spatial_encoder")
    for defect in run.defects:
        load_gate(run, defect)
        for kind in _folders(run).values():
            run_folder.load_module(run, f"{kind}/{defect.stem}")
    if not run.preview.is_file():
        raise FileNotFoundError(f"{run.preview}: not found; run train_embed.py with --resume")


def _folders(run: Run) -> dict[str, str]:
    """Stage -> the folder of the vectors that it learns."""
    masks = {} if run.config["options"]["no_masks"] else {"mask": "mask_embeddings"}
    return {"image": "embeddings", **masks}


def _encoder(run: Run) -> str:
    return sha256(run.folder / "spatial_encoder.safetensors")


def _learn(sd: StableDiffusion, run: Run, defect: Defect, folder: Path, report: Report,
           stop: Stop) -> Run:
    """The run of a job: this defect alone, on the other run's E; gone on with if it is that."""
    options = {name: value for name, value in run.config["options"].items() if name != "added"}
    job = Run(folder, {**run.config, "options": options, "spatial_encoder": _encoder(run),
                       "defects": describe(folder, [defect])})
    path = folder / "config.json"
    if not path.is_file() or read_json(path, {}, f"remove {folder}") != job.config:
        shutil.rmtree(folder / "state", ignore_errors=True)     # all else is written anew
        write_json(path, job.config)
    learn_into(sd, job, [defect], processes.batch_of(options), report, stop, base=run)
    return job


def _join(folder: Path, jobs: list[Run]) -> Run:
    """Write what the jobs have learned into the run, which this process holds; returns it.

    Every file keeps what it has of the defects in config.json, and loses what a killed --add left.
    """
    run = run_folder.read_run(folder)
    added = [defect for job in jobs for defect in job.defects]
    _check(run, added)
    for job in jobs:
        check_files(job.hashes)
        if job.config["spatial_encoder"] != _encoder(run):
            raise ValueError(f"{folder}: has been trained on since {job.defects[0].key} was begun; "
                             f"run the same command again: it learns on the E that is there now")
    gates = {d.stem: load_gate(each, d) for each in (run, *jobs) for d in each.defects}
    for job, defect in zip(jobs, added):
        for kind in _folders(run).values():
            name = f"{kind}/{defect.stem}.safetensors"
            _copy(job.folder / name, folder / name)
        _copy(job.preview, run_folder.added_preview(run, defect))
    run_folder.save_masks(run, added)
    save_gates(run, gates)
    for stage in _folders(run):
        join_states(run, stage, jobs)
    join_losses(run, jobs)
    options = run.config["options"]
    joined = Run(folder, {
        **run.config, "defects": [*run.config["defects"], *describe(folder, added)],
        "options": {**options, "added": [*options.get("added", []), *(d.key for d in added)]}})
    write_json(folder / "config.json", joined.config)
    return joined


def _copy(source: Path, target: Path) -> None:
    with replacing(target, source.stat().st_size) as temporary:
        shutil.copyfile(source, temporary)
