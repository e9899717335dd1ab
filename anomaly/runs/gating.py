"""RUN/gate.json, RUN/gate.safetensors: each defect's gate, from the run's own photographs."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from anomaly.crop import to_image
from anomaly.dataset import Defect
from anomaly.files.atomic_files import misfit, read_json, write_json
from anomaly.painter import Settings, paint_crops
from anomaly.runs.run_folder import COUNT, Run, load_module, save_module
from anomaly.runs.sheets import to_pixels
from anomaly.sampler import Guidance
from anomaly.scores.gate import Gate, Material, calibrate
from anomaly.scores.surfaces import Framed, frames_of
from ldm.model import StableDiffusion

EMPTIES, BATCH = 12, 4      # empty paintings a defect at most; pictures at a time
TENSORS = "centre", "scale", "known", "high_passes", "cores"
NUMBERS = {"least": float, "visible": float, "alike": float, "grain": [float, float], "copy": float,
           "photographs": COUNT, "empties": float, "surfaces": (float, None)}


def composited(frames: list[Framed], painted: Tensor) -> Tensor:
    """The crops with what was painted (n, 3, size, size) in their masks, as pairs have it.

    Through the photograph's own resolution and bytes, as in anomaly/pairs/composite.py: what is
    finer than the photograph does not stay so.
    """
    found = torch.empty_like(painted)
    for frame, picture, out in zip(frames, painted, found):
        pixels = Image.fromarray(to_pixels(picture, frame.grey))
        small = np.asarray(pixels.resize((frame.side,) * 2, Image.Resampling.BICUBIC))
        out[:] = torch.where(frame.view.mask, to_image(small, len(out[0])), frame.view.image)
    return found


@torch.no_grad()
def gate_of(sd: StableDiffusion, defect: Defect, settings: Settings) -> Gate:
    """A defect's gate. It rests on the photographs, the VAE and what an empty prompt paints.

    settings: with the empty prompt as its negative one; its scale does not matter.
    """
    real, surfaces = frames_of(defect, settings.size, sd.vae.config.factor)
    images, masks = (torch.stack([getattr(frame.view, name) for frame in real + surfaces])
                     for name in ("image", "mask"))
    through = [sd.vae.decode(sd.vae.encode(some.to(sd.device))[0])
               for some in torch.split(images, BATCH)]
    painted = composited(real + surfaces, torch.cat(through).float().cpu())
    n, uncond, empties = len(real), settings.guidance.uncond_context, []
    noise = torch.randn((EMPTIES, sd.unet.config.latent_channels, *real[0].view.cells.shape),
                        generator=torch.Generator().manual_seed(0))
    for i in range(0, min(n, EMPTIES), BATCH):
        views = [frame.view for frame in real[i:i + BATCH]]
        empties.append(paint_crops(sd, views, uncond.expand(len(views), -1, -1),
                                   noise[i:i + len(views)],
                                   replace(settings, guidance=Guidance(1.0, uncond))))
    return calibrate(sd.vae, Material(
        images[:n], masks[:n], painted[:n], composited(real, torch.cat(empties).float().cpu()),
        images[n:], masks[n:], painted[n:]))


def _made(run: Run) -> dict[str, object]:
    return {"weights_sha256": run.config["weights_sha256"], "steps": run.config["options"]["steps"]}


def save_gates(run: Run, gates: dict[str, Gate]) -> None:
    """RUN/gate.json, for people and for load_gate, and its tensors; gates by stem."""
    save_module(run, "gate", {f"{stem}|{name}": getattr(gate, name)
                              for stem, gate in gates.items() for name in TENSORS})
    write_json(run.folder / "gate.json", {**_made(run), "defects": {
        stem: {name: value for name, value in vars(gate).items() if name not in TENSORS}
        for stem, gate in gates.items()}})


def load_gate(run: Run, defect: Defect) -> Gate:
    """What save_gates wrote; ValueError or FileNotFoundError where it is not this run's."""
    path, tensors = run.folder / "gate.json", load_module(run, "gate", begin=f"{defect.stem}|")
    try:
        found = read_json(path, {}, "")
        fields: dict[str, Any] = {**found["defects"][defect.stem], **{
            name: tensors[f"{defect.stem}|{name}"] for name in TENSORS}}
        if {name: found[name] for name in _made(run)} != _made(run):
            raise ValueError("made by another model or after another number of steps")
        if problem := misfit(fields, NUMBERS):
            raise ValueError(problem)
        gate = Gate(**{**fields, "grain": tuple(fields["grain"])})
        sides = [some.shape for some in (gate.centre, gate.scale, gate.known[0], gate.cores)]
        if sides[1:] != [sides[0], sides[0], gate.high_passes.shape]:
            raise ValueError("its tensors do not belong together")
        return gate
    except (OSError, ValueError, KeyError, TypeError, IndexError, RecursionError) as err:
        raise ValueError(f"{path}: no gate of {defect.key} in this run ({type(err).__name__}: "
                         f"{err}); run train_embed.py with --resume") from None
