"""What resuming needs, and loss.csv: saved on the way, a killed training goes on from there.

The parameters and Adam's moments are in RUN/state, with their step in the metadata.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from anomaly.embedding import VECTORS, defects_in
from anomaly.files.atomic_files import append_rows, read_rows, write_rows, write_tensors
from anomaly.runs.run_folder import Run
from anomaly.runs.run_tensors import fitted, read_tensors, step_of
from anomaly.train import Record

LOSS_COLUMNS = ["stage", "step", "defect", "loss", "e_a", "e_s", "e_m"]     # e_*: in words' norms
SAVE_EVERY, SAVE_SECONDS = 100, 60      # between states: steps, or seconds where they are slow


def _learned(learner: nn.Module) -> dict[str, Any]:
    """The parameters by name, without those of a frozen encoder."""
    return {name: p for name, p in learner.named_parameters() if p.requires_grad}


def save_state(run: Run, stage: str, learner: nn.Module, optimizer: torch.optim.Optimizer,
               step: int, records: Iterable[Record]) -> None:
    """loss.csv first, then the state: rows beyond the state's step are dropped on resuming."""
    append_rows(run.folder / "loss.csv", LOSS_COLUMNS, [
        {"stage": stage, "step": r.step, "defect": r.stem, "loss": f"{r.loss:.6g}",
         **{name: f"{norm:.4g}" for name, norm in r.norms.items()}} for r in records])
    tensors: dict[str, Tensor] = _learned(learner)
    for name, parameter in _learned(learner).items():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{key}"] = value
    write_tensors(run.folder / "state" / f"{stage}.safetensors", tensors, {"step": str(step)})


def load_state(run: Run, stage: str, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the saved state into learner and optimizer; returns its step, 0 if none was saved."""
    path = run.folder / "state" / f"{stage}.safetensors"
    if not path.exists():
        return 0
    tensors, metadata = read_tensors(path)
    parameters = _learned(learner)
    like: dict[str, Tensor] = dict(parameters)
    for name, parameter in parameters.items():
        if f"{name}|step" in tensors:
            like |= {f"{name}|step": torch.empty(()), f"{name}|exp_avg": parameter,
                     f"{name}|exp_avg_sq": parameter}
    # There are more defects than the run has if an --add was killed while it joined its own.
    own = {key: some for key, some in tensors.items() if key.split("|")[0] in parameters}
    fitted(path, own, like)
    for name, parameter in parameters.items():
        parameter.data.copy_(own[name])
        optimizer.state[parameter] = {      # empty for a defect that had no turn yet
            key.split("|")[1]: value if key.endswith("|step") else value.to(parameter.device)
            for key, value in own.items() if key.startswith(name + "|")}
    return step_of(path, metadata) * defects_in(parameters) // defects_in(tensors)


def _losses(run: Run) -> list[dict[str, str]]:
    return read_rows(run.folder / "loss.csv", LOSS_COLUMNS, [("step", int)])


def open_losses(run: Run, stage: str, step: int) -> None:
    """Make loss.csv end where the state does: this stage's rows up to step, and all of others."""
    rows = [r for r in _losses(run) if r["stage"] != stage or int(r["step"]) <= step]
    write_rows(run.folder / "loss.csv", LOSS_COLUMNS, rows)


def _write_losses(run: Run, rows: Iterable[dict[str, str]]) -> None:
    """Image steps, then mask steps."""
    ordered = sorted(rows, key=lambda r: (r["stage"], int(r["step"])))
    write_rows(run.folder / "loss.csv", LOSS_COLUMNS, ordered)


def sort_losses(run: Run) -> None:
    """An extended run ends with the file of an unbroken one."""
    _write_losses(run, _losses(run))


def join_losses(run: Run, jobs: list[Run]) -> None:
    """The rows of runs of one defect each, their steps after the run's.

    What a killed --add has left is dropped: rows of defects that the run does not name.
    """
    known, steps = {d.stem for d in run.defects}, run.config["options"]["steps"]
    rows = [r for r in _losses(run) if r["defect"] in known]
    for n, job in enumerate(jobs, len(known)):
        rows += [{**r, "step": str(int(r["step"]) + n * steps)}
                 for r in _losses(job)]
    _write_losses(run, rows)


def join_states(run: Run, stage: str, jobs: list[Run]) -> None:
    """The vectors and moments of runs of one defect each; again without what was left there."""
    path = f"state/{stage}.safetensors"
    known = {d.stem for d in run.defects}
    tensors = {key: value for key, value in read_tensors(run.folder / path)[0].items()
               if not key.startswith(VECTORS) or key.split("|")[0].split(".")[1] in known}
    for job in jobs:
        tensors.update(read_tensors(job.folder / path)[0])
    step = run.config["options"]["steps"] * (len(known) + len(jobs))
    write_tensors(run.folder / path, tensors, {"step": str(step)})
