"""What resuming needs, and loss.csv: saved on the way, a killed training goes on from there.

The parameters and Adam's moments are in RUN/state, with their step in the metadata.
"""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from anomaly.files.atomic_files import append_rows, read_rows, write_rows, write_tensors
from anomaly.runs.run_folder import Run, fitted, read_tensors, step_of
from anomaly.train import Record

LOSS_COLUMNS = ["stage", "step", "defect", "loss", "e_a", "e_s", "e_m"]     # e_*: in words' norms
SAVE_EVERY, SAVE_SECONDS = 100, 60      # between states: steps, or seconds where they are slow


def save_state(run: Run, stage: str, learner: nn.Module, optimizer: torch.optim.Optimizer,
               step: int, records: Iterable[Record]) -> None:
    """loss.csv first, then the state: rows beyond the state's step are dropped on resuming."""
    append_rows(run.folder / "loss.csv", LOSS_COLUMNS, [
        {"stage": stage, "step": r.step, "defect": r.stem, "loss": f"{r.loss:.6g}",
         **{name: f"{norm:.4g}" for name, norm in r.norms.items()}} for r in records])
    tensors: dict[str, Tensor] = dict(learner.named_parameters())
    for name, parameter in learner.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"{name}|{key}"] = value
    write_tensors(run.folder / "state" / f"{stage}.safetensors", tensors, {"step": str(step)})


def load_state(run: Run, stage: str, learner: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Put the saved state into learner and optimizer; returns its step, 0 if none was saved."""
    path = run.folder / "state" / f"{stage}.safetensors"
    if not path.exists():
        return 0
    tensors, metadata = read_tensors(path)
    parameters = dict(learner.named_parameters())
    like: dict[str, Tensor] = dict(parameters)
    for name, parameter in parameters.items():
        if f"{name}|step" in tensors:
            like |= {f"{name}|step": torch.empty(()), f"{name}|exp_avg": parameter,
                     f"{name}|exp_avg_sq": parameter}
    fitted(path, tensors, like)
    for name, parameter in parameters.items():
        parameter.data.copy_(tensors[name])
        optimizer.state[parameter] = {      # empty for a defect that had no turn yet
            key.split("|")[1]: value if key.endswith("|step") else value.to(parameter.device)
            for key, value in tensors.items() if key.startswith(name + "|")}
    return step_of(path, metadata)


def open_losses(run: Run, stage: str, step: int) -> None:
    """Make loss.csv end where the state does: this stage's rows up to step, and all of others."""
    path = run.folder / "loss.csv"
    rows = [r for r in read_rows(path, LOSS_COLUMNS, [("step", int)])
            if r["stage"] != stage or int(r["step"]) <= step]
    write_rows(path, LOSS_COLUMNS, rows)


def sort_losses(run: Run) -> None:
    """Image steps, then mask steps: an extended run ends with the file of an unbroken one."""
    path = run.folder / "loss.csv"
    rows = sorted(read_rows(path, LOSS_COLUMNS, [("step", int)]),
                  key=lambda r: (r["stage"], int(r["step"])))
    write_rows(path, LOSS_COLUMNS, rows)
