"""What both tools say and read: options with one-line errors, exit codes, the device, progress."""

import argparse
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NoReturn, TypeVar

import torch
from tqdm import tqdm

T = TypeVar("T")


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows the default of every option that has one."""

    def _get_help_string(self, action: argparse.Action) -> str:
        absent = action.default is None or action.default is False
        return action.help if absent else super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line on stderr and exit 2, not the whole usage."""

    def __init__(self, prog: str, description: str):
        super().__init__(prog=prog, description=description, allow_abbrev=False,
                         formatter_class=HelpFormatter)

    def error(self, message: str) -> NoReturn:
        message = message.replace("unrecognized arguments:", "unknown option")
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def at_least(low: int, most: int | None = None) -> Callable[[str], int]:
    """An argparse type: an integer from low to most."""
    def integer(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"found {text!r}, expected a whole number") from None
        if value < low or (most is not None and value > most):
            span = f"at least {low}" if most is None else f"{low} to {most}"
            raise argparse.ArgumentTypeError(f"found {value}, expected {span}")
        return value
    return integer


def positive(text: str) -> float:
    """An argparse type: a finite number above 0."""
    try:
        value = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"found {text!r}, expected a number") from None
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"found {text}, expected a number above 0")
    return value


def auto_or_positive(text: str) -> str | float:
    """An argparse type: the word auto, or a finite number above 0."""
    if text == "auto":
        return text
    try:
        return positive(text)
    except argparse.ArgumentTypeError as err:
        raise argparse.ArgumentTypeError(f"{err} or auto") from None


def path_or(word: str) -> Callable[[str], str | Path]:
    """An argparse type: the word itself, or a path (./word, for one of that name)."""
    return lambda text: text if text == word else Path(text)


def choose_device(name: str) -> str:
    """auto, cpu or cuda -> the device; ValueError if cuda is asked for and there is none."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device was found; use --device cpu or auto")
    return "cuda" if name == "auto" and torch.cuda.is_available() else "cpu" if name == "auto" else name


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def choose_dtype(name: str, device: str) -> str:
    """auto, fp32, bf16 or fp16 -> that of the frozen weights; auto is fp16 on CUDA, else fp32.

    Raises ValueError for fp16 on a CPU, where it is slower than float32 and some kernels are missing.
    """
    if name == "fp16" and device == "cpu":
        raise ValueError("--dtype fp16: found a CPU, expected CUDA; use --dtype fp32 or bf16")
    if name == "auto":
        return "fp32" if device == "cpu" else "fp16"
    return name


def run_tool(name: str, main: Callable[[], None]) -> int:
    """Exit code of a tool: 0, 2 if the input is at fault, 130 if interrupted, 1 for anything else."""
    try:
        main()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError, FileExistsError, PermissionError,
            ValueError) as err:
        print(f"{name}: {err}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"{name}: interrupted; what is written is whole, the same command goes on from there"
              f"{' with --resume' if name.startswith('train') else ''}", file=sys.stderr)
        return 130
    except (RuntimeError, OSError) as err:
        print(f"{name}: {' '.join(str(err).split())}", file=sys.stderr)
        return 1
    return 0


class Progress:
    """A bar on a terminal, else a line every few seconds, on stderr; a thread keeps it alive in long steps."""

    SECONDS = 5.0       # between lines when stderr is not a terminal

    def __init__(self, label: str, total: int, done: int = 0):
        self.label, self.total, self.done, self.note = label, total, done, ""
        self._bar = tqdm(desc=label, total=total, initial=done) if sys.stderr.isatty() else None
        self._stop, self._start = threading.Event(), time.monotonic()

    def __enter__(self) -> "Progress":
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()
        return self

    def _line(self) -> None:
        print(f"{self.label}: {self.done}/{self.total} {self.note} "
              f"({time.monotonic() - self._start:.0f} s)", file=sys.stderr, flush=True)

    def _beat(self) -> None:
        while not self._stop.wait(1.0 if self._bar else self.SECONDS):
            self._bar.refresh() if self._bar else self._line()

    def step(self, note: str = "") -> None:
        """One more done."""
        self.done, self.note = self.done + 1, note
        if self._bar:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()

    def each(self, items: Iterable[T]) -> Iterator[T]:
        """The items, counting each once it has been worked on."""
        for item in items:
            yield item
            self.step()

    def __exit__(self, error: type | None, *_) -> None:
        self._stop.set()
        self._thread.join()
        if self._bar:
            self._bar.close()
        elif error is None or self.done:        # what failed at once has its own line
            self._line()
