"""Judge pairs: by what a run has learned of its photographs, and by what they make of a detector.

The stories are pairs.quality and evaluation.inspection.
"""

import argparse
import sys
from collections import Counter
from pathlib import Path

from display import Display

import cli
from anomaly.dataset import find_defects, select
from anomaly.files.atomic_files import write_rows
from anomaly.files.names import whole
from anomaly.pairs.quality import JUDGED, judged, normals_by_image
from anomaly.progress import ending
from anomaly.runs.run_folder import check_weights, read_run
from evaluation.proof_folder import DETECTOR_STEPS, RESOLUTION, check_extra, held_folder
from evaluation.sets import read_vgg, set_rows
from weights import load

QUALITY = ("csv", "vgg", "inception")       # options of one of the two
STUDY = ("only", "draws", "n", "steps", "no_flip", "ablation", "weights")   # of --photographs
INSPECT = (*STUDY, "data", "photographs", "parts", "seeds", "detector_steps", "resolution", "out")
# What the same --out must have been made with.
SAME = ("only", "draws", "n", "steps", "no_flip", "weights", "data", "parts", "resolution")
DESCRIPTION = """\
quality    judge pairs by the gate of a run: a row a pair, and the share that passes
inspect    train detectors on real photographs, on pasted ones and on pairs, test them on
           photographs that neither the run nor they saw, and say whether pairs help"""
EXAMPLES = """\
examples:
  python tools/evaluate.py quality --run runs/demo --pairs generated
  python tools/evaluate.py inspect --data mvtec/screw --photographs 1,4
"""


def numbers(text: str) -> list[int]:
    """An argparse type: whole numbers, 1 at least, with commas between them."""
    return sorted({cli.at_least(1)(word) for word in text.split(",")})


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """What to judge, and by what."""
    parser = cli.Parser("evaluate.py", DESCRIPTION, EXAMPLES, "quality|inspect [options]")
    parser.add_argument("what", choices=["quality", "inspect"], metavar="quality|inspect",
                        help="which of the two")
    group = parser.add_argument_group("what to judge").add_argument
    group("--run", type=cli.path, action="append", metavar="DIR",
          help="the folder that train_embed.py wrote (default: runs/demo); inspect takes several, "
               "learned from other photographs, each with its --pairs")
    group("--pairs", type=cli.path, action="append", metavar="DIR",
          help="pairs in MVTec AD layout (default: generated)")
    group = parser.add_argument_group("quality").add_argument
    group("--csv", type=cli.path, metavar="FILE", help="write the rows to a new file")
    group("--vgg", type=cli.path, action="append", metavar="FILE",
          help="for IC-LPIPS: safetensors with torchvision's VGG-16 (features.*) and with LPIPS's "
               "heads (lin*.model.1.weight); may be given twice")
    group("--inception", type=cli.path, metavar="FILE",
          help="for IS and KID: torch-fidelity's weights, where that is installed")
    group = parser.add_argument_group("inspect").add_argument
    group("--data", type=cli.path, metavar="DIR",
          help="real photographs in MVTec AD layout; those that were not learned from are tested")
    group("--photographs", type=numbers, metavar="N,...",
          help="instead of --run and --pairs: learn from so many photographs of each defect, paint "
               "and compare, once for each number")
    group("--only", metavar="O/D,...", help="with --photographs: only these defects")
    group("--parts", metavar="FILE|REGEX",
          help="which photographs show one part: a CSV file with the columns image and part, or "
               "what to find in DEFECT/NAME, such as 'serial[0-9]+'; others are one part if they "
               "look the same beside the defect")
    group("--draws", type=cli.at_least(1), default=2, metavar="N",
          help="with --photographs: how often to draw them (default: 2; 1 is no proof)")
    group("--n", type=cli.at_least(2), default=24, metavar="N",
          help="with --photographs: pairs to paint of each defect (default: 24)")
    group("--steps", type=cli.at_least(1), metavar="N",
          help="with --photographs: training steps a defect (default: as train_embed.py)")
    group("--no-flip", action="store_true",
          help="with --photographs: never mirror parts, their orientation matters")
    group("--ablation", action="store_true",
          help="with --photographs: and with the masked loss, the spatial embedding, the guidance "
               "or the gate off, one at a time; takes about three times as long")
    group("--weights", type=cli.path_or("tiny"), default="tiny", metavar="tiny|PATH",
          help="with --photographs: the checkpoint (default: tiny)")
    group("--seeds", type=cli.at_least(1), default=3, metavar="N",
          help="detectors of each kind (default: 3)")
    group("--detector-steps", type=cli.at_least(1), default=DETECTOR_STEPS, metavar="N",
          help=f"training steps of each (default: {DETECTOR_STEPS})")
    group("--resolution", type=cli.at_least(32), default=RESOLUTION, metavar="PX",
          help="longer side at most of what a detector sees; a whole number of a photograph's "
               f"pixels becomes one (default: {RESOLUTION})")
    group("--out", type=cli.path, default=Path("proof"), metavar="DIR",
          help="results.csv and what is kept of each detector; the same command goes on "
               "where it stopped (default: proof)")
    cli.add_machine_options(parser)
    args = parser.parse_args(argv)
    refuse_mixed(parser, args)
    args.run, args.pairs = args.run or [Path("runs/demo")], args.pairs or [Path("generated")]
    if len(args.run) != len(args.pairs) or (args.what == "quality" and len(args.run) > 1):
        parser.error(f"--run: {len(args.run)}, and {len(args.pairs)} --pairs; expected one of each"
                     + (", or as many" if args.what == "inspect" else ""))
    return args


def refuse_mixed(parser: cli.Parser, args: argparse.Namespace) -> None:
    """End with a line if an option has no meaning beside the others."""
    if args.what == "inspect" and args.data is None:
        parser.error("inspect needs --data")
    if args.photographs is not None and (args.run or args.pairs):
        parser.error("--photographs learns and paints itself; leave --run and --pairs out")
    for name in QUALITY if args.what == "inspect" else INSPECT:
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} does not belong to {args.what}")
    for name in STUDY if args.photographs is None else ():
        if getattr(args, name) != parser.get_default(name):
            parser.error(f"--{name.replace('_', '-')} belongs to --photographs")


def quality(args: argparse.Namespace, device: str) -> None:
    """Load, judge, print what share of each defect passes, and how the pairs are as a set."""
    if args.csv is not None and not args.csv.parent.is_dir():
        raise FileNotFoundError(f"{args.csv}: no such folder; give a --csv in one that is there")
    if args.csv is not None and args.csv.exists():
        raise FileExistsError(f"{args.csv}: is there already, and is never overwritten; give a new "
                              f"--csv")
    if args.inception is not None and not args.inception.is_file():
        raise FileNotFoundError(f"{args.inception}: no such file; --inception takes the weights")
    run, vgg = read_run(args.run[0]), None if args.vgg is None else read_vgg(args.vgg)
    with Display() as report:
        weights = run.config["options"]["weights"]
        sd = load(weights, device, cli.DTYPES[cli.choose_dtype(args.dtype, device)],
                  run.config["prediction_type"])
        check_weights(run, sd.source, sd.fingerprint())
        defects, normals = find_defects(args.pairs[0]), normals_by_image(args.pairs[0])
        rows = list(judged(sd, run, defects, normals, report))
        if args.csv is not None:
            write_rows(args.csv, JUDGED, rows)
        sets = list(set_rows(sd, run, defects, normals, rows, vgg, args.inception, report))
    made = Counter(f"{row['object']}/{row['defect']}" for row in rows)
    passed = Counter(f"{row['object']}/{row['defect']}" for row in rows if row["verdict"] == "pass")
    for key, count in made.items():
        print(f"{key}: {passed[key]} of {count} pass ({passed[key] / count:.0%})")
        for _, name, value in (row for row in sets if row[0] == key):
            print(f"    {name}: {value}")


def inspect(args: argparse.Namespace, device: str) -> None:
    """Draw or read, train detectors, write results.csv and report.html, print the verdicts."""
    check_extra()
    from evaluation.collection import collect, painted
    from evaluation.draws import Study, check_counts, chosen_draws, learned_draws, painted_draws
    from evaluation.inspection import inspected, write_results
    from evaluation.report import write_report
    from evaluation.verdict import ablations, verdicts
    options = {name: str(whole(value)) if isinstance(value, Path) else value
               for name, value in vars(args).items() if name in SAME}
    defects = select(find_defects(args.data), args.only)
    with Display() as report, held_folder(args.out, options) as begin:
        ended = ending(report, cli.terminated)
        if args.photographs is None:
            made = [painted(read_run(run), pairs) for run, pairs in zip(args.run, args.pairs)]
            collection = collect(defects, made, args.resolution, args.parts, ended)
            draws = painted_draws(made, collection, ended)
        else:
            check_counts(defects, args.photographs)
            sd = load(args.weights, device, cli.DTYPES[cli.choose_dtype(args.dtype, device)])
            collection = collect(defects, [], args.resolution, args.parts, ended)
            study = Study(sd, args.draws, args.n, args.steps, not args.no_flip, args.ablation,
                          args.out, cli.terminated, report)
            wanted = chosen_draws(defects, collection, args.photographs, study)
            draws = learned_draws(wanted, collection, study)
        begin()
        found = inspected(draws, args.seeds, args.detector_steps, device, args.out, ended)
        write_results(found, args.out / "results.csv")
        made_of = {"photographs": args.photographs} if args.photographs else \
            {"run": args.run, "pairs": args.pairs}
        write_report(found, {**made_of, **options, "seeds": args.seeds, "device": device,
                             "detector_steps": args.detector_steps}, args.out / "report.html")
    for name in ("results.csv", "report.html", "curve.png"):
        cli.say(args.out / name)
    print(*ablations(found), *verdicts(found), sep="\n")


def main(argv: list[str] | None = None) -> None:
    """Parse, and do what was asked."""
    args = parse_args(argv)
    {"quality": quality, "inspect": inspect}[args.what](args, cli.choose_device(args.device))


if __name__ == "__main__":
    sys.exit(cli.run_tool("evaluate.py", main))
