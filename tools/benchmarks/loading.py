"""The time of `weights.load` beside diffusers', and its memory beside the size of the weights."""

import multiprocessing
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from weights import load

RUNS = 5        # of each loader, in turn, after one of each that warms the cache


@dataclass(frozen=True)
class Loading:
    """Loading one checkpoint: seconds (median) and memory."""

    COLUMNS: ClassVar = ("weights fp32", "ours", "diffusers", "ratio", "peak memory fp32", "fp16")
    size: int           # bytes of the weights in float32
    ours: float
    theirs: float
    peaks: dict[torch.dtype, float]     # anonymous memory above the start, over that size

    def cells(self) -> list[str]:
        """For the table."""
        return [f"{self.size / 2 ** 30:.2f} GiB", f"{self.ours:.2f} s", f"{self.theirs:.2f} s",
                f"{self.ours / self.theirs:.2f}",
                *(f"{peak:.2f} x" for peak in self.peaks.values())]

    def __str__(self) -> str:
        return ", ".join(f"{name} {cell}" for name, cell in zip(self.COLUMNS, self.cells()))


def touch(modules: tuple[nn.Module, ...]) -> int:
    """Read every tensor, so that memory-mapping postpones nothing; returns their bytes."""
    tensors = [tensor for module in modules for tensor in module.state_dict().values()]
    for tensor in tensors:
        tensor.sum()
    return sum(tensor.nbytes for tensor in tensors)


def parts(path: Path, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, ...]:
    """Our loading, as the modules that diffusers' loading gives."""
    sd = load(path, dtype=dtype)
    return sd.unet, sd.vae, sd.text_encoder


def seconds(path: Path, read: Callable[[Path], tuple[nn.Module, ...]]) -> tuple[float, float]:
    """Median seconds of our loading and of read, in turn, every tensor touched."""
    times: dict[Callable, list[float]] = {parts: [], read: []}
    for run in range(RUNS + 1):
        for loader in times:
            start = time.perf_counter()
            touch(loader(path))
            if run > 0:
                times[loader].append(time.perf_counter() - start)
    return statistics.median(times[parts]), statistics.median(times[read])


def anonymous() -> int:
    """Bytes of this process that no file backs (Linux)."""
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon:"))


def peak(path: Path, dtype: torch.dtype) -> tuple[int, float]:
    """(bytes of the weights, peak of anonymous memory above the start over them).

    A fresh process runs this.
    """
    touch((nn.Linear(8, 8, dtype=dtype),))      # torch's own first allocations are not the loader's
    start, highest, done = anonymous(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.is_set():
            highest = max(highest, anonymous())
            time.sleep(0.002)

    watcher = threading.Thread(target=watch)
    watcher.start()
    modules = parts(path, dtype)
    size = touch(modules)
    done.set()
    watcher.join()
    return size, (max(highest, anonymous()) - start) / size


def measure(path: Path, read: Callable[[Path], tuple[nn.Module, ...]]) -> Loading:
    """Time in this process, memory in fresh ones."""
    ours, theirs = seconds(path, read)
    peaks, sizes = {}, {}
    for dtype in (torch.float32, torch.float16):
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            sizes[dtype], peaks[dtype] = pool.apply(peak, (path, dtype))
    return Loading(sizes[torch.float32], ours, theirs, peaks)
