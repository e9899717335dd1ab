"""What bench.py speed and gpu measure: a generator of rows for each table, on any device.

Weights are random; columns of diffusers are left out where it is not installed.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from anomaly.crop import Cropped
from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.painter import Settings, Weigh, paint_crops
from anomaly.reweight import adaptive
from anomaly.runs.guidance import BATCH, VIEWS
from anomaly.runs.learn import SD_STEPS
from anomaly.sampler import STEPS, Guidance
from anomaly.train import Views, textual_inversion
from benchmarks.measuring import Bench, Row, named, short
from benchmarks.peers import (
    loop_of_diffusers,
    peers_are_there,
    plain_steps,
    text_of_transformers,
    unet_of_diffusers,
    vae_of_diffusers,
)
from ldm.attention import CrossAttention, attention
from ldm.config import UNetConfig
from ldm.model import StableDiffusion
from ldm.unet import UNet

TOOLS = Path(__file__).parents[1]
MEGAPIXELS = 3000, 4000     # rows and columns of a photograph of today
DEFECT = Defect("screw", "scratch", ())


def device(bench: Bench) -> Iterator[Row]:
    """The machine."""
    name = torch.cuda.get_device_name() if bench.device == "cuda" else \
        torch.cpu.get_capabilities().get("cpu_name", "CPU")
    for dtype in bench.sizes.dtypes:
        product, operations = bench.matrix(dtype)
        rate = operations / bench.seconds(product=product)["product"]
        yield {"device": name, "threads": str(torch.get_num_threads()), "torch": torch.__version__,
               "dtype": short(dtype), "matrix product, TFLOP/s": f"{rate / 1e12:.3g}"}


def operations_of(config: UNetConfig, latents: torch.Size, context: torch.Size) -> int:
    """Floating point operations of a call; on the meta device every kernel is counted."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        UNet(config)(torch.empty(latents), torch.empty(latents[:1]), torch.empty(context))
    return counter.get_total_flops()


@torch.no_grad()
def unet_call(bench: Bench, dtype: torch.dtype, ours: UNet, peer: nn.Module | None, pixels: int,
              batch: int) -> Row:
    """Without w_m and with it, diffusers', and the ceiling."""
    config, _, vae = bench.sizes.models
    side = pixels // vae.factor
    x, context = (bench.noise(batch, *shape).to(dtype)
                  for shape in ((4, side, side), (77, config.context_dim)))
    t = torch.full((batch,), 500, device=bench.device)
    maps = [torch.ones(batch, side >> n, side >> n, device=bench.device)
            for n in range(config.levels)]
    product, operations = bench.matrix(dtype)
    works: dict[str, Callable[[], object]] = {
        "product": product, "ours": lambda: ours(x, t, context),
        "weighted": lambda: ours(x, t, context, maps)}
    if peer is not None:
        works["diffusers"] = lambda: peer(x, t, context)
    took = bench.seconds(**works)
    floor = operations_of(config, x.shape, context.shape) * took["product"] / operations
    return {"ms": f"{1e3 * took['ours']:.1f}",
            "share of the matrix rate": f"{floor / took['ours']:.0%}",
            "with w_m": f"{took['weighted'] / took['ours'] - 1:+.1%}",
            "diffusers / ours": f"{took['diffusers'] / took['ours']:.2f}" if peer else "",
            "diffusers' share": f"{floor / took['diffusers']:.0%}" if peer else ""}


def unet(bench: Bench) -> Iterator[Row]:
    """One call of the U-Net, beside diffusers' with the same weights."""
    for dtype in bench.sizes.dtypes:
        ours = bench.made(UNet, bench.sizes.models[0], dtype)
        peer = unet_of_diffusers(ours)
        for pixels, batch in bench.sizes.unet:
            yield {**named(dtype, pixels, batch),
                   **unet_call(bench, dtype, ours, peer, pixels, batch)}


@torch.no_grad()
def attended(bench: Bench, dtype: torch.dtype, pixels: int, batch: int) -> Row:
    """The cross-attention of the finest level that has one, with torch's kernel and without."""
    config, _, vae = bench.sizes.models
    level = config.cross_attention.index(True)
    width, heads = config.channels[level], config.heads[level]
    module = bench.made(lambda width: CrossAttention(width, config.context_dim, heads), width,
                        dtype)
    x, context = (bench.noise(batch, *shape).to(dtype) for shape in (
        ((pixels // vae.factor >> level) ** 2, width), (77, config.context_dim)))

    def torchs() -> Tensor:
        q, k, v = (to(some).unflatten(-1, (heads, -1)).transpose(1, 2) for to, some in
                   ((module.to_q, x), (module.to_k, context), (module.to_v, context)))
        return module.to_out(attention(q, k, v).transpose(1, 2).flatten(2))
    w_m = torch.ones(x.shape[:2], device=bench.device)
    took = bench.seconds(ours=lambda: module(x, context), torchs=torchs,
                         weighted=lambda: module(x, context, w_m))
    return {"ms": f"{1e3 * took['ours']:.2f}", "with w_m": f"{1e3 * took['weighted']:.2f}",
            "torch's kernel / ours": f"{took['torchs'] / took['ours']:.2f}"}


def cross_attention(bench: Bench) -> Iterator[Row]:
    """The cross-attention written by hand, beside torch's kernel, at the finest level."""
    for dtype in bench.sizes.dtypes:
        for pixels, batch in bench.sizes.unet:
            yield {**named(dtype, pixels, batch), **attended(bench, dtype, pixels, batch)}


@torch.no_grad()
def beside(bench: Bench, sd: StableDiffusion, peers: tuple[Any, Any] | None, pixels: int,
           batch: int) -> Row:
    """Milliseconds of a call of each part."""
    image = bench.noise(batch, 3, pixels, pixels).clamp(-1, 1)
    latents, _ = sd.vae.encode(image)
    ids = sd.tokenizer(["a photo of a screw"] * batch).to(bench.device)
    works: dict[str, Callable[[], object]] = {
        "text": lambda: sd.text_encoder.encode(sd.text_encoder.embed(ids)),
        "encode": lambda: sd.vae.encode(image), "decode": lambda: sd.vae.decode(latents)}
    if peers is not None:
        text, vae = peers
        some, z = image.to(sd.dtype), latents.to(sd.dtype)
        works |= {"transformers' text": lambda: text(ids),
                  "diffusers' encode": lambda: vae.encode(some),
                  "diffusers' decode": lambda: vae.decode(z)}
    return {f"{name}, ms": f"{1e3 * took:.1f}" for name, took in bench.seconds(**works).items()}


def text_and_vae(bench: Bench) -> Iterator[Row]:
    """The text encoder and the VAE, beside transformers' and diffusers' with the same weights."""
    for dtype in bench.sizes.dtypes:
        sd = bench.model(dtype)
        peers = None if not peers_are_there() else (
            text_of_transformers(sd.text_encoder), vae_of_diffusers(sd.vae))
        for pixels, batch in bench.sizes.unet:
            yield {**named(dtype, pixels, batch), **beside(bench, sd, peers, pixels, batch)}


def square(side: int) -> Tensor:
    """A mask (side, side) of a quarter of the side."""
    mask = torch.zeros(side, side).bool()
    mask[side // 4:side // 2, side // 4:side // 2] = True
    return mask


def block(bench: Bench, sd: StableDiffusion, pixels: int, batch: int, steps: int,
          scale: float) -> Row:
    """Encode, blended DDIM, decode: what sample.py does with a block, without files and gate."""
    side = pixels // sd.vae.config.factor
    noise, to_rgb = bench.noise(batch, 4, side, side), bench.noise(4, 3)
    crops = [Cropped(bench.noise(3, pixels, pixels).clamp(-1, 1).cpu(), square(pixels),
                     square(side))] * batch
    empty = sd.context("")

    def paint(weigh: Weigh | None) -> Tensor:
        return paint_crops(sd, crops, empty.expand(batch, -1, -1), noise, Settings(
            pixels, steps, Guidance(scale, empty), to_rgb, weigh)).cpu()
    works: dict[str, Callable[[], object]] = {
        "ours": lambda: paint(None), "adaptive": lambda: paint(adaptive)}
    peak = bench.peak(sd, lambda: paint(None))
    theirs = sd.dtype
    if peers_are_there():
        # On a CPU as diffusers comes; on a GPU nobody leaves it in float32.
        source = bench.model(torch.float32) if bench.device == "cpu" else sd
        works["diffusers"] = loop_of_diffusers(source, crops, empty.expand(batch, -1, -1), noise,
                                               steps, scale)
        theirs = source.dtype
    took = bench.seconds(**works)
    return {"pairs a second": f"{batch / took['ours']:.3g}",
            "re-weighting": f"{took['adaptive'] / took['ours'] - 1:+.1%}",
            f"diffusers in {short(theirs)} / ours": f"{took['diffusers'] / took['ours']:.2f}"
            if "diffusers" in took else "", "peak, GiB": peak}


def pairs(bench: Bench) -> Iterator[Row]:
    """Pairs: encoded, painted, decoded."""
    sd = bench.model(bench.sizes.dtypes[-1])
    for pixels, batch, steps, scale in bench.sizes.pairs:
        yield {**named(sd.dtype, pixels, batch), "steps": str(steps), "guidance": f"{scale:g}",
               **block(bench, sd, pixels, batch, steps, scale)}


def learning(sd: StableDiffusion, views: Views, batch: int, steps: int) -> Callable[[], None]:
    """So many steps of masked textual inversion, and the next ones when called again."""
    learner = AnomalyEmbedding(sd, [DEFECT], 0)
    loop = textual_inversion(sd, {DEFECT.stem: views}, learner,
                             torch.optim.Adam(learner.rates(sd)), 0, 10 ** 6, batch, 0)

    def some() -> None:
        for _ in range(steps):
            next(loop)
    return some


@torch.no_grad()
def search_seconds(bench: Bench, sd: StableDiffusion, side: int) -> float:
    """Of the search for a guidance: a trial without one, two with one at most, and the VAE."""
    x, context = bench.noise(2 * BATCH, 4, side, side), sd.context("").expand(2 * BATCH, -1, -1)
    t, image = torch.full((len(x),), 500, device=bench.device), sd.vae.decode(x[:BATCH])
    took = bench.seconds(call=lambda: sd.unet(x, t, context), encode=lambda: sd.vae.encode(image),
                         decode=lambda: sd.vae.decode(x[:BATCH]))
    # The photographs and each of at most three trials are encoded and decoded.
    vae = 4 * (took["encode"] + took["decode"])
    return (2.5 * took["call"] * STEPS + vae) * VIEWS / BATCH


def step(bench: Bench, dtype: torch.dtype, pixels: int, batch: int) -> Row:
    """A step, with --checkpointing, and of the plain loop; what finding a guidance costs."""
    sd, n = bench.model(dtype), bench.sizes.training_steps
    with torch.device("meta"):
        lean = UNet(sd.unet.config)
    lean.load_state_dict(sd.unet.state_dict(), assign=True)     # the same memory
    lean.checkpoint_layers()
    side = pixels // sd.vae.config.factor
    views = Views(bench.noise(1, 4, side, side).cpu(), square(side)[None], square(pixels)[None])
    works = {"ours": learning(sd, views, batch, n),
             "lean": learning(replace(sd, unet=lean), views, batch, n)}
    if bench.device == "cpu" and (dtype, pixels) == (torch.float32, bench.sizes.training[0][0]):
        image = bench.noise(batch, 3, pixels, pixels).clamp(-1, 1)
        works["plain"] = plain_steps(bench.model(dtype), image, views.cells, n)
    took = bench.seconds(**works)
    share = search_seconds(bench, sd, side) * n / (SD_STEPS * took["ours"])
    return {"ms a step": f"{1e3 * took['ours'] / n:.0f}",
            "plain loop / ours": f"{took['plain'] / took['ours']:.2f}" if "plain" in took else "",
            "--checkpointing": f"{took['lean'] / took['ours'] - 1:+.0%}",
            "peak, GiB": bench.peak(sd, works["ours"]),
            "with --checkpointing": bench.peak(sd, works["lean"]),
            "guidance over 1,000 steps": f"{share:.0%} at most"}


def training(bench: Bench) -> Iterator[Row]:
    """A step of masked textual inversion."""
    for pixels, batch in bench.sizes.training:
        for dtype in bench.sizes.dtypes:
            yield {**named(dtype, pixels, batch), **step(bench, dtype, pixels, batch)}


def demo(bench: Bench) -> Iterator[Row]:
    """The demo, each command in a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        large, rng = f"{scratch}/large.jpg", np.random.default_rng(0)
        Image.fromarray(rng.integers(90, 160, (*MEGAPIXELS, 3), np.uint8)).save(large)
        run, sample = ("--run", f"{scratch}/run"), bench.sizes.sample
        one = ("--only", "wood/burn", "--masks", "train", "--n", "1", "--batch-size", "1",
               "--tries", "1")
        for what, tool, options in (
                ("imports and --help", "sample", ("--help",)),
                ("train_embed.py", "train_embed", ("--out", run[1], *bench.sizes.train)),
                ("sample.py", "sample", (*run, "--out", f"{scratch}/all", *sample)),
                ("sample.py again", "sample", (*run, "--out", f"{scratch}/again", *sample)),
                ("one pair, 256 x 256", "sample", (*run, "--out", f"{scratch}/one", *one)),
                ("one pair, 4000 x 3000", "sample",
                 (*run, "--out", f"{scratch}/large", *one, "--normals", large))):
            start = time.perf_counter()
            subprocess.run([sys.executable, TOOLS / f"{tool}.py", "--device", bench.device,
                            *options], check=True, text=True, capture_output=True)
            yield {"command": what, "seconds": f"{time.perf_counter() - start:.1f}"}
        pairs, again = ({p.relative_to(f"{scratch}/{out}"): p.read_bytes()
                         for p in Path(scratch, out).rglob("*.png")} for out in ("all", "again"))
        same = sum(found == again.get(name) for name, found in pairs.items())
        yield {"command": f"again: {same} of {len(pairs)} pictures have the same bytes"}


TABLES = device, demo, unet, pairs, training, cross_attention, text_and_vae
