"""What a piece of pretraining leaves for the next one: weights, moments, averages and the step.

Which pictures, timesteps and noise a step sees follows from (seed, step) alone, so the step is the
data cursor and the state of every random generator.
"""

import csv
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from anomaly.files.atomic_files import replacing

DECAY = 0.4        # the rate falls to 0 over this last share of the steps
WARM_UP = 200       # steps


def half_precision(device: str) -> torch.autocast:
    """bfloat16 where it pays: CUDA and CPUs with AVX-512; others emulate it, 20 times slower."""
    pays = device == "cuda" or torch.backends.cpu.get_cpu_capability() == "AVX512"
    return torch.autocast(device, torch.bfloat16, enabled=pays)


def rate(step: int, steps: int) -> float:
    """Factor on the learning rate: a rise, a plateau, half a cosine down."""
    fall = max(0.0, (step - (1 - DECAY) * steps) / (DECAY * steps))
    return min(1.0, (step + 1) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * min(fall, 1.0)))


class Stage:
    """Modules in training, an optimizer and averaged weights, in one file of the state folder."""

    def __init__(self, path: Path, modules: dict[str, nn.Module], base_rate: float, average: float):
        self.path, self.modules = path, nn.ModuleDict(modules)
        self.base_rate, self.average = base_rate, average
        self.optimizer = torch.optim.AdamW(self.modules.parameters(), lr=base_rate,
                                           betas=(0.9, 0.98), weight_decay=1e-4, fused=True)
        self.averages = {k: v.detach().clone() for k, v in self.modules.state_dict().items()}
        self.step = 0
        if path.exists():
            device = next(self.modules.parameters()).device
            found = torch.load(path, weights_only=True, map_location=device)
            self.modules.load_state_dict(found["modules"])
            self.optimizer.load_state_dict(found["optimizer"])
            self.averages, self.step = found["averages"], found["step"]

    def save(self) -> None:
        """Write the file, whole or not at all."""
        with replacing(self.path) as temporary:
            torch.save({"modules": self.modules.state_dict(),
                        "optimizer": self.optimizer.state_dict(),
                        "averages": self.averages, "step": self.step}, temporary)

    def update(self, loss: torch.Tensor, steps: int) -> None:
        """One step of the optimizer and of the averages."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.base_rate * rate(self.step, steps)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.modules.parameters(), 1.0)
        self.optimizer.step()
        self.step += 1
        share = min(self.average, (1 + self.step) / (20 + self.step))
        averages, weights = self.averages.values(), self.modules.state_dict().values()
        torch._foreach_lerp_(list(averages), list(weights), 1 - share)

    def use_averages(self) -> None:
        """Put the averaged weights into the modules: to look at and to ship, not to go on with."""
        self.modules.load_state_dict(self.averages)


def pieces(stage: Stage, steps: int, until: float, log: Path, name: str,
           every: int = 100) -> Iterator[list[float]]:
    """Steps until `steps` are done or the clock passes `until`; the caller appends their losses.

    Their mean over `every` steps goes to the log, and the state to its file, every ten such lines.
    """
    start, first = time.monotonic(), stage.step
    losses: list[float] = []
    while stage.step < steps and time.time() < until:
        yield losses
        if stage.step % every == 0:
            seconds, loss = time.monotonic() - start, sum(losses) / len(losses)
            with open(log, "a", newline="") as file:
                csv.writer(file).writerow([name, stage.step, f"{loss:.5f}", f"{seconds:.0f}"])
            print(f"{name} {stage.step}/{steps}: loss {loss:.4f}, "
                  f"{(stage.step - first) / seconds:.2f} steps/s", flush=True)
            losses.clear()
            if stage.step % (10 * every) == 0:
                stage.save()
    stage.save()
