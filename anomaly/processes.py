"""Processes that learn one run together, each from its slice of every batch: torchrun starts them.

The gradients of all are averaged, so that n processes with batches of B learn as one with n * B.
The first of them writes the run. Where there is no group, a process is the first of one.
"""

import itertools
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from anomaly.files.holding import HeldError, held
from anomaly.progress import Stop, Stopped

LONGEST = timedelta(days=2)     # the others wait while the first finds the guidance and the gates
POLL, PATIENCE = 0.2, 25        # seconds between looks at a lock; looks until a line says so
log = logging.getLogger(__name__)


def count() -> int:
    """How many processes learn together."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Which of them this one is, the first is 0."""
    return dist.get_rank() if count() > 1 else 0


@contextmanager
def together(device: str) -> Iterator[None]:
    """Be one of the group that RANK, WORLD_SIZE and MASTER_ADDR describe, until the block ends."""
    if device.startswith("cuda"):
        torch.cuda.set_device(device)
    dist.init_process_group("gloo" if device == "cpu" else "cpu:gloo,cuda:nccl", timeout=LONGEST)
    if rank() > 0:
        logging.disable(logging.INFO)       # what the first one says, too
    try:
        yield
    except RuntimeError as err:
        if rank() > 0 and "onnection" in str(err):      # the first one has ended, and said why
            raise SystemExit(1) from None
        raise
    finally:
        dist.destroy_process_group()


def anywhere(flag: bool) -> bool:
    """True in all processes if it is true in one of them; each waits until all have come here."""
    if count() == 1:
        return flag
    found = torch.tensor(int(flag))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


def batch_of(options: dict[str, Any]) -> int:
    """Views a step in all processes, of a run with these options."""
    return int(options["batch_size"]) * int(options.get("processes") or 1)


def average(tensors: list[Tensor]) -> list[Tensor]:
    """The means over all processes of float32 tensors that each of them has, in one message."""
    if count() == 1:
        return tensors
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = torch.split(flat / count(), [tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors)]


def hold_at_last(lock: ExitStack, folder: Path, stop: Stop) -> None:
    """Let lock hold the folder once no other process does; Stopped if stop() ends the waiting."""
    for looks in itertools.count():
        try:
            return lock.enter_context(held(folder))
        except HeldError as err:
            if looks == PATIENCE:
                log.info("waiting: %s", err)
        if stop():
            raise Stopped
        time.sleep(POLL)
