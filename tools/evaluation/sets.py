"""Numbers of pairs as a set: how varied they are, whether they copy, how their masks are.

What needs weights that were not given, or a package that is not there, is n/a, with the reason.
"""

import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from torch import Tensor

from anomaly.crop import defect_crop, take
from anomaly.dataset import Defect, Example, read_example, read_example_mask
from anomaly.files.photographs import read_photograph
from anomaly.mask_model import mask_picture, refusal, shape_of
from anomaly.progress import Report, each
from anomaly.runs.gating import load_gate
from anomaly.runs.run_folder import Run, load_masks
from anomaly.scores.lpips import SIDE, expected_shapes, ic_lpips, looks
from anomaly.scores.pair_scores import cosines, features
from ldm.model import StableDiffusion

FEW = 10            # pictures that the scores of torch-fidelity need: it divides them into ten
NEEDS_VGG = "n/a: give --vgg, VGG-16 and the heads of LPIPS as safetensors"
NEEDS_INCEPTION = "n/a: give --inception, torch-fidelity's weights"


def read_vgg(paths: list[Path]) -> dict[str, Tensor]:
    """The weights that LPIPS needs from one or more safetensors files; ValueError if one lacks."""
    found: dict[str, Tensor] = {}
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                found |= {key: file.get_tensor(key).float() for key in file.keys()}
        except (SafetensorError, OSError) as err:
            raise ValueError(f"{path}: no safetensors file ({err}); save the published weights "
                             f"with safetensors.torch.save_file") from None
    for key, shape in expected_shapes().items():
        if key not in found or tuple(found[key].shape) != shape:
            there = "missing" if key not in found else f"of the shape {tuple(found[key].shape)}"
            raise ValueError(f"--vgg: {key} is {there}, expected {shape}; give torchvision's "
                             f"VGG-16 (features.*) and LPIPS's heads (lin*.model.1.weight)")
    return {key: found[key] for key in expected_shapes()}


def crop_of(example: Example, size: int) -> tuple[Tensor, Tensor]:
    """Image (3, size, size) and mask of an example, in the defect's crop."""
    photograph, mask = read_example(example)
    view = take(photograph, mask, defect_crop(mask, size), size, 1)
    return view.image, view.mask


def whole_image(path: Path) -> Tensor:
    """(3, SIDE, SIDE), as the authors' script sees a photograph."""
    picture = Image.fromarray(read_photograph(path)).convert("RGB").resize(
        (SIDE, SIDE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1).float() / 127.5 - 1


def spread_of(found: Tensor) -> str:
    """1 less the mean cosine between two; 0: all alike, 1: unrelated."""
    if len(found) < 2:
        return "n/a: one picture"
    among = cosines(found, found)
    return f"{1 - float((among.sum() - len(found)) / (len(found) * (len(found) - 1))):.2f}"


def ic_rows(run_defect: Defect, pairs: Defect, normals: dict[Path, Path],
            weights: dict[str, Tensor], seed: int) -> Iterator[tuple[str, str]]:
    """IC-LPIPS of whole photographs, of crops, and of the photographs that were painted into."""
    def clustered(pictures: list[Callable[[], Tensor]], centres: list[Callable[[], Tensor]]) -> str:
        if len(pictures) < 2:
            return "n/a: fewer than two pictures"
        value = ic_lpips(lambda i: looks(weights, pictures[i]()[None]), len(pictures),
                         torch.cat([looks(weights, one()[None]) for one in centres]), seed)
        return "n/a: no cluster of two" if value is None else f"{value:.3f}"
    real = [lambda e=e: whole_image(e.image) for e in run_defect.examples]
    yield "IC-LPIPS, photographs", clustered(
        [lambda e=e: whole_image(e.image) for e in pairs.examples], real)
    yield "IC-LPIPS, crops", clustered(*(
        [lambda e=e: crop_of(e, SIDE)[0] for e in some.examples] for some in (pairs, run_defect)))
    known = [normals[e.image.resolve()] for e in pairs.examples if e.image.resolve() in normals]
    yield "IC-LPIPS, normals alone", clustered([lambda p=p: whole_image(p) for p in known], real)


def fidelity_rows(real: Defect, pairs: Defect, inception: Path) -> Iterator[tuple[str, str]]:
    """Inception score and KID of mask crops, by torch-fidelity."""
    try:
        from torch_fidelity import calculate_metrics
    except ImportError as err:
        yield "IS, KID", f"n/a: torch-fidelity cannot be imported ({err})"
        return
    if min(len(real.examples), len(pairs.examples)) < FEW:
        yield "IS, KID", f"n/a: fewer than {FEW} pairs, or photographs learned from"
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, some in (("pairs", pairs), ("real", real)):
            for i, example in enumerate(some.examples):
                image = crop_of(example, SIDE)[0]
                path = Path(folder) / name / f"{i:05}.png"
                path.parent.mkdir(exist_ok=True)
                Image.fromarray(((image + 1) * 127.5).round().clamp(0, 255).byte().permute(
                    1, 2, 0).numpy()).save(path)
        try:
            found = calculate_metrics(
                input1=f"{folder}/pairs", input2=f"{folder}/real", isc=True, kid=True,
                verbose=False, cuda=False, feature_extractor_weights_path=str(inception),
                kid_subset_size=min(len(real.examples), len(pairs.examples)))
        except Exception as err:        # whatever another's library stumbles on
            yield "IS, KID", f"n/a: torch-fidelity: {' '.join(str(err).split())}"
            return
    yield "IS, crops", f"{found['inception_score_mean']:.2f}"
    yield "KID x 1000, crops", f"{1000 * found['kernel_inception_distance_mean']:.1f}"


def set_rows(sd: StableDiffusion, run: Run, defects: list[Defect], normals: dict[Path, Path],
             judged: list[dict[str, str]], vgg: dict[str, Tensor] | None, inception: Path | None,
             report: Report) -> Iterator[tuple[str, str, str]]:
    """object/defect, what, how much. defects: of the pairs; judged: their rows by the gate."""
    known, size, factor = {d.stem: d for d in run.defects}, run.config["size"], sd.vae.config.factor
    for pairs in each(defects, "comparing sets", len(defects), report):
        real, gate = known[pairs.stem], load_gate(run, known[pairs.stem])
        looked = [torch.cat([features(sd.vae, *(part[None] for part in crop_of(e, size)))
                             for e in some.examples]) for some in (pairs, real)]
        pair_spread, real_spread = (spread_of((f - gate.centre) / gate.scale) for f in looked)
        yield pairs.key, "diversity (0 alike, 1 unrelated)", f"{pair_spread}; real {real_spread}"
        own = [row for row in judged if row["defect"] == pairs.name
               and row["object"] == pairs.object]
        copied = sum(float(row["copy"]) > gate.copy for row in own)
        yield pairs.key, "copies of a training photograph", f"{copied} of {len(own)}"
        shapes = [shape_of(mask_picture(m, size, factor).mask, factor)
                  for m in load_masks(run, real)]
        refused = Counter(filter(None, (refusal(mask_picture(read_example_mask(e), size,
                                                             factor).mask, shapes, factor)
                                        for e in pairs.examples)))
        why = ", ".join(f"{name} {count}" for name, count in refused.most_common())
        yield pairs.key, "masks within the real ones' range", (
            f"{len(pairs.examples) - refused.total()} of {len(pairs.examples)}"
            + (f"; beyond it: {why}" if why else ""))
        rows = [("IC-LPIPS", NEEDS_VGG)] if vgg is None else ic_rows(real, pairs, normals, vgg, 0)
        for name, value in rows:
            yield pairs.key, name, value
        for name, value in [("IS, KID", NEEDS_INCEPTION)] if inception is None else \
                fidelity_rows(real, pairs, inception):
            yield pairs.key, name, value
