"""Pairs as a data set that detectors are trained on.

The story is pairs.exporting.
"""

import argparse
import sys
from pathlib import Path

from display import Display

import cli
from anomaly.pairs.exporting import export

EXAMPLES = """\
examples:
  python tools/export.py --format yolo --out yolo
  python tools/export.py --pairs pairs --format coco --normals good_screws --out coco
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """What to export, how, and where to."""
    parser = cli.Parser("export.py", "Write pairs as a data set, with a card that says where it "
                        "comes from.", EXAMPLES)
    what = parser.add_argument_group("what to export").add_argument
    what("--pairs", type=cli.path, default=Path("generated"), metavar="DIR",
         help="the folder that sample.py wrote (default: generated)")
    what("--review", type=cli.path, metavar="FILE",
         help="review.csv: what it accepts or rejects goes before the gate's word")
    what("--all", action="store_true", help="doubtful pairs, too (default: those that passed)")
    what("--normals", type=cli.path, metavar="DIR",
         help="defect-free photographs that go with the pairs; of several objects a folder with "
              "OBJECT/train/good (default: none)")
    how = parser.add_argument_group("how").add_argument
    how("--format", choices=["mvtec", "yolo", "coco"], required=True,
        help="mvtec: folders of images and masks; yolo: outlines of the defects; coco: run "
             "lengths, exact to the pixel")
    how("--boxes", action="store_true", help="of yolo: boxes in the place of outlines")
    how("--split", type=share, default=0.8, metavar="S",
        help="share of the photographs for training, 0 to 1: pairs of one photograph lie on one "
             "side; of mvtec only --normals are split, all pairs are for testing (default: 0.8)")
    parser.add_argument_group("where to write").add_argument(
        "--out", type=cli.path, required=True, metavar="DIR",
        help="a new folder, or that of the same command, which goes on or adds what is new")
    args = parser.parse_args(argv)
    if args.boxes and args.format != "yolo":
        parser.error(f"--boxes belongs to --format yolo, not {args.format}")
    return args


def share(text: str) -> float:
    """An argparse type: a number between 0 and 1."""
    if (value := cli.positive(text)) >= 1:
        raise argparse.ArgumentTypeError(f"found {text}, expected less than 1, such as 0.8")
    return value


def main(argv: list[str] | None = None) -> None:
    """Parse, export, say where the card is."""
    args = parse_args(argv)
    with Display() as report:
        card = export(args.pairs, args.out, args.format, boxes=args.boxes, split=args.split,
                      everything=args.all, review=args.review, normals=args.normals,
                      stop=cli.terminated, report=report)
    cli.say(card)


if __name__ == "__main__":
    sys.exit(cli.run_tool("export.py", main))
