"""Benchmarks whose tables the README shows. They need the extra `test`.

    python tools/bench.py parity      every part against diffusers and transformers at full size; loading
    python tools/bench.py checkpoint  what the embedded checkpoint can do
    python tools/bench.py method      which parts of the method help; the same line goes on where it was
    python tools/bench.py details     other seeds, samplers, composites; what a detector learns of pairs; goes on
    python tools/bench.py convergence how soon textual inversion gets where it gets; goes on, too
"""

import argparse
import sys
from importlib import import_module
from pathlib import Path

from anomaly.output.console import Parser, run_tool


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Which benchmark."""
    parser = Parser("bench.py", "Measure, and print the tables of the README.")
    parser.add_argument("benchmark", choices=["parity", "checkpoint", "method", "details", "convergence"],
                        help="parity: every part of Stable Diffusion against diffusers and transformers, 16 GiB of "
                        "memory, 20 GB of disk; checkpoint: what the embedded one can do; method: which parts of the "
                        "method help; details: other seeds, samplers and composites, what a detector learns of pairs; "
                        "convergence: how soon textual inversion gets where it gets")
    parser.add_argument("--quick", action="store_true", help="method: on few scenes, three photographs a "
                        "defect learned for 10 steps each: to see that it runs")
    parser.add_argument("--out", type=Path, help="method, details, convergence: the folder that keeps the rows "
                        "(default: runs/method, with --quick runs/quick)")
    args = parser.parse_args(argv)
    if args.quick and args.benchmark != "method":
        parser.error(f"--quick belongs to method, not {args.benchmark}")
    if args.out and args.benchmark not in ("method", "details", "convergence"):
        parser.error(f"--out belongs to method, details and convergence, not {args.benchmark}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark; its tables go to stdout."""
    args = parse_args(argv)
    benchmark = import_module(f"benchmarks.{args.benchmark}")   # not above: its packages are needed by no other tool
    folder = args.out or Path("runs/quick" if args.quick else "runs/method")
    if args.benchmark == "method":
        benchmark.main(folder, args.quick)
    elif args.benchmark in ("details", "convergence"):
        benchmark.main(folder)
    else:
        benchmark.main()


if __name__ == "__main__":
    sys.exit(run_tool("bench.py", main))
