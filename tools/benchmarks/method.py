"""bench.py method: which parts of the method help, and whether adapting the weight to the difference does.

The demo's three defects are learned with the tools' own loop, in variants, and painted into new scenes whose real
defect is known. Rows differ from the base in one thing; what the defaults are was chosen on scenes of the label
"tune", and is reported on others. Every row is kept in the folder as soon as it is there: the same command goes on
where it was.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from anomaly.dataset import Defect
from anomaly.output.files import write_image
from anomaly.output.quality import MEASURED, contrast_ratio, distance, perimeter, share
from anomaly.output.sheets import mask_pixels, sheet, to_pixels
from anomaly.output.generate import paint_crops
from anomaly.reweight import constant, literal, paper, released
from anomaly.sampler import STEPS
from benchmarks.location import location
from benchmarks.painting import CAPTION, OBJECT, WORDS, Bench, Numbers, Recorder, Row, Scale
from benchmarks.tables import interval, paired, shown, table
from benchmarks.variants import WIDE_CROPS

QUICK = Scale((2, 2), (2, 1), (2, 2), 10, 3,
              ("learned", "unmasked loss", "without e_s", "e_s of a fixed mask"), (1.0, 2.0))
BASE = Row(f"base: learned, the defect's own guidance, {STEPS} steps, no re-weighting")
BARE = Row("no guidance", guidance=1.0)     # the paper's
GAINS, TAUS = (1.5, 2.0, 3.0), (0.5, 1.0)
COMPARED = {"gain": 1.5, "tau": 0.5}        # where adapting is compared with a constant scene by scene
UNGUIDED = ("without e_s", "e_s of a fixed mask", "a second seed", "a third seed")      # variants painted so, too
SEEN = [Defect("plastic", "glue", ()), Defect("metal", "scratch", ())]   # pretraining's own: what limits the rest
SHOWN = (1, 4, 8, 12, 16, 19)   # steps whose maps are shown
PLACES = ["defect", "learned", "IoU with the mirrored", "in the mask, mirrored", "in the mask, another's",
          "outside, mirrored", "outside, another's", "unblended"]
COLUMNS = ["row", "defect", "colour", "histogram", "fill", "fill, of the real", "contrast", "leak", "diversity"]


def single_changes(variants: tuple[str, ...]) -> list[Row]:
    """One thing at a time; re-weightings that only strengthen in the place of guidance."""
    rows = [BASE, *(replace(BASE, name=name, variant=name) for name in (WORDS, *variants)
                    if name not in ("learned", WIDE_CROPS))]
    rows += [BARE, *(Row(f"guidance {g:g}", guidance=g) for g in (1.5, 2.5, 4.0))]
    rows += [Row(f"{n} steps", steps=n) for n in (10, 20, 50) if n != STEPS]
    rows += [Row("negative prompt: the object", negative=OBJECT)]
    rows += [Row("literal", weigh=literal), replace(BARE, name="no guidance, released", weigh=released)]
    rows += [Row(f"paper, gain 1, tau {tau:g}", weigh=partial(paper, gain=1.0, tau=tau)) for tau in TAUS]
    for gain in GAINS:
        rows += [replace(BARE, name=f"no guidance, constant {gain:g}", weigh=partial(constant, gain=gain))]
        rows += [replace(BARE, name=f"no guidance, paper, gain {gain:g}, tau {tau:g}",
                         weigh=partial(paper, gain=gain, tau=tau)) for tau in TAUS]
    return rows + calibrated() + [replace(BARE, name=f"no guidance, {v}", variant=v) for v in UNGUIDED if v in variants]


def calibrated() -> list[Row]:
    """A gain of each defect's own, at which its contrast is that of its training photographs."""
    return [replace(BARE, name=f"no guidance, {weigh.__name__}, gain of the defect", calibrated=weigh)
            for weigh in (constant, paper)]


def main_rows() -> list[Row]:
    """The parts of the method, one after the other, without guidance but for the last."""
    compared, gain = partial(paper, **COMPARED), COMPARED["gain"]
    name = f"masked loss, e_s, paper, gain {gain:g}, tau {COMPARED['tau']:g}"
    return [replace(BARE, name=WORDS, variant=WORDS),
            replace(BARE, name="masked loss, without e_s", variant="without e_s"),
            replace(BARE, name="masked loss, e_s of a fixed mask", variant="e_s of a fixed mask"),
            replace(BARE, name="unmasked loss, e_s", variant="unmasked loss"),
            replace(BARE, name="masked loss, e_s"),
            replace(BARE, name="masked loss, e_s, painted with another scene's", another=True),
            replace(BARE, name=f"masked loss, e_s, constant {gain:g}", weigh=partial(constant, gain=gain)),
            replace(BARE, name=name, weigh=compared),
            replace(BARE, name=f"{name}, drawn again with its last map", weigh=compared, again=True),
            replace(BASE, name="masked loss, e_s, the defect's own guidance (the tools)")]


def line(name: str, defect: Defect, n: Numbers) -> list[str]:
    """A row of the table."""
    return [name, defect.key, shown(interval(share, n["colour"], n["whole colour"])),
            shown(interval(share, n["histogram"], n["whole histogram"])), f"{np.mean(n['fill']):.2f}",
            shown(interval(np.divide, n["fill"], n["real fill"])),
            shown(interval(contrast_ratio, n["contrast"], n["real contrast"])), f"{np.mean(n['leak']):.3f}",
            f"{np.mean(n['diversity']):.3f}" if "diversity" in n else ""]


def lines(bench: Bench, label: str, rows: list[Row], amount: tuple[int, int],
          defects: list[Defect], shape: str = "own") -> Iterator[list[str]]:
    """The rows of a table, defect by defect; what the real defect through the VAE reaches first."""
    for defect in defects:
        for row in rows:
            numbers = bench.row(label, row, defect, amount, shape)
            if row is rows[0]:
                nothing = {"colour": numbers["whole colour"], "histogram": numbers["whole histogram"]}
                real = dict.fromkeys(nothing, [0.0] * amount[0]) | {
                    "fill": numbers["real fill"], "contrast": numbers["real contrast"], "leak": [np.nan]}
                yield line("the real defect", defect, numbers | real)[:-2] + ["", ""]
            yield line(row.name, defect, numbers)


def nearest(bench: Bench, label: str, rows: list[Row], amount: tuple[int, int], less: Row = BASE) -> list[list[str]]:
    """Rows by their distance from the real defects, the nearest first; and less that of a row, scene by scene."""
    def columns(row: Row) -> list[list[list[float]]]:
        return [[bench.row(label, row, defect, amount)[name] for name in MEASURED] for defect in bench.defects]

    def apart(*means: np.ndarray) -> np.ndarray:
        halves = np.array(means).reshape(2, len(bench.defects), len(MEASURED), *np.shape(means[0]))
        of_row, of_base = (np.mean([distance(*part) for part in half], axis=0) for half in halves)
        return of_row - of_base

    base, found = sum(columns(less), []), []
    for row in rows:
        measured = columns(row)
        away = [interval(distance, *values) for values in measured]
        found.append((float(np.mean([middle for middle, *_ in away])), row.name, away,
                      interval(apart, *sum(measured, []), *base)))
    return [[name, *map(shown, away), f"{mean:.3f}", shown(less_base, 3)]
            for mean, name, away, less_base in sorted(found)]


def groups(bench: Bench, defect: Defect, shape: str, numbers: Numbers) -> dict[str, np.ndarray]:
    """Scenes by what may decide whether adapting helps: halves by irregularity, area, the real defect's faintness.

    And by how little is filled without re-weighting, whose numbers these are.
    """
    masks = bench.material("report", defect, bench.scale.main[0], shape)[0].masks
    area = masks.float().mean(dim=(1, 2)).numpy()
    values = {"irregular": np.array([perimeter(m) ** 2 / m.sum() for m in masks.numpy()]), "large": area,
              "faint": -np.array(numbers["whole colour"]), "underfilled": -np.array(numbers["fill"])}
    return {"all": np.ones(len(area), dtype=bool)} | {name: v > np.median(v) for name, v in values.items()}


def to_go(numbers: Numbers, column: str) -> np.ndarray:
    """How far each scene is from the real defect: too much fill is as wrong as too little."""
    values = np.array(numbers[column])
    return np.abs(values - numbers["real fill"]) if column == "fill" else values


def reweighted() -> list[Row]:
    """No re-weighting, the constant, the adaptive map of the same mean."""
    return [main_rows()[i] for i in (4, 6, 7)]


def adaptivity(bench: Bench) -> Iterator[list[str]]:
    """The adaptive map against the constant of the same mean and against no re-weighting, scene by scene."""
    plain, control, adapted = reweighted()
    scenes, noises = bench.scale.main
    for defect in bench.defects:
        for shape, amount in (("own", (scenes, noises)), ("branched", (scenes, 1))):
            a, b, c = (bench.row("report", row, defect, amount, shape) for row in (adapted, control, plain))
            for name, some in groups(bench, defect, shape, c).items():
                cells = [paired((to_go(a, column) - to_go(other, column))[some])
                         for other in (b, c) for column in ("fill", "colour", "histogram")]
                yield [defect.key, "branched" if shape == "branched" else "its own", name, str(some.sum()), *cells]


def found_in_training(bench: Bench, rows: list[Row]) -> Iterator[list[str]]:
    """Scales and gains of each defect, for the rows that have their own."""
    for row in rows:
        if row.calibrated:
            yield [f"gain: {row.name}", *(f"{bench.gain(d, row):.2f}" for d in bench.defects)]
        elif row.guidance is None and row.variant != WORDS and row.weigh is None and row.steps == BASE.steps:
            yield [f"guidance: {row.name}", *(f"{bench.settled(row, d).guidance:.2f}" for d in bench.defects)]


def places(bench: Bench, learned: tuple[str, ...]) -> Iterator[list[str]]:
    """What e_s knows of the place."""
    for defect in bench.defects:
        for variant in [v for v in learned if v in bench.scale.variants]:
            n = location(bench, variant, defect)
            wrong = [np.array(n[f"{where}, {name}"]) - np.array(n[f"{where}, right"])
                     for where in ("loss", "background") for name in ("mirrored", "another")]
            moved = np.array(n["change, right"]) - np.array(n["change, mirrored"])
            yield [defect.key, variant, f"{np.mean(n['overlap']):.2f}", *(paired(w, 5) for w in wrong), paired(moved)]


@torch.no_grad()
def maps(bench: Bench) -> list[tuple[str, list[np.ndarray]]]:
    """A row a defect: the normal surface, the mask, w_m at some of the steps, what was painted, the real defect."""
    rows = []
    for defect in bench.defects:
        scene, _ = bench.material("report", defect, bench.scale.main[0])
        record = Recorder(partial(paper, **COMPARED))
        settings = bench.settings(replace(BARE, weigh=record))
        noise = torch.randn((1, 4, *scene.cells.shape[1:]), generator=torch.Generator().manual_seed(0))
        context = bench.context(BARE, defect, scene)[:1]
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
    rows = single_changes(scale.variants)
    table(COLUMNS, lines(bench, "tune", rows, scale.single, bench.defects))
    ranking = ["distance from the real defect", *(d.key for d in bench.defects), "mean", "mean less the tools'"]
    table(ranking, nearest(bench, "tune", rows, scale.single))
    table(["found in training", *(d.key for d in bench.defects)], found_in_training(bench, rows))
    table(COLUMNS, lines(bench, "report", main_rows(), scale.main, bench.defects))
    table(ranking, nearest(bench, "report", main_rows(), scale.main))
    table(["defect", "masks", "scenes", "number", *(f"{x}, less {other}" for other in ("the constant", "none")
                                                    for x in ("fill", "colour", "histogram"))], adaptivity(bench))
    table(COLUMNS, lines(bench, "report", reweighted(), (scale.main[0], 1), bench.defects, "branched"))
    table(PLACES, places(bench, ("learned", WIDE_CROPS)))
    defaults = replace(BASE, name="the tools' defaults")
    table(COLUMNS, lines(bench, "defaults", [defaults], scale.defaults, bench.defects))
    captions = [Row(f"{CAPTION}, guidance {g:g}", CAPTION, guidance=g) for g in (1.0, 1.5, 2.5, 4.0)]
    table(COLUMNS, lines(bench, "report", captions, scale.single, SEEN))
    write_image(folder / "weight_maps.png", sheet(maps(bench)))
    print(f"\n{folder / 'weight_maps.png'}\n{bench.results}")
