"""Learn defects from photographs with masks: writes a run folder for sample.py.

The stories are runs.learn and, of --add, runs.adding.
"""

import argparse
import os
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from display import Display

import cli
from anomaly import processes
from anomaly.dataset import Defect, find_defects, first_third, pair_folders, select
from anomaly.drawn.demo import demo_data
from anomaly.files.holding import held
from anomaly.files.names import text_of
from anomaly.progress import each, silent
from anomaly.runs.adding import add
from anomaly.runs.learn import BATCH_SIZE, SD_STEPS, SMALL_STEPS, learn
from anomaly.runs.run_folder import check_out, read_run
from anomaly.training_files import portable
from weights import TINY, load

DEMO = "demo"   # the word for the drawn photographs
OF_THE_RUN = ("only", "no_masks", "prediction_type", "steps", "batch_size", "size", "no_flip",
              "seed", "dtype")
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
    what("--add", metavar="O/D,...",
         help="learn these, too, on the encoder of the finished run in --out, with its options")
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
        help=f"views of the photographs a step, of each process of torchrun "
             f"(default: {BATCH_SIZE})")
    how("--size", type=cli.at_least(1), metavar="PX",
        help="side of the square crop that the model sees, in pixels "
             "(default: the side the model was trained on; a multiple of 64 for SD)")
    how("--checkpointing", action="store_true",
        help="keep less for the backward pass and compute it again: less memory, slower steps; "
             "no run remembers it, give it again with --resume")
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
    if args.resume or args.add is not None:     # what is not given is as the run has it
        was = recorded(args.out)
        if args.add is not None and (args.images or args.data):     # in the place of the run's
            was.update(data=None, images=None, masks=None, name=None)
        parser.set_defaults(**was)
        args = parser.parse_args(argv)
        changed = [name for name in OF_THE_RUN if getattr(args, name) != was.get(name)]
        if args.add is not None and (args.resume or changed):
            parser.error(f"--{(changed or ['resume'])[0].replace('_', '-')}: not with --add, which "
                         f"learns as the run in --out did; leave it out")
    if args.data is not None and args.images is not None:
        parser.error("give either --data, or --images with --masks and --name")
    if args.images is not None and (args.masks is None or args.name is None):
        parser.error("--images needs --masks (the folder of masks) and --name OBJECT/DEFECT")
    if args.images is None and (args.masks is not None or args.name is not None):
        parser.error("--masks and --name belong to --images; --data has them in its folders")
    if args.images is None and args.data is None:
        if args.add is not None:
            parser.error("--add: the run does not say what it was learned from; give --data")
        args.data = DEMO
    return args


def recorded(out: Path) -> dict[str, Any]:
    """The options of the run in a folder, as parse_args gives them."""
    options = read_run(out).config["options"]
    paths = {name: out / options[name] for name in ("data", "images", "masks")
             if options.get(name) not in (None, DEMO)}
    together, n = processes.batch_of(options), team()     # the same batch, however many share it
    return {**options, **paths, "steps": None,
            "batch_size": options["batch_size"] if together % n else together // n}


def team() -> int:
    """How many processes torchrun has started to learn one run together; srun starts others."""
    return cli.workers()[1] if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ) else 1


def select_defects(args: argparse.Namespace) -> list[Defect]:
    """The defects to learn, with the photographs to learn them from."""
    if args.data is not None:
        defects = find_defects(args.out / DEMO if args.data == DEMO else args.data)
    else:
        names = args.name.split("/")
        if len(names) != 2 or not all(names):
            raise ValueError(f"--name: found {args.name!r}, "
                             f"expected OBJECT/DEFECT, such as screw/scratch")
        defects = [Defect(*map(text_of, names), pair_folders(args.images, args.masks))]
    defects = select(defects, args.only) if args.add is None else select(defects, args.add, "--add")
    if (args.split or ("third" if args.data is not None else "all")) == "third":
        defects = [replace(defect, examples=first_third(defect)[0]) for defect in defects]
    known = read_run(args.out).defects if args.resume else []
    return defects + [d for d in known if d.key in getattr(args, "added", ())]


def record(args: argparse.Namespace) -> dict[str, object]:
    """The options that a run remembers beside those of learn, paths as in its config.json."""
    names = ("prediction_type", "data", "images", "masks", "name", "split", "only", "dtype")
    return {name: portable(args.out, value) if isinstance(value := getattr(args, name), Path)
            else value for name in names}


def main(argv: list[str] | None = None) -> None:
    """Parse, load, learn, say where the preview is; of several processes only the first says it."""
    args = parse_args(argv)
    device = cli.choose_device(args.device)
    args.dtype = cli.choose_dtype(args.dtype, device)   # what is recorded: auto varies by machine
    with (processes.together(device) if team() > 1 else nullcontext(),
          nullcontext(silent) if processes.rank() else Display() as report):
        first = processes.rank() == 0
        if first:
            check_out(args.out, args.resume or args.add is not None)
        if first and args.data == DEMO and not (args.out / DEMO).exists():
            with held(args.out):
                demo_data(args.out / DEMO, report)
        processes.anywhere(False)       # the demo is drawn
        defects = select_defects(args)
        for source in each([args.weights], f"loading {args.weights}", 1, report):
            sd = load(source, device, cli.DTYPES[args.dtype], args.prediction_type)
        if first:
            print(*sd.remarks, sep="\n", file=sys.stderr)
        if args.checkpointing:
            sd.unet.checkpoint_layers()
        if args.add is not None:
            run = add(sd, defects, args.out, report=report, stop=cli.terminated)
        else:
            run = learn(sd, defects, args.out,
                        steps=args.steps, batch_size=args.batch_size, size=args.size,
                        flip=not args.no_flip, mask_model=not args.no_masks, seed=args.seed,
                        resume=args.resume, options=record(args), report=report,
                        stop=cli.terminated)
    if first:
        cli.say(run.preview if args.add is None else run.folder / "previews")


if __name__ == "__main__":
    sys.exit(cli.run_tool("train_embed.py", main))
