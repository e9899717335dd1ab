"""Learn defects from photographs with masks: writes a run folder for sample.py.

The story is runs.learn.
"""

import argparse
import sys
from dataclasses import replace
from pathlib import Path

import cli
from anomaly.dataset import Defect, find_defects, first_third, pair_folders, select
from anomaly.drawn.demo import demo_data
from anomaly.files.holding import held
from anomaly.files.names import text_of, whole
from anomaly.progress import Report
from anomaly.runs.learn import BATCH_SIZE, SD_STEPS, SMALL_STEPS, learn
from anomaly.runs.run_folder import check_out, read_run
from weights import TINY, load

DEMO = "demo"   # the word for the drawn photographs
EXAMPLES = """\
examples:
  python tools/train_embed.py
  python tools/train_embed.py --weights v1-5-pruned-emaonly.safetensors --images photos \\
      --masks masks --name screw/scratch --out runs/screw
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The options, in groups: what to learn, how, and where."""
    parser = cli.Parser("train_embed.py", "Learn defects from photographs with masks. "
                    "Without options: the demo.", EXAMPLES)
    what = parser.add_argument_group("what to learn").add_argument
    what("--data", type=cli.path_or(DEMO), metavar="DIR",
         help="data set in MVTec AD layout: one category, or a folder of them; "
              f"{DEMO} (default): drawn photographs")
    what("--images", type=cli.path, metavar="DIR",
         help="folder of defect photographs, instead of --data")
    what("--masks", type=cli.path, metavar="DIR",
         help="folder of their masks, of the same names; may be the same folder")
    what("--name", metavar="OBJ/DEFECT", help="what --images shows, such as screw/scratch")
    what("--split", choices=["third", "all"],
         help="third: learn from the first third of each defect by name (default with --data); "
              "all: from every photograph (default with --images)")
    what("--only", metavar="O/D,...", help="learn these defects only (default: all of the data)")
    what("--no-masks", action="store_true",
         help="learn no masks: sample.py then needs --masks train or a path")
    how = parser.add_argument_group("how").add_argument
    how("--weights", type=cli.path_or(TINY), default=TINY, metavar="PATH",
        help="Stable Diffusion 1.x or 2.x: a diffusers folder or the original .safetensors file; "
             f"{TINY} (default): the embedded checkpoint")
    how("--prediction-type", choices=["auto", "eps", "v"], default="auto",
        help="what the model predicts; auto (default): as its files say")
    how("--steps", type=cli.auto_or(cli.at_least(1)), metavar="N",
        help=f"training steps a defect; auto (default): {SD_STEPS} for Stable Diffusion, "
             f"{SMALL_STEPS} for smaller models, with --resume the run's own")
    how("--batch-size", type=cli.at_least(1), default=BATCH_SIZE, metavar="N",
        help=f"views of the photographs a step (default: {BATCH_SIZE})")
    how("--size", type=cli.at_least(1), metavar="PX",
        help="side of the square crop that the model sees, in pixels "
             "(default: the side the model was trained on; a multiple of 64 for SD)")
    how("--no-flip", action="store_true",
        help="never mirror: for parts whose orientation matters")
    how("--seed", type=cli.at_least(0), default=0, metavar="N",
        help="of everything random (default: 0)")
    where = parser.add_argument_group("where to write").add_argument
    where("--out", type=cli.path, default=Path("runs/demo"), metavar="DIR",
          help="the run's folder (default: runs/demo)")
    where("--resume", action="store_true",
          help="go on with the run in --out, with its options; a larger --steps extends it")
    cli.add_machine_options(parser)
    args = parser.parse_args(argv)
    if args.resume:     # what is not given is as the run has it
        parser.set_defaults(**recorded(args.out))
        args = parser.parse_args(argv)
    if args.data is not None and args.images is not None:
        parser.error("give either --data, or --images with --masks and --name")
    if args.images is not None and (args.masks is None or args.name is None):
        parser.error("--images needs --masks (the folder of masks) and --name OBJECT/DEFECT")
    if args.images is None and (args.masks is not None or args.name is not None):
        parser.error("--masks and --name belong to --images; --data has them in its folders")
    if args.images is None and args.data is None:
        args.data = DEMO
    return args


def recorded(out: Path) -> dict[str, object]:
    """The options of the run in a folder, as parse_args gives them."""
    options = read_run(out).config["options"]
    paths = {name: Path(options[name]) for name in ("images", "masks") if options.get(name)}
    data = options.get("data")
    return {**options, **paths, "steps": None, "data": data if data in (None, DEMO) else Path(data)}


def drawn(out: Path, report: Report) -> Path:
    """The demo's photographs, in the folder of the run."""
    if not (out / DEMO).exists():
        with held(out):
            demo_data(out / DEMO, report)
    return out / DEMO


def select_defects(args: argparse.Namespace, report: Report) -> list[Defect]:
    """The defects to learn, with the photographs to learn them from."""
    if args.data is not None:
        defects = find_defects(drawn(args.out, report) if args.data == DEMO else args.data)
    else:
        names = args.name.split("/")
        if len(names) != 2 or not all(names):
            raise ValueError(f"--name: found {args.name!r}, "
                             f"expected OBJECT/DEFECT, such as screw/scratch")
        defects = [Defect(*map(text_of, names), pair_folders(args.images, args.masks))]
    defects = select(defects, args.only)
    split = args.split or ("third" if args.data is not None else "all")
    if split == "all":
        return defects
    return [replace(defect, examples=first_third(defect)[0]) for defect in defects]


def record(args: argparse.Namespace) -> dict[str, object]:
    """The options that a run remembers beside those of learn, paths whole."""
    names = ("prediction_type", "data", "images", "masks", "name", "split", "only", "dtype")
    options = {name: getattr(args, name) for name in names}
    return {name: str(whole(value)) if isinstance(value, Path) else value
            for name, value in options.items()}


def main(argv: list[str] | None = None) -> None:
    """Parse, load, learn, say where the preview is."""
    args = parse_args(argv)
    device = cli.choose_device(args.device)
    args.dtype = cli.choose_dtype(args.dtype, device)   # what is recorded: auto varies by machine
    check_out(args.out, args.resume)
    with cli.Display() as report:
        defects = select_defects(args, report)
        report(f"loading {args.weights}", 0, 1)
        sd = load(args.weights, device, cli.DTYPES[args.dtype], args.prediction_type)
        report(f"loading {args.weights}", 1, 1)
        print(*sd.remarks, sep="\n", file=sys.stderr)
        run = learn(sd, defects, args.out,
                    steps=args.steps, batch_size=args.batch_size, size=args.size,
                    flip=not args.no_flip, mask_model=not args.no_masks, seed=args.seed,
                    resume=args.resume, options=record(args), report=report)
    cli.say(run.preview)


if __name__ == "__main__":
    sys.exit(cli.run_tool("train_embed.py", main))
