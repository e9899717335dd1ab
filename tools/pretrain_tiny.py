"""Make the embedded checkpoint from nothing: pictures, a VAE, and a U-Net on the VAE's latents.

What the pieces of a run hand on lies in --state; loss.csv there has the losses, preview.jpg what
the model draws, and unfinished/ the checkpoint of a run that is not at its end.
"""

import argparse
import sys
import time
from pathlib import Path
from zlib import crc32

import numpy as np
import torch

from anomaly.drawn.products import PRODUCTS
from anomaly.files.atomic_files import replacing, write_image
from anomaly.files.holding import held, refuse_foreign
from anomaly.runs.sheets import sheet, to_pixels
from anomaly.sampler import Guidance, ddim
from cli import Parser, at_least, choose_device, path, run_tool
from ldm.model import StableDiffusion
from ldm.schedule import Schedule
from ldm.text_encoder import TextEncoder
from ldm.tokenizer import vocabulary
from ldm.unet import UNet
from ldm.vae import VAE
from pretraining import autoencoder, diffusion
from pretraining.picture_set import PictureSet, picture_set
from pretraining.state import Stage, pieces
from pretraining.tiny_files import caption_merges, caption_tokenizer, write_checkpoint
from weights import fingerprint, load
from weights.configs import unet_config

PIXELS = 128            # side of the pictures
STANDARDISED = 2000     # how many of them the latents' mean and std come from
EXAMPLES = """\
examples:
  python tools/pretrain_tiny.py --minutes 60          a piece of it; the same line goes on
  python tools/pretrain_tiny.py --from weights/tiny   go on from a finished one
"""
PREVIEW = ["", "with small red stain top left", "with large blue stain center",
           "with large hole bottom right", "with large crack", "with large scratch",
           "with large glue center", "with large dent center"]


def options(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = Parser("pretrain_tiny.py",
                    "Make the embedded checkpoint from nothing: pictures, VAE, U-Net.", EXAMPLES)
    what = parser.add_argument_group("what to train").add_argument
    what("--pictures", type=at_least(1), default=32_000, metavar="N",
         help="pictures to draw and learn from (default: 32000)")
    what("--vae-steps", type=at_least(1), default=6000, metavar="N",
         help="training steps of the VAE (default: 6000)")
    what("--unet-steps", type=at_least(1), default=60_000, metavar="N",
         help="training steps of the U-Net (default: 60000)")
    what("--from", dest="start", type=path, metavar="DIR",
         help="train the U-Net of this checkpoint on, with a fresh optimizer, and keep its VAE")
    how = parser.add_argument_group("how").add_argument
    how("--minutes", type=at_least(1), metavar="MIN",
        help="stop after so long; the same command goes on")
    how("--seed", type=at_least(0), default=0, metavar="N",
        help="of the pictures and of everything random (default: 0)")
    how("--device", choices=("auto", "cpu", "cuda"), default="auto",
        help="auto (default): cuda if there is one, else cpu")
    where = parser.add_argument_group("where to write").add_argument
    where("--state", type=path, default=Path("runs/tiny"), metavar="DIR",
          help="what the pieces hand on (default: runs/tiny)")
    where("--out", type=path, default=Path("weights/tiny"), metavar="DIR",
          help="the checkpoint's folder (default: weights/tiny, which it replaces)")
    return parser.parse_args(argv)


def check_folders(args: argparse.Namespace) -> None:
    """FileExistsError if --state or --out holds what this tool did not write."""
    own = {"pictures", "loss.csv", "preview.jpg", "unfinished"}
    own |= {path.name for path in args.state.glob("*.pt*")}
    refuse_foreign(args.state, own)
    refuse_foreign(args.out, {"unet", "vae", "text_encoder", "tokenizer", "scheduler",
                              "model_index.json", "README.md"})
    sizes = args.out / "unet/config.json"
    if sizes.is_file() and unet_config(sizes) != diffusion.UNET:
        raise FileExistsError(f"{sizes}: of another model, and is never overwritten; choose a new "
                              f"or empty --out")


def train_vae(args: argparse.Namespace, pictures: PictureSet, until: float,
              device: str) -> VAE | None:
    """The VAE with its latents made standard; None if the time ran out before its last step."""
    torch.manual_seed(args.seed)
    vae = VAE(autoencoder.CONFIG).to(device)
    path = args.state / "vae-standard.pt"
    if path.exists():
        vae.load_state_dict(torch.load(path, weights_only=True))
        return vae
    stage = Stage(args.state / "vae.pt", {"vae": vae}, autoencoder.RATE, autoencoder.AVERAGE)
    for losses in pieces(stage, args.vae_steps, until, args.state / "loss.csv", "vae"):
        losses.append(
            autoencoder.train_step(vae, stage, pictures, args.seed, args.vae_steps, device))
    if stage.step < args.vae_steps:
        return None
    stage.use_averages()
    autoencoder.fold(vae, autoencoder.encode_all(vae, pictures.images[:STANDARDISED], device))
    with replacing(path) as temporary:
        torch.save(vae.state_dict(), temporary)
    return vae


def encode(args: argparse.Namespace, pictures: PictureSet, vae: VAE,
           device: str) -> diffusion.Encoded:
    """The pictures as the U-Net sees them; encoded once."""
    made_by = crc32(vae.quant_conv.weight.detach().cpu().numpy().tobytes())
    path = args.state / f"latents-{args.seed}-{args.pictures}-{made_by:08x}.pt"
    if not path.exists():
        with replacing(path) as temporary:
            torch.save(autoencoder.encode_all(vae, pictures.images, device), temporary)
    latents = torch.load(path, weights_only=True)
    return diffusion.Encoded(latents, diffusion.shares(pictures.masks, latents.shape[-1]),
                             caption_tokenizer()(pictures.captions),
                             diffusion.turns(pictures.captions))


def preview(sd: StableDiffusion) -> list[tuple[str, list[np.ndarray]]]:
    """Text to image: a row a product, a column a defect."""
    guidance, rows = Guidance(diffusion.TEXT_GUIDANCE, sd.context("")), []
    for number, product in enumerate([*PRODUCTS, "mask"]):
        prompts = [f"a photo of {product} {words}".strip() for words in PREVIEW]
        context = torch.cat([sd.context(prompt) for prompt in prompts])
        cells = sd.unet.config.sample_size
        rng = torch.Generator().manual_seed(number)
        noise = torch.randn((len(prompts), 4, cells, cells), generator=rng)
        latents = ddim(sd, noise.to(sd.device), context, guidance, diffusion.STEPS)
        with torch.no_grad():
            pictures = [to_pixels(picture) for picture in sd.vae.decode(latents)]
        rows.append((f"a photo of {product} ...", pictures))
    return rows


def main(argv: list[str] | None = None) -> None:
    """Draw, train, look, write."""
    args = options(argv)
    device = choose_device(args.device)
    until = time.time() + 60 * args.minutes if args.minutes else float("inf")
    check_folders(args)
    with held(args.state):
        pretrain(args, device, until)


def pretrain(args: argparse.Namespace, device: str, until: float) -> None:
    """What main does in the folders that are its own."""
    pictures = picture_set(args.state / "pictures", args.seed, args.pictures, PIXELS)
    begin = None if args.start is None else load(args.start, device)
    vae = train_vae(args, pictures, until, device) if begin is None else begin.vae
    if vae is None:
        return
    data = encode(args, pictures, vae, device)
    torch.manual_seed(args.seed)
    text = diffusion.text_config(len(vocabulary(caption_merges())))
    unet, text_encoder = UNet(diffusion.UNET).to(device), TextEncoder(text).to(device)
    if begin is None:
        diffusion.initialise(unet)
        diffusion.initialise_text(text_encoder)
    else:
        unet.load_state_dict(begin.unet.state_dict())
        text_encoder.load_state_dict(begin.text_encoder.state_dict())
    # A state belongs to what it began with: nothing, or the checkpoint of --from.
    name = "unet" if args.start is None else f"unet-{fingerprint(args.start)[:8]}"
    stage = Stage(args.state / f"{name}.pt", {"unet": unet}, diffusion.RATE, diffusion.AVERAGE)
    for losses in pieces(stage, args.unet_steps, until, args.state / "loss.csv", "unet"):
        losses.append(diffusion.train_step(
            unet, text_encoder, stage, data, args.seed, args.unet_steps, device))
    stage.use_averages()
    sd = StableDiffusion(
        caption_tokenizer(), text_encoder, unet, vae, Schedule(diffusion.SCHEDULE))
    write_image(args.state / "preview.jpg", sheet(preview(sd)))
    out = args.out if stage.step >= args.unet_steps else args.state / "unfinished"
    write_checkpoint(out, unet, vae, text_encoder, diffusion.SCHEDULE)
    print(args.state / "preview.jpg", out, sep="\n")


if __name__ == "__main__":
    sys.exit(run_tool("pretrain_tiny.py", main))
