"""bench.py method: which parts of the method help, and whether adapting the weight to the difference does.

The demo's three defects are learned with the tools' own loop, in variants, and painted into new scenes whose real
defect is known. Rows differ from the base in one thing; what the defaults are was chosen on scenes of the label
"tune", and is reported on others. Every row is kept in the folder as soon as it is there: the same command goes on
where it was.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomaly.dataset import Defect
from anomaly.output.files import write_image
from anomaly.output.quality import perimeter
from anomaly.output.sheets import mask_pixels, sheet, to_pixels
from anomaly.output.generate import Settings, paint_crops
from anomaly.reweight import GAIN, TAU, constant, literal, paper, released
from anomaly.sampler import GUIDANCE_SCALE, STEPS, Guidance
from benchmarks.location import location
from benchmarks.painting import VARIANTS, WORDS, Bench, Numbers, Recorder, Row, Scale
from benchmarks.tables import contrast_ratio, interval, paired, share, shown, table

QUICK = Scale(main=(4, 2), single=(3, 1), defaults=(4, 2), learning=25)
BASE = Row(f"base: learned, guidance {GUIDANCE_SCALE:g}, {STEPS} steps, no re-weighting")
ADAPTED = [(1.0, 0.5), (1.2, 0.5), (1.5, 0.5), (1.5, 1.0), (2.0, 0.5), (2.0, 1.0)]      # gain, tau
COMPARED = (1.5, 0.5)       # of them, where adapting is compared with a constant scene by scene
SHOWN = (1, 4, 8, 12, 16, 19)   # steps whose maps are shown


def single_changes() -> list[Row]:
    """One thing at a time."""
    rows = [BASE, *(Row(name, name) for name in (WORDS, *VARIANTS) if name != "learned")]
    rows += [Row(f"guidance {g:g}", guidance=g) for g in (1.0, 1.25, 2.0, 2.5, 4.0) if g != GUIDANCE_SCALE]
    rows += [Row(f"{n} steps", steps=n) for n in (10, 20, 50) if n != STEPS]
    rows += [Row("negative prompt: the object", negative="object")]
    rows += [Row("literal", weigh=literal), Row("released", weigh=released)]
    rows += [Row(f"constant {g:g}", weigh=partial(constant, gain=g)) for g in (1.2, 1.5, 2.0)]
    rows += [Row(f"paper, gain {g:g}, tau {tau:g}", weigh=partial(paper, gain=g, tau=tau)) for g, tau in ADAPTED]
    rows += [Row(f"{w.__name__}, gain of the defect", calibrated=w) for w in (constant, paper)]
    return rows


def main_rows() -> list[Row]:
    """The parts of the method, one after the other."""
    gain, tau = COMPARED
    return [Row(WORDS, WORDS), Row("unmasked loss", "unmasked loss"), Row("masked loss, without e_s", "without e_s"),
            Row("masked loss, e_s"), Row(f"+ constant {gain:g}", weigh=partial(constant, gain=gain)),
            Row(f"+ paper, gain {gain:g}, tau {tau:g}", weigh=partial(paper, gain=gain, tau=tau)),
            Row("+ the same, drawn again with its last map", weigh=partial(paper, gain=gain, tau=tau), again=True)]


def line(name: str, defect: Defect, n: Numbers) -> list[str]:
    """A row of the table."""
    return [name, defect.key, shown(interval(share, n["colour"], n["whole colour"])),
            shown(interval(share, n["histogram"], n["whole histogram"])), shown(interval(np.asarray, n["fill"])),
            shown(interval(contrast_ratio, n["contrast"], n["real contrast"])), f"{np.mean(n['leak']):.3f}",
            f"{np.mean(n['diversity']):.3f}" if "diversity" in n else ""]


def lines(bench: Bench, label: str, rows: list[Row], amount: tuple[int, int]) -> Iterator[list[str]]:
    """The rows of a table, defect by defect; what the real defect through the VAE reaches first."""
    for defect in bench.defects:
        for row in rows:
            numbers = bench.row(label, row, defect, amount)
            if row is rows[0]:
                nothing = {"colour": numbers["whole colour"], "histogram": numbers["whole histogram"]}
                real = dict.fromkeys(nothing, [0.0] * amount[0]) | {
                    "fill": numbers["real fill"], "contrast": numbers["real contrast"], "leak": [np.nan]}
                yield line("the real defect", defect, numbers | real)[:-2] + ["", ""]
            yield line(row.name, defect, numbers)


def groups(bench: Bench, defect: Defect, shape: str, numbers: Numbers) -> dict[str, np.ndarray]:
    """Scenes by what may decide whether adapting helps: halves by irregularity, by area, by the defect's contrast."""
    masks = bench.material("report", defect, bench.scale.main[0], shape)[0].masks
    area = masks.float().mean(dim=(1, 2)).numpy()
    values = {"irregular": np.array([perimeter(m) ** 2 / m.sum() for m in masks.numpy()]), "large": area,
              "faint": -np.array(numbers["whole colour"]), "underfilled": -np.array(numbers["fill"])}
    return {"all": np.ones(len(area), dtype=bool)} | {name: v > np.median(v) for name, v in values.items()}


def adaptivity(bench: Bench) -> Iterator[list[str]]:
    """The adaptive map against the constant of the same mean, scene by scene."""
    control, adapted = main_rows()[4:6]
    for defect in bench.defects:
        for shape in ("own", "branched"):
            a, b = (bench.row("report", row, defect, bench.scale.main, shape) for row in (adapted, control))
            for name, some in groups(bench, defect, shape, b).items():
                cells = [paired(np.array(a[column])[some] - np.array(b[column])[some])
                         for column in ("fill", "colour", "histogram")]
                yield [defect.key, "branched" if shape == "branched" else "its own", name, str(some.sum()), *cells]


def places(bench: Bench) -> Iterator[list[str]]:
    """What e_s knows of the place."""
    for defect in bench.defects:
        for variant in ("learned", "background 0.3"):
            n = location(bench, variant, defect)
            wrong = [np.array(n[f"loss, {name}"]) - np.array(n["loss, right"]) for name in ("mirrored", "another")]
            moved = np.array(n["change, right"]) - np.array(n["change, mirrored"])
            yield [defect.key, variant, *(paired(w, 5) for w in wrong), paired(moved)]


@torch.no_grad()
def maps(bench: Bench) -> list[tuple[str, list[np.ndarray]]]:
    """A row a defect: the normal surface, the mask, w_m at some of the steps, what was painted, the real defect."""
    rows = []
    for defect in bench.defects:
        scene, _ = bench.material("report", defect, bench.scale.main[0])
        record = Recorder(paper)
        settings = Settings(bench.size, STEPS, Guidance(GUIDANCE_SCALE, bench.sd.context("")), bench.to_rgb, record)
        noise = torch.randn((1, 4, *scene.cells.shape[1:]), generator=torch.Generator().manual_seed(0))
        context = bench.context(BASE, defect, scene)[:1]
        painted = paint_crops(bench.sd, scene.normal[:1], context, noise, settings)
        weights = [heat(record.answers[n - 1][0].numpy(), scene.cells[0].numpy()) for n in SHOWN]
        rows.append((f"{defect.key}: normal, mask, w_m at steps {', '.join(str(n + 1) for n in SHOWN)} of {STEPS}, "
                     f"painted, real", [to_pixels(scene.normal_seen[0]), mask_pixels(scene.masks[0]), *weights,
                                        to_pixels(painted[0]), to_pixels(scene.real_seen[0])]))
    return rows


def heat(weight: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """w_m as a picture: black 0, orange 1.5, white 3 or more; grey outside the mask."""
    v = np.clip(weight / 3, 0, 1)
    rgb = np.stack([np.clip(2 * v, 0, 1), v, np.clip(2 * v - 1, 0, 1)], axis=-1)
    rgb[~cells] = 0.25
    return np.asarray(Image.fromarray((255 * rgb).astype(np.uint8)).resize((128, 128), Image.Resampling.NEAREST))


def main(folder: Path, quick: bool) -> None:
    """Print every table."""
    scale = QUICK if quick else Scale()
    folder.mkdir(parents=True, exist_ok=True)
    bench = Bench(folder, scale)
    columns = ["row", "defect", "colour", "histogram", "fill", "contrast", "leak", "diversity"]
    table(columns, lines(bench, "tune", single_changes(), scale.single))
    table(columns, lines(bench, "report", main_rows(), scale.main))
    table(["defect", "masks", "scenes", "number", "fill", "colour", "histogram"], adaptivity(bench))
    table(["defect", "learned", "mirrored mask", "another mask", "unblended"], places(bench))
    defaults = Row("the tools' defaults", weigh=partial(paper, gain=GAIN, tau=TAU))
    table(columns, lines(bench, "defaults", [defaults], scale.defaults))
    write_image(folder / "weight_maps.png", sheet(maps(bench)))
    print(f"\n{folder / 'weight_maps.png'}\n{bench.results}")
