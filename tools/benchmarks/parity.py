"""bench.py parity: our Stable Diffusion beside diffusers' and transformers', at full size.

Random models of the three families are written in each published layout. diffusers and transformers
read a file and run its parts, then `weights.load` reads the same file and ldm/ runs them; what is
printed is the largest difference over the largest value. Loading itself is measured beside it: time
against diffusers', memory against the size of the weights.
"""

import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import diffusers
import torch
import transformers
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextModel

from anomaly.sampler import Guidance, ddim
from benchmarks.loading import Loading, measure
from benchmarks.measuring import largest
from benchmarks.original_layout import write_original
from benchmarks.random_models import FULL, Family, write_folder
from ldm.model import StableDiffusion
from weights import load
from weights.checkpoint import PARTS

LIMIT = 1e-4        # largest difference over largest value, float32
PEAK_LIMIT = 1.2    # anonymous memory of loading over the size of the weights
GRID = (24, 32)     # latent cells: 192 x 256 pixels, neither square nor a power of two
STEPS = 10          # of DDIM
PROMPTS = ["a photo of a crack", "hello! " * 40]
OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
Reference = tuple[UNet2DConditionModel, AutoencoderKL, CLIPTextModel]


def write_old(folder: Path, path: Path) -> Path:
    """The folder as of old: .fp16. files, old names in the VAE, "text_model." before its keys."""
    shutil.copytree(folder, path, ignore=shutil.ignore_patterns("*.safetensors"))
    for part, name in PARTS.items():
        tensors = load_file(folder / part / f"{name}.safetensors")
        out = {}
        for key, tensor in tensors.items():
            for new, old in OLD_ATTENTION.items() if part == "vae" else ():
                key = key.replace(f".attentions.0.{new}.", f".attentions.0.{old}.")
            out[f"text_model.{key}" if part == "text_encoder" else key] = tensor.half()
        if part == "text_encoder":
            out["text_model.embeddings.position_ids"] = torch.arange(77)[None]
        save_file(out, path / part / f"{name}.fp16.safetensors")
    return path


def write_single(family: Family, folder: Path, path: Path) -> Path:
    """The original single file, and for SD 2.x the configuration that says eps or v."""
    path = path.with_suffix(".safetensors")
    write_original(folder, path, family.second)
    if family.second:
        kind = "v" if family.prediction_type == "v_prediction" else "eps"
        path.with_suffix(".yaml").write_text(f'model:\n  params:\n    parameterization: "{kind}"\n')
    return path


def read_folder(path: Path, variant: str | None) -> Reference:
    """diffusers' own loading of a folder, float32; as with `load`, also tokenizer and scheduler."""
    pipe = StableDiffusionPipeline.from_pretrained(path, variant=variant, dtype=torch.float32,
                                                   local_files_only=True)
    return pipe.unet, pipe.vae, pipe.text_encoder


def read_single(path: Path, folder: Path) -> Reference:
    """diffusers' own loading of a single file; without a network, the sizes are the folder's."""
    pipe = StableDiffusionPipeline.from_single_file(
        str(path), config=str(folder), local_files_only=True, safety_checker=None)
    return pipe.unet, pipe.vae, pipe.text_encoder


def check_read_back(reference: Reference, folder: Path) -> None:
    """RuntimeError unless diffusers found in the single file exactly the weights of the folder."""
    for model, (part, name) in zip(reference, PARTS.items()):
        found, expected = model.state_dict(), load_file(folder / part / f"{name}.safetensors")
        found = {key.removeprefix("text_model."): tensor for key, tensor in found.items()}
        if (found.keys() != expected.keys()
                or any(not torch.equal(found[key], expected[key]) for key in expected)):
            raise RuntimeError(f"{part}: diffusers reads other weights from the single file than "
                               f"were written; tools/benchmarks/original_layout.py is wrong")


def pictures(channels: int, height: int, width: int) -> dict[str, Tensor]:
    """A batch of two, noisy and flat: flat ones show a norm's eps, which noise hides."""
    rng = torch.Generator().manual_seed(1)
    noise = torch.randn((2, channels, height, width), generator=rng)
    return {"noisy": noise.clamp(-1, 1) if channels == 3 else noise, "flat": 0.3 + 1e-3 * noise}


def outputs(text: Callable, unet: Callable, encode: Callable, decode: Callable,
            sample: Callable, ids: Tensor) -> Iterator[tuple[str, Tensor]]:
    """Every part on the same inputs, by column of the table."""
    context = text(ids)
    yield "text", context
    for kind, x_t in pictures(4, *GRID).items():
        yield f"U-Net {kind}", unet(x_t, torch.tensor([981, 21]), context)
    for kind, image in pictures(3, 8 * GRID[0], 8 * GRID[1]).items():
        yield f"encode {kind}", encode(image)
    for kind, latents in pictures(4, *GRID).items():
        yield f"decode {kind}", decode(latents)
    yield f"DDIM {STEPS}", sample(pictures(4, *GRID)["noisy"][:1], context[:1])


def reference_outputs(reference: Reference, scheduler: DDIMScheduler,
                      ids: Tensor) -> dict[str, Tensor]:
    """What diffusers and transformers give."""
    unet, vae, text = (model.eval() for model in reference)
    scale = 0.18215

    def encode(image: Tensor) -> Tensor:
        posterior = vae.encode(image).latent_dist
        return torch.cat([posterior.mean, posterior.std]) * scale

    def sample(x_t: Tensor, context: Tensor) -> Tensor:
        scheduler.set_timesteps(STEPS)
        for t in scheduler.timesteps:
            x_t = scheduler.step(unet(x_t, t, context).sample, t, x_t).prev_sample
        return x_t

    with torch.no_grad():
        return dict(outputs(
            lambda i: text(i).last_hidden_state, lambda x, t, c: unet(x, t, c).sample,
            encode, lambda z: vae.decode(z / scale).sample,
            sample, ids))


def our_outputs(sd: StableDiffusion, ids: Tensor) -> dict[str, Tensor]:
    """What ldm/ gives."""
    with torch.no_grad():
        return dict(outputs(
            lambda i: sd.text_encoder.encode(sd.text_encoder.embed(i)), sd.unet,
            lambda image: torch.cat(sd.vae.encode(image)), sd.vae.decode,
            lambda x, c: ddim(sd, x, c, Guidance(1.0, c), STEPS), ids))


def compare(family: Family, scratch: Path) -> Iterator[tuple[str, dict[str, float], Loading]]:
    """(layout, differences by column, loading) of a random model of the family in each layout."""
    folder = scratch / "folder"
    write_folder(family, folder)
    layouts = {
        "folder": (lambda path: folder,
                   lambda path: read_folder(path, None)),
        "old folder, .fp16.": (lambda path: write_old(folder, path),
                               lambda path: read_folder(path, "fp16")),
        "single file": (lambda path: write_single(family, folder, path),
                        lambda path: read_single(path, folder)),
    }
    for number, (layout, (write, read)) in enumerate(layouts.items()):
        path = write(scratch / str(number))
        reference = read(path)
        if path.is_file():
            check_read_back(reference, folder)
        scheduler = DDIMScheduler.from_pretrained(folder / "scheduler")
        sd = load(path)
        ids = sd.tokenizer(PROMPTS)
        expected = reference_outputs(reference, scheduler, ids)
        del reference
        found = our_outputs(sd, ids)
        del sd
        differences = {name: largest(found[name], expected[name]) for name in expected}
        yield layout, differences, measure(path, read)
        if path != folder:
            path.unlink() if path.is_file() else shutil.rmtree(path)


def print_table(columns: Collection[str], rows: list[tuple[str, str, list[str]]]) -> None:
    """Markdown: model and layout, then the columns."""
    print(f"| model | layout | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 2)}")
    for model, layout, cells in rows:
        print(f"| {model} | {layout} | {' | '.join(cells)} |")


def main() -> None:
    """Print the two tables; RuntimeError if a difference or a peak of memory passes its limit."""
    for package in (diffusers.utils.logging, transformers.utils.logging):
        package.set_verbosity_error()
        package.disable_progress_bar()
    rows, loads = [], []
    for family in FULL:
        with tempfile.TemporaryDirectory() as scratch:
            for layout, differences, loading in compare(family, Path(scratch)):
                print(f"{family.name}, {layout}: {max(differences.values()):.1e}; {loading}",
                      file=sys.stderr)
                rows.append((family.name, layout, differences))
                loads.append((family.name, layout, loading))
    print_table(rows[0][2], [(model, layout, [f"{value:.1e}" for value in differences.values()])
                             for model, layout, differences in rows])
    print()
    print_table(Loading.COLUMNS, [(model, layout, loading.cells())
                                  for model, layout, loading in loads])
    worst = max((max(d.values()), model, layout) for model, layout, d in rows)
    if not worst[0] <= LIMIT:
        raise RuntimeError(f"{worst[1]}, {worst[2]}: largest difference {worst[0]:.1e}, "
                           f"expected {LIMIT} at most")
    worst = max((max(loading.peaks.values()), model, layout) for model, layout, loading in loads)
    if not worst[0] <= PEAK_LIMIT:
        raise RuntimeError(f"{worst[1]}, {worst[2]}: loading takes {worst[0]:.2f} times the memory "
                           f"of the weights, expected {PEAK_LIMIT} at most")
