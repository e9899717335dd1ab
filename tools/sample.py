"""Paint learned defects into defect-free photographs: image-mask pairs in MVTec AD layout.

    python tools/sample.py                          what train_embed.py learned without arguments
    python tools/sample.py --run runs/mine --masks train --n 16 --out generated
"""

import argparse
import hashlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anomaly import reweight
from anomaly.dataset import Defect, select
from anomaly.embedding import AnomalyEmbedding
from anomaly.output import generate
from anomaly.output import run as runs
from anomaly.output.console import (DTYPES, Parser, Progress, at_least, auto_or_positive, choose_device, choose_dtype,
                                    positive, run_tool)
from anomaly.output.pairs import PairFolder
from anomaly.output.placement import Normal, find_normals, fits, read_mask_files, training_stamps
from anomaly.sampler import STEPS, Guidance
from ldm.model import StableDiffusion
from weights import fingerprint, load

WEIGH = {"paper": reweight.paper, "literal": reweight.literal, "released": reweight.released,
         "constant": reweight.constant, "off": None}


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The options of design section 6 that sampling has."""
    parser = Parser("sample.py", "Paint learned defects into defect-free photographs.")
    add = parser.add_argument
    add("--run", type=Path, default=Path("runs/demo"), help="the folder train_embed.py wrote")
    add("--only", help="OBJECT/DEFECT,...: paint these only")
    add("--n", type=at_least(1), help="pairs a defect (default: 16, or 1 for one photograph and one mask)")
    add("--normals", type=Path, help="defect-free photograph or folder (default: train/good of the data)")
    add("--masks", default="learned", help="learned: drawn by the mask model; train: the training masks, "
        "moved; or a mask file or folder, used as it lies")
    add("--steps", type=at_least(1, 500), default=STEPS, help="DDIM steps")
    add("--guidance", type=auto_or_positive, default="auto", help="classifier-free guidance scale, 1: none; auto: "
        "found in training, where the defect is as strong as in its photographs (empty negative prompt, no re-weighting)")
    add("--negative", choices=["empty", "object"], default="empty", help="the prompt guided away from; a scale of 1 "
        "uses none")
    add("--reweight", choices=list(WEIGH), default="off", help="attention re-weighting; strengthens, as guidance does")
    add("--reweight-gain", type=positive, help="mean weight G of --reweight paper or constant (default: "
        f"{reweight.GAIN})")
    add("--batch-size", type=at_least(1), default=8, help="pairs painted together")
    add("--out", type=Path, default=Path("generated"), help="the folder of pairs")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")
    add("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto",
        help="of the frozen model; auto: fp16 on CUDA, else fp32")
    add("--seed", type=at_least(0), default=0, help="of everything random")
    args = parser.parse_args(argv)
    if args.reweight_gain is not None and args.reweight not in ("paper", "constant"):
        parser.error(f"--reweight-gain belongs to --reweight paper and constant, not {args.reweight}")
    if args.reweight in ("paper", "constant") and args.reweight_gain is None:
        args.reweight_gain = reweight.GAIN
    return args


def weigh_function(args: argparse.Namespace) -> Callable[[Tensor, Tensor], Tensor] | None:
    """The word of --reweight as a function of the difference and the mask."""
    function = WEIGH[args.reweight]
    return function if args.reweight_gain is None else partial(function, gain=args.reweight_gain)


def load_learner(run: runs.Run, sd: StableDiffusion, defects: list[Defect]) -> AnomalyEmbedding:
    """The run's embeddings of these defects and its spatial encoder."""
    learner = AnomalyEmbedding(sd, defects, seed=0)
    for defect in defects:
        learner.e_a[defect.stem].data.copy_(runs.load_vectors(run, "embeddings", defect))
    learner.spatial_encoder.load_state_dict(runs.load_module(run, "spatial_encoder"))
    return learner.requires_grad_(False)


def pair_options(args: argparse.Namespace, run: runs.Run) -> dict:
    """What every pair of an output folder shares."""
    encoder = (run.folder / "spatial_encoder.safetensors").read_bytes()
    masks = args.masks if args.masks in ("learned", "train") else str(Path(args.masks).resolve())
    return {"run": hashlib.sha256(encoder).hexdigest(), "masks": masks,
            "normals": None if args.normals is None else str(args.normals.resolve()),
            "steps": args.steps, "guidance": args.guidance, "negative": args.negative,
            "reweight": args.reweight, "reweight_gain": args.reweight_gain, "dtype": args.dtype,
            "seed": args.seed}


def normals_of(args: argparse.Namespace, defect: Defect) -> list[Normal]:
    """The photographs to paint this defect into."""
    if args.normals is None and defect.normals is None:
        raise ValueError(f"--normals: {defect.key} was learned from data without train/good; "
                         f"name a folder of defect-free photographs")
    return find_normals(defect.normals if args.normals is None else args.normals.resolve())


def prepare_masks(args: argparse.Namespace, run: runs.Run, sd: StableDiffusion, defect: Defect,
                  normals: list[Normal]) -> tuple[generate.Masks, int]:
    """The word of --masks as a function of a block of plans, and how many donors a plan draws from."""
    if args.masks not in ("learned", "train"):
        return generate.given_masks(read_mask_files(Path(args.masks).resolve(), normals), normals), 1
    size = run.config["size"]
    stamps = training_stamps(defect.examples, size)
    if args.masks == "learned":
        if run.config["options"]["no_masks"]:
            raise ValueError(f"--masks learned: {run.folder} has no mask_embeddings, it was trained with "
                             f"--no-masks; use --masks train")
        e_m = runs.load_vectors(run, "mask_embeddings", defect).to(sd.device)
        return generate.learned_masks(sd, e_m, defect, stamps, normals, size, args.steps), len(stamps)
    usable = []
    for s in stamps:
        if any(fits(s, n) for n in normals):
            usable.append(s)
        else:
            print(f"{s.source}: {s.mask.shape[1]}x{s.mask.shape[0]} pixels, larger than every photograph; "
                  f"left out", file=sys.stderr)
    if not usable:
        raise ValueError(f"--masks train: no training mask of {defect.key} fits into a photograph of --normals; "
                         f"use larger photographs")
    return generate.training_masks(usable, normals), len(usable)


def blocks(n: int, size: int) -> Iterator[range]:
    """Pair numbers in blocks of equal size; the last reaches beyond n."""
    return (range(start, start + size) for start in range(0, n, size))


def main(argv: list[str] | None = None) -> None:
    """Paint n pairs of every defect; what is there already is not painted again."""
    args = parse_args(argv)
    device = choose_device(args.device)
    args.dtype = choose_dtype(args.dtype, device)       # recorded as what it is: auto depends on the machine
    run = runs.read_run(args.run)
    defects = select(run.defects, args.only)
    folder = PairFolder(args.out, pair_options(args, run))
    normals = {d.key: normals_of(args, d) for d in defects}
    with Progress(f"loading {run.config['options']['weights']}", 1) as progress:
        weights = run.config["options"]["weights"]
        sd = load(weights, device, DTYPES[args.dtype], run.config["prediction_type"])
        runs.check_weights(run, weights, fingerprint(weights))
        learner = load_learner(run, sd, defects)
        progress.step()
    print(*sd.remarks, sep="\n", file=sys.stderr)
    shape = (sd.unet.config.latent_channels, *[run.config["size"] // sd.vae.config.factor] * 2)
    to_rgb = runs.load_module(run, "latent_to_rgb")["latent_to_rgb"].to(sd.device)
    for defect in defects:
        photographs = normals[defect.key]
        choose, donors = prepare_masks(args, run, sd, defect, photographs)
        one = len(photographs) == 1 and Path(args.masks).is_file()
        n = args.n if args.n is not None else 1 if one else 16
        negative = defect.object.replace("_", " ") if args.negative == "object" else ""
        scale = runs.load_guidance(run, defect) if args.guidance == "auto" else args.guidance
        settings = generate.Settings(run.config["size"], args.steps, Guidance(scale, sd.context(negative)), to_rgb,
                                     weigh_function(args))
        done = sum(folder.done(defect, k) for k in range(n))
        with Progress(f"painting {defect.key}, guidance {scale:g}", n, done) as progress:
            for block in blocks(n, args.batch_size):
                missing = [k for k in block if k < n and not folder.done(defect, k)]
                if not missing:
                    continue
                plans = [generate.plan(defect, k, args.seed, shape, donors, len(photographs)) for k in block]
                for pair in generate.paint(sd, learner, defect, plans, choose(plans), settings):
                    if pair.plan.k in missing:
                        print(folder.write(defect, pair), flush=True)
                        progress.step()
    print(folder.finish(run.config["size"]))


if __name__ == "__main__":
    sys.exit(run_tool("sample.py", main))
