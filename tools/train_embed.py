"""Learn defects from photographs with masks: writes a run folder for sample.py.

    python tools/train_embed.py                     the demo, on the checkpoint that comes with the project
    python tools/train_embed.py --weights CKPT --data DIR --out runs/mine
    python tools/train_embed.py --weights CKPT --images photos --masks masks --name screw/scratch --out runs/mine
"""

import argparse
import platform
import sys
from dataclasses import replace
from pathlib import Path
from zlib import crc32

import numpy as np
import torch
from torch import nn

from anomaly.crop import augmented, thin
from anomaly.dataset import (Defect, check_names, find_defects, first_third, pair_folders, read_example,
                             select)
from anomaly.embedding import AnomalyEmbedding, MaskEmbedding
from anomaly.mask_model import mask_picture
from anomaly.output import run as runs
from anomaly.output.calibrate import strength_of
from anomaly.output.console import (DTYPES, Parser, Progress, at_least, choose_device, choose_dtype, path_or,
                                    run_tool)
from anomaly.output.files import write_image
from anomaly.output.generate import Settings
from anomaly.output.preview import preview_row, training_views
from anomaly.output.sheets import sheet
from anomaly.output.synthetic.demo import demo_data
from anomaly.reweight import latent_to_rgb
from anomaly.sampler import STEPS, Guidance
from anomaly.train import Views, encode, textual_inversion
from ldm.model import StableDiffusion
from weights import TINY, fingerprint, load

DEMO = "demo"   # the word for the drawn photographs
TRAINING_STEPS, BATCH_SIZE = 100, 4     # steps a defect; pictures a step
VIEWS = 64      # augmented pictures a defect, at least 4 of each photograph


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The options of design section 6 that training has."""
    parser = Parser("train_embed.py", "Learn defects from photographs with masks.")
    add = parser.add_argument
    add("--weights", type=path_or(TINY), default=TINY, help="Stable Diffusion 1.x or 2.x, a diffusers folder or "
        f"the original single .safetensors file; {TINY}: the one that comes with the project, for the demo")
    add("--prediction-type", choices=["auto", "eps", "v"], default="auto",
        help="what the model predicts; auto: as its files say")
    add("--data", type=path_or(DEMO), help="data set in MVTec AD layout, one category or a folder of them; "
        f"{DEMO}: drawn photographs, into the run's folder (default, without --images)")
    add("--images", type=Path, help="folder of defect photographs, instead of --data")
    add("--masks", type=Path, help="folder of their masks, of the same names")
    add("--name", help="OBJECT/DEFECT that --images shows")
    add("--split", choices=["third", "all"],
        help="train on the first third of each defect by name, or on all (default: third for --data, else all)")
    add("--only", help="OBJECT/DEFECT,...: learn these only")
    add("--no-masks", action="store_true", help="do not learn the mask model")
    add("--no-flip", action="store_true", help="never mirror: for parts whose orientation matters")
    add("--steps", type=at_least(1), default=TRAINING_STEPS, help="training steps a defect")
    add("--batch-size", type=at_least(1), default=BATCH_SIZE, help="pictures a step")
    add("--size", type=at_least(1), help="side in pixels of the crops (default: the checkpoint's own)")
    add("--out", type=Path, default=Path("runs/demo"), help="the run's folder")
    add("--resume", action="store_true", help="continue the run in --out; a larger --steps extends it")
    add("--device", choices=["auto", "cpu", "cuda"], default="auto", help="where to compute")
    add("--dtype", choices=["auto", "fp32", "bf16", "fp16"], default="auto",
        help="of the frozen model; auto: fp16 on CUDA, else fp32")
    add("--seed", type=at_least(0), default=0, help="of everything random")
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


def select_defects(args: argparse.Namespace) -> list[Defect]:
    """The defects to learn, with the photographs to learn them from."""
    if args.data is not None:
        defects = find_defects(demo_data(args.out / DEMO) if args.data == DEMO else args.data)
    else:
        parts = args.name.split("/")
        if len(parts) != 2 or not all(parts):
            raise ValueError(f"--name: found {args.name!r}, expected OBJECT/DEFECT, such as screw/scratch")
        defects = [Defect(*parts, pair_folders(args.images, args.masks))]
        check_names(defects)
    defects = select(defects, args.only)
    split = args.split or ("third" if args.data is not None else "all")
    return [first_third(d) for d in defects] if split == "third" else defects


def describe_run(args: argparse.Namespace, defects: list[Defect], sd: StableDiffusion, size: int) -> dict:
    """config.json of the run."""
    options = {name: str(value.resolve()) if isinstance(value, Path) else value
               for name, value in vars(args).items() if name not in ("out", "resume", "device")}
    return {"options": options, "size": size, "weights_sha256": fingerprint(args.weights),
            "prediction_type": "v" if sd.schedule.config.v_prediction else "eps",
            "versions": {"python": platform.python_version(), "torch": torch.__version__,
                         "numpy": np.__version__},
            "defects": runs.describe(defects)}


def encode_views(sd: StableDiffusion, defect: Defect, size: int, flip: bool, seed: int) -> Views:
    """Random views of the training photographs, encoded ahead of the loop."""
    examples = [read_example(e) for e in defect.examples]
    rounds = max(4, -(-VIEWS // len(examples)))
    rng = np.random.default_rng([seed, crc32(defect.key.encode())])
    pictures, slim = [], 0
    with Progress(f"encoding {defect.key}", rounds * len(examples)) as progress:
        for photograph, mask in examples * rounds:
            pictures.append(augmented(photograph, mask, size, sd.vae.config.factor, flip, rng))
            slim += thin(pictures[-1])
        views = encode(sd, progress.each(pictures))
    if slim:
        print(f"{defect.key}: in {slim} of {len(pictures)} views the mask is thinner than two latent cells; "
              f"a larger --size paints thin defects better", file=sys.stderr)
    return views


def encode_masks(sd: StableDiffusion, defect: Defect, size: int) -> Views:
    """The pictures of the training masks, for the mask model."""
    masks = [read_example(e)[1] for e in defect.examples]
    pictures = [mask_picture(mask, size, sd.vae.config.factor) for mask in masks]
    with Progress(f"encoding masks of {defect.key}", len(pictures)) as progress:
        return encode(sd, progress.each(pictures))


def learn(run: runs.Run, stage: str, sd: StableDiffusion, views: dict[str, Views], learner: nn.Module,
          args: argparse.Namespace) -> None:
    """Run the loop from the last saved state to the end, saving on the way."""
    optimizer = torch.optim.Adam(learner.rates(sd))
    start, end = runs.load_state(run, stage, learner, optimizer), args.steps * len(views)
    runs.open_losses(run, stage, start)
    records = []
    with Progress(f"learning {stage}s", end, start) as progress:
        for record in textual_inversion(sd, views, learner, optimizer, start, end, args.batch_size, args.seed):
            records.append(record)
            progress.step(f"loss {np.mean([r.loss for r in records[-32:]]):.4f}")
            if record.step % runs.SAVE_EVERY == 0 or record.step == end:
                runs.save_state(run, stage, learner, optimizer, record.step, records)
                records = []


def fit_latent_to_rgb(sd: StableDiffusion, defects: list[Defect], size: int) -> torch.Tensor:
    """The linear latent-to-RGB map, from the training photographs' crops without jitter."""
    views = [view for defect in defects for view in training_views(defect, size, sd.vae.config.factor)]
    with Progress("fitting the latent-to-RGB map", len(views)) as progress:
        latents = encode(sd, progress.each(views)).latents
    return latent_to_rgb(latents, torch.stack([view.image for view in views]))


def main(argv: list[str] | None = None) -> None:
    """Learn every defect, then every mask model, then draw the preview."""
    args = parse_args(argv)
    device = choose_device(args.device)
    args.dtype = choose_dtype(args.dtype, device)       # recorded as what it is: auto depends on the machine
    runs.check_out(args.out, args.resume)
    defects = select_defects(args)
    for defect in defects:
        for example in defect.examples:
            read_example(example)       # every fault of the input is found before anything is written
    with Progress(f"loading {args.weights}", 1) as progress:
        sd = load(args.weights, device, DTYPES[args.dtype], args.prediction_type)
        size = args.size or sd.native_size
        if size % sd.size_multiple:
            raise ValueError(f"--size: {size}, but the model takes multiples of {sd.size_multiple}")
        run = runs.start_run(args.out, describe_run(args, defects, sd, size), args.resume)
        progress.step()
    print(*sd.remarks, sep="\n", file=sys.stderr)
    to_rgb = fit_latent_to_rgb(sd, defects, size)
    runs.save_module(run, "latent_to_rgb", {"latent_to_rgb": to_rgb})
    learner = AnomalyEmbedding(sd, defects, args.seed)
    views = {d.stem: encode_views(sd, d, size, not args.no_flip, args.seed) for d in defects}
    learn(run, "image", sd, views, learner, args)
    uncond = sd.context("")
    settings = Settings(size, STEPS, Guidance(1.0, uncond), to_rgb, None)
    with Progress("finding the guidance", len(defects)) as progress:
        found = {d.stem: strength_of(sd, d, learner, settings) for d in progress.each(defects)}
    guidance = {stem: strength.guidance for stem, strength in found.items()}
    print(*(f"{d.key}: guidance {s.guidance:g}, for a contrast of {s.contrast:.2f}; the photographs have {s.goal:.2f}"
            for d, s in zip(defects, found.values())), sep="\n", file=sys.stderr)
    runs.save_vectors(run, "embeddings", "", learner.e_a, guidance)
    runs.save_module(run, "spatial_encoder", learner.spatial_encoder.state_dict())
    masks = None
    if not args.no_masks:
        masks = MaskEmbedding(sd, defects, args.seed)
        learn(run, "mask", sd, {d.stem: encode_masks(sd, d, size) for d in defects}, masks, args)
        runs.save_vectors(run, "mask_embeddings", "-mask", masks.e_m)
    runs.sort_losses(run)
    with Progress("drawing the preview", len(defects)) as progress:
        rows = [preview_row(sd, d, learner, masks, replace(settings, guidance=Guidance(guidance[d.stem], uncond)))
                for d in progress.each(defects)]
    write_image(args.out / "preview.jpg", sheet(rows))
    print(args.out / "preview.jpg")


if __name__ == "__main__":
    sys.exit(run_tool("train_embed.py", main))
