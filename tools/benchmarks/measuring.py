"""What runs in turn, a call of each at a time, and its median; memory; models of random weights."""

import ctypes
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from ldm.config import ScheduleConfig, TextConfig, UNetConfig, VAEConfig
from ldm.model import StableDiffusion
from ldm.schedule import Schedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.vae import VAE
from weights.tokenizers import published_tokenizer

Part = TypeVar("Part", bound=nn.Module)
Row = dict[str, str]


@dataclass(frozen=True)
class Sizes:
    """Models, and pixels a side with batches."""

    matrix: int                                         # side of the product that is the ceiling
    repeats: int                                        # at least, and for so many seconds
    seconds: float
    dtypes: tuple[torch.dtype, ...]
    unet: tuple[tuple[int, int], ...]                   # pixels, batch
    pairs: tuple[tuple[int, int, int, float], ...]      # pixels, batch, steps, guidance
    training: tuple[tuple[int, int], ...]               # pixels, batch
    training_steps: int                                 # timed together
    compiled: tuple[int, int] = (256, 1)                # pixels, batch
    models: tuple[UNetConfig, TextConfig, VAEConfig] = UNetConfig(), TextConfig(), VAEConfig()
    train: tuple[str, ...] = ()                         # options of the demo's two commands
    sample: tuple[str, ...] = ()


@dataclass(frozen=True)
class Bench:
    """Where it runs, and what."""

    device: str
    sizes: Sizes

    def noise(self, *shape: int) -> Tensor:
        """Of a normal distribution, the same every time."""
        return torch.randn(shape, generator=torch.Generator().manual_seed(1)).to(self.device)

    def made(self, kind: Callable[..., Part], config: object, dtype: torch.dtype) -> Part:
        """A part with random weights, the same ones in every dtype."""
        torch.manual_seed(0)
        with torch.device(self.device):
            model = kind(config).to(dtype).eval().requires_grad_(False)
        if self.device == "cpu" and kind is VAE:        # as weights.load has it
            model.to(memory_format=torch.channels_last)
        return model

    def model(self, dtype: torch.dtype) -> StableDiffusion:
        """A whole one."""
        unet, text, vae = self.sizes.models
        return StableDiffusion(
            published_tokenizer(text), self.made(TextEncoder, text, dtype),
            self.made(UNet, unet, dtype), self.made(VAE, vae, dtype), Schedule(ScheduleConfig()))

    def wait(self) -> None:
        """Until all that was asked for is done."""
        if self.device == "cuda":
            torch.cuda.synchronize()

    def seconds(self, **works: Callable[[], object]) -> dict[str, float]:
        """The median of each, after a call of each that warms up."""
        times: dict[str, list[float]] = {name: [] for name in works}
        begin, turn = time.perf_counter(), 0
        while turn <= self.sizes.repeats or time.perf_counter() - begin < self.sizes.seconds:
            for name, work in works.items():
                self.wait()
                start = time.perf_counter()
                work()
                self.wait()
                times[name].append(time.perf_counter() - start)
            turn += 1
        return {name: statistics.median(found[1:]) for name, found in times.items()}

    def peak(self, sd: StableDiffusion, work: Callable[[], object]) -> str:
        """GiB at most while it works: of the GPU; on a CPU the weights, and what comes above."""
        if self.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            work()
            return f"{torch.cuda.max_memory_allocated() / 2 ** 30:.2f}"
        weights = sum(p.nbytes for part in (sd.unet, sd.vae, sd.text_encoder)
                      for p in part.parameters())
        ctypes.CDLL(None).malloc_trim(0)        # what was freed counts as free
        before = memory("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")       # VmHWM begins anew
        work()
        return f"{(weights + memory('VmHWM') - before) / 2 ** 30:.2f}"

    def matrix(self, dtype: torch.dtype) -> tuple[Callable[[], Tensor], float]:
        """A large matrix product, whose rate is the ceiling, and its operations."""
        a = self.noise(self.sizes.matrix, self.sizes.matrix).to(dtype)
        return lambda: a @ a, 2 * self.sizes.matrix ** 3


def largest(found: Tensor, expected: Tensor) -> float:
    """Largest difference over largest value."""
    return float((found - expected).abs().max() / expected.abs().max())


def memory(what: str) -> int:
    """Bytes of this process, of a line of Linux's /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{what}:")) * 1024


def short(dtype: torch.dtype) -> str:
    """float32, bfloat16, float16."""
    return str(dtype).removeprefix("torch.")


def named(dtype: torch.dtype, pixels: int, batch: int) -> Row:
    """The columns that a row begins with."""
    return {"dtype": short(dtype), "px": str(pixels), "batch": str(batch)}


def markdown(rows: list[Row]) -> str:
    """A table, of the columns that say something."""
    names = dict.fromkeys(name for row in rows for name, value in row.items() if value)
    lines = [[*names], ["---"] * len(names), *([row.get(name, "") for name in names]
                                               for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"
