"""Benchmarks whose tables docs/results.md shows. parity needs the extra `test`."""

import argparse
import sys
from importlib import import_module

import torch

from cli import Parser, run_tool

EXAMPLES = """\
examples:
  python tools/bench.py speed
  python tools/bench.py gpu
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Which benchmark."""
    parser = Parser("bench.py", "Measure, and print tables of docs/results.md.", EXAMPLES,
                    "parity | scale | speed | gpu [--device cpu]")
    parser.add_argument(
        "benchmark", choices=["parity", "scale", "speed", "gpu"],
        help="parity: every part of Stable Diffusion against diffusers and transformers at full "
             "size, and loading; 16 GiB of memory, 20 GB of disk, 34 minutes. scale: memory, speed "
             "and start-up of a thousand pairs a defect, without the U-Net; 5 minutes. speed: "
             "this CPU, against diffusers if it is installed; 16 GiB, 45 minutes. gpu: CUDA; "
             "writes gpu.json and gpu.md into the current folder after every row; 8 minutes")
    parser.add_argument("--device", choices=["cuda", "cpu"],
                        help="of gpu; cpu: a rehearsal at small sizes (default: cuda)")
    args = parser.parse_args(argv)
    if args.device is not None and args.benchmark != "gpu":
        parser.error(f"--device: belongs to gpu, not to {args.benchmark}; leave it out")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark; its tables go to stdout, those of gpu into files."""
    args = parse_args(argv)
    options = []
    if args.benchmark == "gpu":
        options = [args.device or "cuda"]
        if options == ["cuda"] and not torch.cuda.is_available():
            raise ValueError("gpu: found no CUDA device; run it on a machine that has one, or "
                             "measure this CPU: bench.py speed")
    # Imported here because no other tool needs its packages.
    import_module(f"benchmarks.{args.benchmark}").main(*options)


if __name__ == "__main__":
    sys.exit(run_tool("bench.py", main))
