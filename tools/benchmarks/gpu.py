"""bench.py gpu: precision, speed and memory of every part, and of the demo, at most 8 minutes.

gpu.json and gpu.md, in the folder it is started in, are written anew after every row: what is cut
off keeps what it has. Weights are random, of Stable Diffusion's sizes; the demo's are the embedded
ones.
"""

import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from anomaly.files.atomic_files import write_json, write_text
from benchmarks.measuring import Bench, Part, Row, Sizes, largest, markdown, named, short
from benchmarks.peers import unet_of_diffusers
from benchmarks.rows import TABLES
from ldm.config import SD2_TEXT, SD2_UNET, TextConfig, UNetConfig, VAEConfig
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.vae import VAE

GPU = Sizes(matrix=8192, repeats=3, seconds=0.2, dtypes=(torch.float16,),
            unet=((256, 1), (256, 4), (256, 16), (256, 64), (512, 1), (512, 8), (512, 32)),
            pairs=((256, 1, 20, 1.0), (512, 1, 20, 2.0), (256, 64, 10, 1.0), (512, 16, 20, 2.0),
                   (256, 64, 20, 2.0), (256, 64, 50, 1.0)),
            training=((256, 4), (512, 1), (512, 4)), training_steps=10, compiled=(256, 64))
MINUTES = 8         # after which no row is begun
# The same on a CPU, to see that it runs.
REHEARSAL = Sizes(
    matrix=64, repeats=1, seconds=0, dtypes=(torch.bfloat16,), unet=((32, 1),),
    pairs=((32, 2, 2, 2.0),), training=((32, 1),), training_steps=1, compiled=(32, 1), models=(
        UNetConfig(channels=(32, 32), cross_attention=(True, False), heads=(2, 2), context_dim=32,
                   norm_groups=8),
        TextConfig(width=32, layers=2, heads=2, mlp_width=64),
        VAEConfig(channels=(16, 16), norm_groups=8)),
    train=("--steps", "1", "--no-masks", "--only", "wood/burn"),
    sample=("--masks", "train", "--n", "1", "--steps", "1"))


def halves(bench: Bench, kind: Callable[..., Part], config: object, name: str,
           work: dict[str, Callable[[Part], Tensor]]) -> Iterator[Row]:
    """A part in 16 bits against itself in float32: largest difference over largest value."""
    exact = {what: run(model) for model in [bench.made(kind, config, torch.float32)]
             for what, run in work.items()}
    for dtype in (torch.float16, torch.bfloat16):
        model = bench.made(kind, config, dtype)
        found = {what: run(model).float() for what, run in work.items()}
        yield {"part": name, "dtype": short(dtype), **{
            what: f"{largest(found[what], e):.1e}" for what, e in exact.items()}}


def family(bench: Bench, name: str, unet: UNetConfig, text: TextConfig) -> Iterator[Row]:
    """U-Net and text encoder of a model."""
    x, context = bench.noise(2, 4, 32, 32), bench.noise(2, 77, unet.context_dim)
    t = torch.tensor([500, 20], device=bench.device)
    maps = [1 + bench.noise(2, 32 >> n, 32 >> n).abs() for n in range(unet.levels)]
    yield from halves(bench, UNet, unet, f"U-Net, {name}", {
        "noisy": lambda model: model(x, t, context),
        "flat": lambda model: model(torch.full_like(x, 0.3), t, context),
        "with w_m, or decoding": lambda model: model(x, t, context, maps)})
    ids = torch.arange(2 * 77, device=bench.device).view(2, 77) % text.vocab_size
    yield from halves(bench, TextEncoder, text, f"text encoder, {name}",
                      {"noisy": lambda model: model.encode(model.embed(ids).float())})


@torch.no_grad()
def precision(bench: Bench) -> Iterator[Row]:
    """Every part in fp16 and bf16, against itself in float32."""
    torch.backends.cudnn.allow_tf32 = False     # float32 is to be float32
    unet, text, vae = bench.sizes.models
    yield from family(bench, "SD 1.5", unet, text)
    if bench.device == "cuda":
        yield from family(bench, "SD 2.1", SD2_UNET, SD2_TEXT)
    image = bench.noise(1, 3, 32 * vae.factor, 32 * vae.factor).clamp(-1, 1)
    yield from halves(bench, VAE, vae, "VAE", {
        "noisy": lambda model: model.encode(image)[0],
        "flat": lambda model: model.encode(torch.full_like(image, 0.4))[0],
        "with w_m, or decoding": lambda model: model.decode(bench.noise(1, 4, 32, 32))})


def graph_of(call: Callable[[], Tensor]) -> Callable[[], Tensor]:
    """A call recorded on a GPU and replayed as one launch; what it gives is overwritten by it."""
    aside, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
    aside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(aside):
        call()      # libraries set themselves up, which cannot be recorded
    aside.synchronize()
    with torch.cuda.graph(graph):
        out = call()

    def replay() -> Tensor:
        graph.replay()
        return out
    return replay


@torch.no_grad()
def compiled(bench: Bench) -> Iterator[Row]:
    """One call of the U-Net as a CUDA graph, and compiled, beside diffusers' compiled.

    difference: from the plain call, largest over largest value.
    """
    config, dtype = bench.sizes.models[0], bench.sizes.dtypes[0]
    # A CPU may have no compiler; there this is a rehearsal.
    backend = "inductor" if bench.device == "cuda" else "eager"
    ours = bench.made(UNet, config, dtype)
    pixels, batch = bench.sizes.compiled
    side = pixels // bench.sizes.models[2].factor
    x, context = (bench.noise(batch, *shape).to(dtype)
                  for shape in ((4, side, side), (77, config.context_dim)))
    t = torch.full((batch,), 500, device=bench.device)

    def row(name: str, plain: Callable[[], Tensor], faster: Callable[[], Tensor]) -> Row:
        took, expected = bench.seconds(plain=plain, faster=faster), plain()
        return {**named(dtype, pixels, batch), "U-Net": name, "ms": f"{1e3 * took['plain']:.1f}",
                "faster, ms": f"{1e3 * took['faster']:.1f}",
                "difference": f"{largest(faster(), expected):.1e}"}
    if bench.device == "cuda":
        plain = partial(ours, x, t, context)
        yield row("ours, as a graph", plain, graph_of(plain))
    models: dict[str, tuple[nn.Module | None, Callable[[Any], Tensor]]] = {
        "ours": (ours, lambda out: out),
        "diffusers": (unet_of_diffusers(ours), lambda out: out.sample)}
    for name, (model, tensor_of) in models.items():
        if model is not None:
            fast, start = torch.compile(model, backend=backend), time.perf_counter()
            fast(x, t, context)
            seconds = time.perf_counter() - start
            calls = [lambda of=tensor_of, call=call: of(call(x, t, context))
                     for call in (model, fast)]
            yield {**row(f"{name}, compiled", *calls), "compiling, s": f"{seconds:.0f}"}


def main(device: str = "cuda") -> None:
    """Measure; a table that fails says so in its last row, and the others go on."""
    bench = Bench(device, REHEARSAL if device == "cpu" else GPU)
    until = time.monotonic() + 60 * MINUTES
    tables = dict[str, list[Row]]()
    for table in (TABLES[0], precision, *TABLES[1:], compiled):
        found = tables[(table.__doc__ or "").splitlines()[0].rstrip(".")] = list[Row]()

        def keep(row: Row, found: list[Row] = found) -> None:
            found.append(row)
            print(row, file=sys.stderr, flush=True)
            write_json(Path("gpu.json"), tables)
            write_text(Path("gpu.md"), "\n".join(
                f"## {title}\n\n{markdown(some)}" for title, some in tables.items()))
        try:
            begun = table(bench)
            while time.monotonic() < until and (row := next(begun, None)) is not None:
                keep(row)
            if time.monotonic() >= until:
                keep({"error": f"{MINUTES} minutes are over; what is missing was left out"})
        except Exception as err:      # whatever it is, the other tables are worth having
            keep({"error": " ".join(str(getattr(err, "stderr", None) or err)[-300:].split())})
    if broken := [title for title, found in tables.items() if any("error" in row for row in found)]:
        raise RuntimeError(f"{'; '.join(broken)}: ended in an error, see gpu.md")
