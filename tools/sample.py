"""Paint learned defects into defect-free photographs: image-mask pairs in MVTec AD layout.

The story is pairs.paint.
"""

import argparse
import hashlib
import sys
from functools import partial
from pathlib import Path

from display import Display

import cli
from anomaly import reweight
from anomaly.dataset import select
from anomaly.files.names import whole
from anomaly.painter import Weigh
from anomaly.pairs.foreground import anywhere, objects_found, part_masks
from anomaly.pairs.manifest import Shard
from anomaly.pairs.masks import learned_masks, mask_files, training_masks
from anomaly.pairs.paint import BATCH_SIZE, PAIRS, TRIES, paint
from anomaly.pairs.pair_folder import PairFolder
from anomaly.runs.run_folder import Run, load_module, read_run
from anomaly.sampler import STEPS
from weights import TINY, load

WEIGH = {"adaptive": reweight.adaptive, "paper": reweight.paper, "released": reweight.released,
         "constant": reweight.constant, "off": None}
WITH_GAIN = ("adaptive", "constant")
MASKS = {"learned": learned_masks, "train": training_masks}
FOREGROUND = {"auto": objects_found, "none": anywhere}
EXAMPLES = """\
examples:
  python tools/sample.py
  python tools/sample.py --run runs/screw --normals good_screws --masks train --n 100 --out pairs
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The options, in groups: what to paint, how, and where."""
    parser = cli.Parser("sample.py", "Paint learned defects into defect-free photographs. "
                    "Without options: the demo.", EXAMPLES)
    what = parser.add_argument_group("what to paint").add_argument
    what("--run", type=cli.path, default=Path("runs/demo"), metavar="DIR",
         help="the folder that train_embed.py wrote (default: runs/demo)")
    what("--only", metavar="O/D,...", help="paint these defects only (default: all of the run)")
    what("--n", type=cli.at_least(1), metavar="N",
         help=f"pairs a defect (default: {PAIRS}, or 1 for one photograph and one mask)")
    what("--normals", type=cli.path, metavar="PATH",
         help="a defect-free photograph or a folder of them (default: train/good of the data)")
    what("--masks", type=cli.path_or(*MASKS), default="learned", metavar="KIND",
         help="learned (default): drawn by the mask model; train: the training masks, varied and "
              "moved; or the path of a mask file or folder, each for the photograph of its name, "
              "else for those of its size")
    what("--foreground", type=cli.path_or(*FOREGROUND), default="auto", metavar="KIND",
         help="where masks learned and train may lie; auto (default): on the object, if the "
              "photographs show one on a plain background; none: anywhere; or a folder of masks "
              "of the object, one of the name of each photograph")
    how = parser.add_argument_group("how").add_argument
    how("--steps", type=cli.at_least(1, 500), default=STEPS, metavar="N",
        help=f"DDIM steps (default: {STEPS})")
    how("--guidance", type=cli.auto_or(cli.positive), metavar="G",
        help="classifier-free guidance scale, 1 is none; auto (default): each defect as strong "
             "as in its photographs, found in training; 1 with --reweight")
    how("--strength", type=cli.positive, default=1.0, metavar="S",
        help="how strong the defects are, relative to their photographs (default: 1); sets "
             "the guidance")
    how("--negative", choices=["empty", "object"], default="empty",
        help="prompt to guide away from: empty (default), or the object's words; "
             "a scale of 1 uses none")
    how("--reweight", choices=list(WEIGH), default="off",
        help="attention re-weighting: adaptive: the paper's idea with gain, contrast and bound; "
             "paper: its formula as printed; released: the authors' code's; "
             "constant: the gain alone; off (default)")
    how("--reweight-gain", type=cli.positive, metavar="G",
        help=f"mean weight of --reweight adaptive or constant (default: {reweight.GAIN})")
    how("--gate", choices=["mark", "strict", "off"], default="mark",
        help="a pair unlike the photographs is drawn again, and the best try kept and called "
             "doubtful (mark, the default) or left out (strict); off: none is judged")
    how("--tries", type=cli.at_least(1, 100), default=TRIES, metavar="N",
        help=f"draws of a pair until the gate passes it (default: {TRIES})")
    how("--batch-size", type=cli.at_least(1), default=BATCH_SIZE, metavar="N",
        help=f"pairs painted together (default: {BATCH_SIZE})")
    how("--seed", type=cli.at_least(0), default=0, metavar="N",
        help="of everything random (default: 0)")
    how("--shard", type=shard, metavar="I/N",
        help="paint every N-th block of pairs, from the I-th of 0 to N-1; several processes fill "
             "one --out so (default: as torchrun or srun numbers its processes, else all)")
    where = parser.add_argument_group("where to write").add_argument
    where("--out", type=cli.path, default=Path("generated"), metavar="DIR",
          help="the folder of pairs; the same command goes on where it stopped "
               "(default: generated)")
    cli.add_machine_options(parser)
    args = parser.parse_args(argv)
    if args.strength != 1 and (args.reweight != "off" or args.guidance is not None):
        parser.error("--strength belongs to --guidance auto, without --reweight")
    if args.reweight_gain is not None and args.reweight not in WITH_GAIN:
        parser.error(f"--reweight-gain belongs to --reweight {' and '.join(WITH_GAIN)}, "
                     f"not {args.reweight}")
    if args.reweight_gain is None and args.reweight in WITH_GAIN:
        args.reweight_gain = reweight.GAIN
    return args


def shard(text: str) -> Shard:
    """An argparse type: I/N."""
    i, _, n = text.partition("/")
    if not (i.isdecimal() and n.isdecimal() and int(i) < int(n)):
        raise argparse.ArgumentTypeError(f"found {text!r}, expected I/N such as 0/2 and 1/2")
    return Shard(int(i), int(n))


def weigh_function(args: argparse.Namespace) -> Weigh | None:
    """The word of --reweight as a function of the difference and the mask."""
    function = WEIGH[args.reweight]
    return function if args.reweight_gain is None else partial(function, gain=args.reweight_gain)


def pair_options(args: argparse.Namespace, run: Run) -> dict[str, object]:
    """What every pair of an output folder shares."""
    load_module(run, "spatial_encoder")     # whole, and of the run's last training
    own_scale = "auto" if args.reweight == "off" else 1.0       # as paint resolves it
    encoder = (run.folder / "spatial_encoder.safetensors").read_bytes()
    return {"run": hashlib.sha256(encoder).hexdigest(),
            "masks": str(whole(args.masks)) if isinstance(args.masks, Path) else args.masks,
            "foreground": str(whole(args.foreground)) if isinstance(args.foreground, Path)
            else args.foreground,
            "normals": None if args.normals is None else str(whole(args.normals)),
            "steps": args.steps, "guidance": own_scale if args.guidance is None else args.guidance,
            "gate": args.gate, "tries": args.tries if args.gate != "off" else 1,
            "strength": args.strength, "negative": args.negative,
            "reweight": args.reweight, "reweight_gain": args.reweight_gain,
            "dtype": args.dtype, "seed": args.seed}


def main(argv: list[str] | None = None) -> None:
    """Parse, load, paint, say where each pair is, the contact sheet and the page to review."""
    args = parse_args(argv)
    device = cli.choose_device(args.device)
    args.dtype = cli.choose_dtype(args.dtype, device)   # what is recorded: auto varies by machine
    run = read_run(args.run)
    defects = select(run.defects, args.only)
    own = args.shard or Shard(*cli.workers())
    if own.n > 1:
        print(f"worker {own.i} of {own.n}: paints one block in {own.n}", file=sys.stderr)
    folder = PairFolder(args.out, pair_options(args, run), own)
    weights = run.config["options"]["weights"]
    if weights != TINY and not Path(weights).exists():
        raise FileNotFoundError(f"{weights}: the checkpoint of {args.run} is not there; bring it "
                                f"back, or: train_embed.py --out {args.run} --resume --weights NEW")
    with Display() as report:
        report(f"loading {weights}", 0, 1)
        sd = load(weights, device, cli.DTYPES[args.dtype], run.config["prediction_type"])
        report(f"loading {weights}", 1, 1)
        for pair in paint(
                sd, run, folder, defects=defects, n=args.n, normals=args.normals,
                masks=MASKS.get(args.masks) or mask_files(whole(args.masks)),
                foreground=FOREGROUND.get(args.foreground) or part_masks(whole(args.foreground)),
                steps=args.steps, guidance=args.guidance, strength=args.strength,
                against_object=args.negative == "object", weigh=weigh_function(args),
                gate=args.gate, tries=args.tries, batch_size=args.batch_size, seed=args.seed,
                stop=cli.terminated, report=report):
            cli.say(pair.image)
    for path in (folder.sheet, folder.review):
        if path.is_file():
            cli.say(path)


if __name__ == "__main__":
    sys.exit(cli.run_tool("sample.py", main))
