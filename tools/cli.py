"""What every tool says and reads: options, one-line errors, exit codes, the device."""

import argparse
import errno
import io
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import torch
from tqdm import tqdm

from anomaly import __version__
from anomaly.files.names import shown
from anomaly.progress import Stopped


class Parser(argparse.ArgumentParser):
    """argparse, but a mistake is one line on stderr, without the usage, and exit 2.

    examples end the help.
    """

    def __init__(self, prog: str, description: str, examples: str,
                 arguments: str = "[options]"):
        super().__init__(prog=prog, description=description, epilog=examples, allow_abbrev=False,
                         usage=f"python tools/{prog} {arguments}",
                         formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(
                             prog, max_help_position=26, width=100))
        self.add_argument("--version", action="version", version=f"few-shot-defects {__version__}",
                          help="show the version and exit")

    def error(self, message: str) -> NoReturn:
        message = message.replace("unrecognized arguments:", "unknown option")
        self.exit(2, f"{self.prog}: {message}; see {self.prog} --help\n")


def add_machine_options(parser: Parser) -> None:
    """The group of options that say on what to compute."""
    group = parser.add_argument_group("where to compute")
    group.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto",
                       help="auto (default): cuda if there is one, else cpu")
    group.add_argument("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto",
                       help="of the frozen model; auto (default): fp16 on cuda; on a cpu bf16 if "
                            "it has instructions for that, else fp32")


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


def auto_or(number: Callable[[str], float]) -> Callable[[str], float | None]:
    """An argparse type: the word auto (None), or what number takes."""
    def read(text: str) -> float | None:
        if text == "auto":
            return None
        try:
            return number(text)
        except argparse.ArgumentTypeError as err:
            raise argparse.ArgumentTypeError(f"{err} or auto") from None
    return read


def path_or(*words: str) -> Callable[[str], str | Path]:
    """An argparse type: one of the words itself, or a path (./word, for one of that name)."""
    return lambda text: text if text in words else path(text)


def path(text: str) -> Path:
    """An argparse type: a path; "" is none, and would mean the current folder."""
    if not text:
        raise argparse.ArgumentTypeError("found '', expected a path")
    return Path(text)


def _variable(name: str, low: int = 0) -> int:
    """A whole number from the environment; ValueError that names it otherwise."""
    try:
        return at_least(low)(os.environ[name])
    except argparse.ArgumentTypeError as err:
        raise ValueError(f"{name}: {err}, as torchrun and srun set it; unset it") from None


def workers() -> tuple[int, int]:
    """(i, n): this process among the n that torchrun or srun has started; alone it is (0, 1).

    A batch script has Slurm's numbers of tasks, too, but is one process: it is in no step.
    """
    alone = "SLURM_JOB_ID" in os.environ and "SLURM_STEP_ID" not in os.environ
    tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in os.environ else "SLURM_NTASKS"
    for rank, count in (("RANK", "WORLD_SIZE"), *([] if alone else [("SLURM_PROCID", tasks)])):
        if rank in os.environ and count in os.environ:
            i, n = _variable(rank), _variable(count, 1)
            if i >= n:
                raise ValueError(f"{rank}: found {i}, expected less than {count}, which is {n}")
            return i, n
    return 0, 1


def choose_device(name: str) -> str:
    """auto, cpu or cuda -> the device; ValueError if cuda is asked for and there is none.

    Of several GPUs each process of a machine takes its own, in turn.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no CUDA device was found; use --device cpu or auto")
    if name == "cpu" or not torch.cuda.is_available():
        return "cpu"
    local = next((n for n in ("LOCAL_RANK", "SLURM_LOCALID") if n in os.environ), None)
    return "cuda" if local is None else f"cuda:{_variable(local) % torch.cuda.device_count()}"


DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def native_bf16() -> bool:
    """True if this CPU multiplies bfloat16 itself; without, bfloat16 is slower than float32."""
    # torch has had this since 2026; before, a CPU gets float32.
    able = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def choose_dtype(name: str, device: str) -> str:
    """auto, fp32, bf16 or fp16 -> that of the frozen weights; auto: what is fast on the device.

    Raises ValueError for fp16 on a CPU: it is slower than float32 there and lacks some kernels.
    """
    if name == "fp16" and device == "cpu":
        raise ValueError("--dtype fp16: found a CPU, expected CUDA; use --dtype fp32 or bf16")
    if name == "auto":
        return "fp16" if device != "cpu" else "bf16" if native_bf16() else "fp32"
    return name


def one_line(text: str) -> str:
    r"""The text with what would break a line, and what no encoding has, as escapes such as \x0a."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode()
                   for c in shown(text))


class Remarks(logging.Handler):
    """A line on stderr for each remark of the packages, beside the bar."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(one_line(record.getMessage()), file=sys.stderr)


MEMORY = "not enough memory; give a smaller --batch-size, --size or --resolution"
GOES_ON = "what is written is whole, the same command goes on from there"
_terminated, _interrupted = threading.Event(), threading.Event()


def _resume(name: str) -> str:
    resume = "train_embed" in name and "--add" not in sys.argv
    return " (with --resume, once it has learned something)" if resume else ""


def terminated() -> bool:
    """An anomaly.progress.Stop: True once SIGTERM has come, as schedulers send it before a kill."""
    return _terminated.is_set()


def _interrupt(*_: object) -> None:
    """The first Ctrl-C ends in order, the second at once: what is written is whole at any time."""
    if _interrupted.is_set():
        os.write(2, b"interrupted twice; what is written is whole\n")
        os._exit(130)
    _interrupted.set()
    raise KeyboardInterrupt


def _at_fault(err: Exception) -> bool:
    """True if the input is at fault, not the machine."""
    return isinstance(err, (FileNotFoundError, NotADirectoryError, IsADirectoryError,
                            FileExistsError, PermissionError, ValueError)) \
        or isinstance(err, OSError) and err.errno == errno.EROFS


def run_tool(name: str, main: Callable[[], None]) -> int:
    """Exit code of a tool: 0, 2 if the input is at fault, 1 for the rest.

    130 if interrupted; 143 if terminated, which ends the block or step first.
    """
    if isinstance(sys.stdout, io.TextIOWrapper):    # names may be bytes that no encoding has
        utf8 = sys.stdout.encoding.lower() == "utf-8"
        sys.stdout.reconfigure(errors="surrogateescape" if utf8 else "backslashreplace")
    for package in map(logging.getLogger, ("ldm", "weights", "anomaly")):
        package.setLevel(logging.INFO)
        package.handlers, package.propagate = [Remarks()], False
    _terminated.clear(), _interrupted.clear()
    before = {signal.SIGTERM: signal.signal(signal.SIGTERM, lambda *_: _terminated.set())}
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:   # as a shell has it for "command &"
        before[signal.SIGINT] = signal.signal(signal.SIGINT, _interrupt)
    try:
        main()
    except Stopped:
        print(f"{name}: terminated; {GOES_ON}{_resume(name)}", file=sys.stderr)
        return 143
    except KeyboardInterrupt:
        print(f"{name}: interrupted; {GOES_ON}{_resume(name)}", file=sys.stderr)
        return 130
    except MemoryError:
        print(f"{name}: {MEMORY}", file=sys.stderr)
        return 1
    except (RuntimeError, ValueError, OSError) as err:
        if _at_fault(err):
            if isinstance(err, OSError) and err.filename is not None:       # the system's own words
                err = ValueError(f"{err.filename}: {str(err.strerror).lower()}; check the path, "
                                 f"and that it may be read, or written to if it is the --out")
            print(one_line(f"{name}: {err}"), file=sys.stderr)
            return 2
        if isinstance(err, torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(err):
            err = RuntimeError(MEMORY)
        full = isinstance(err, OSError) and err.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "; make room on the disk, or give another --out" if full else ""
        print(f"{name}: {' '.join(str(err).split())}{remedy}", file=sys.stderr)
        return 1
    finally:
        for sign, handler in before.items():
            signal.signal(sign, handler)
    return 0


def say(path: Path) -> None:
    """A path on stdout, beside the bar; whoever closes stdout is not told, the work goes on."""
    try:
        with tqdm.external_write_mode(file=sys.stdout):
            print(path, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")
