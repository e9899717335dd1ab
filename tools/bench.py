"""Benchmarks whose tables docs/results.md shows. They need the extra `test`."""

import argparse
import sys
from importlib import import_module

from cli import Parser, run_tool

EXAMPLES = """\
examples:
  python tools/bench.py parity
  python tools/bench.py scale
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """Which benchmark."""
    parser = Parser("bench.py", "Measure, and print tables of docs/results.md.", EXAMPLES,
                    "parity | scale")
    parser.add_argument(
        "benchmark", choices=["parity", "scale"],
        help="parity: every part of Stable Diffusion against diffusers and transformers at full "
             "size, and loading; 16 GiB of memory, 20 GB of disk, 34 minutes. scale: memory, speed "
             "and start-up of a thousand pairs a defect, without the U-Net; 5 minutes")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Run the benchmark; its tables go to stdout."""
    args = parse_args(argv)
    # Imported here because no other tool needs its packages.
    import_module(f"benchmarks.{args.benchmark}").main()


if __name__ == "__main__":
    sys.exit(run_tool("bench.py", main))
