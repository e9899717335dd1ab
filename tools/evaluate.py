"""Judge pairs by what a run has learned of its photographs.

The story is pairs.quality.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from display import Display

import cli
from anomaly.files.atomic_files import write_rows
from anomaly.pairs.quality import JUDGED, judged_folder
from anomaly.runs.run_folder import check_weights, read_run
from weights import load

EXAMPLES = """\
examples:
  python tools/evaluate.py quality --run runs/demo --pairs generated
  python tools/evaluate.py quality --run runs/screw --pairs pairs --csv quality.csv
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """What to judge, and by what."""
    parser = cli.Parser("evaluate.py", "Judge pairs by the gate of a run: a row a pair, and the "
                        "share that passes.", EXAMPLES, "quality [options]")
    parser.add_argument("what", choices=["quality"],
                        help="quality: are pairs like the photographs?")
    group = parser.add_argument_group("what to judge").add_argument
    group("--run", type=cli.path, default=Path("runs/demo"), metavar="DIR",
          help="the folder that train_embed.py wrote (default: runs/demo)")
    group("--pairs", type=cli.path, default=Path("generated"), metavar="DIR",
          help="pairs in MVTec AD layout (default: generated)")
    group("--csv", type=cli.path, metavar="FILE", help="write the rows to a new file")
    cli.add_machine_options(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    """Parse, load, judge, print what share of each defect passes."""
    args = parse_args(argv)
    if args.csv is not None and not args.csv.parent.is_dir():
        raise FileNotFoundError(f"{args.csv}: no such folder; give a --csv in one that is there")
    if args.csv is not None and args.csv.exists():
        raise FileExistsError(f"{args.csv}: is there already, and is never overwritten; give a new "
                              f"--csv")
    device = cli.choose_device(args.device)
    run = read_run(args.run)
    with Display() as report:
        weights = run.config["options"]["weights"]
        sd = load(weights, device, cli.DTYPES[cli.choose_dtype(args.dtype, device)],
                  run.config["prediction_type"])
        check_weights(run, sd.source, sd.fingerprint())
        rows = list(judged_folder(sd, run, args.pairs, report))
    if args.csv is not None:
        write_rows(args.csv, JUDGED, rows)
    made = Counter(f"{row['object']}/{row['defect']}" for row in rows)
    passed = Counter(f"{row['object']}/{row['defect']}" for row in rows if row["verdict"] == "pass")
    for key, count in made.items():
        print(f"{key}: {passed[key]} of {count} pass ({passed[key] / count:.0%})")


if __name__ == "__main__":
    sys.exit(cli.run_tool("evaluate.py", main))
