"""bench.py details: what the tables of bench.py method leave open.

Whether ways to learn that come nearer than the tools' do so with other seeds, too, and whether the parts of the method
help with other seeds; other ways to sample; how well the differences that a re-weighting could use rank a mask's
cells; gains of each defect's own on the scenes of the report; whether a background term teaches e_s the place; how
noisy the gradient is; other composites, and what a detector learns of the pairs. Rows are kept in the same folder as
those of bench.py method, which are read if they are there.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from einops import einsum
from scipy.stats import spearmanr
from torch import Tensor

from anomaly.dataset import Defect
from anomaly.output.console import Progress
from anomaly.output.quality import MEASURED, distance
from anomaly.reweight import constant, difference, paper
from anomaly.sampler import STEPS, blended_ddim
from benchmarks.compositing import composites
from benchmarks.detectors import detectors
from benchmarks.gradients import TIMES as GRADIENTS
from benchmarks.gradients import noises
from benchmarks.material import encoded
from benchmarks.method import BARE, BASE, COLUMNS, COMPARED, PLACES, calibrated, lines, nearest, places
from benchmarks.painting import Bench, Numbers, Row, Scale
from benchmarks.sampling import Half, fresh, from_the_surface, trailing
from benchmarks.tables import table
from benchmarks.variants import BACKGROUND, CONTROLS, NEARER, SEEDED, WIDE_BACKGROUND

TIMES = (901, 651, 351, 51)     # at which differences are ranked


def distances(bench: Bench, painting: Row) -> list[float]:
    """Of each defect from the real one."""
    found = []
    for defect in bench.defects:
        numbers = bench.row("tune", painting, defect, bench.scale.single)
        found.append(float(distance(*(np.mean(numbers[name]) for name in MEASURED))))
    return found


def seeds(bench: Bench, learned: tuple[str, ...], painting: Row) -> Iterator[list[str]]:
    """A way to learn a line: the mean, then the three seeds of the mean and of each defect."""
    for way in learned:
        of = np.array([distances(bench, replace(painting, name=name, variant=name)) for name in SEEDED[way]])
        cells = [" / ".join(f"{x:.2f}" for x in column) for column in (of.mean(axis=1), *of.T)]
        yield [way, f"{of.mean():.3f}", *cells]


def ways() -> list[Row]:
    """Other ways to sample; re-weighting in half of the steps, and together with guidance."""
    rows = [BASE, replace(BASE, name="new noise round the mask in every step", way=fresh),
            replace(BASE, name="started from q(y_T) inside the mask, too", way=from_the_surface),
            replace(BASE, name="trailing timesteps", way=trailing), Row("10 steps", steps=10),
            Row("10 steps, trailing", steps=10, way=trailing)]
    twice = partial(constant, gain=2.0)
    rows += [BARE, replace(BARE, name="no guidance, constant 2", weigh=twice),
             *(replace(BARE, name=f"no guidance, constant 2 in the {'second' if second else 'first'} half of the steps",
                       weigh=Half(twice, "constant 2", second)) for second in (False, True))]
    for scale in (1.5, 4.0):
        rows += [Row(f"guidance {scale:g}", guidance=scale)]
        rows += [Row(f"guidance {scale:g}, {weigh.func.__name__}, gain {weigh.keywords['gain']:g}", guidance=scale,
                     weigh=weigh) for weigh in (partial(constant, gain=COMPARED["gain"]), partial(paper, **COMPARED))]
    return rows


def correlations(a: Tensor, b: Tensor, cells: Tensor) -> list[float]:
    """Spearman's of two maps (n, h, w) over each scene's cells."""
    return [float(spearmanr(x[m], y[m]).statistic) for x, y, m in zip(a.double(), b.double(), cells)]


@torch.no_grad()
def ranked(bench: Bench, defect: Defect) -> Numbers:
    """How maps of the difference rank the mask's cells, against the decoded one; scenes painted with the defaults."""
    count = bench.scale.single[0]
    key = f"ranking/{defect.key}/{count}"
    if key in bench.found:
        return bench.found[key]
    (scene, _), sd = bench.material("tune", defect, count), bench.sd
    row, factor = bench.settled(BASE, defect), sd.vae.config.factor
    y_0, m, photographs = encoded(sd, scene.normal), scene.cells.float(), torch.stack([c.image for c in scene.normal])
    noise = torch.randn(y_0.shape, generator=torch.Generator().manual_seed(0))
    painting = blended_ddim(sd, y_0, m, noise, bench.context(row, defect, scene), bench.settings(row).guidance, STEPS,
                            bench.to_rgb)
    with Progress(f"ranking the cells of {defect.key}", STEPS) as progress:
        steps = list(progress.each(painting))

    def apart(picture: Tensor, other: Tensor) -> Tensor:
        return F.avg_pool2d((picture - other).square().sum(dim=1), factor)

    final = apart(sd.vae.decode(steps[-1].x0_hat), scene.normal_seen)
    numbers: Numbers = {}
    for (t, _), step in zip(sd.schedule.timesteps(STEPS), steps):
        if t not in TIMES:
            continue
        moved, decoded = step.x0_hat - y_0, sd.vae.decode(step.x0_hat)
        maps = {"latents": moved.square().sum(dim=1),
                "latent-to-RGB map": einsum(moved, bench.to_rgb, "b c h w, c rgb -> b rgb h w").square().sum(dim=1),
                "latent-to-RGB map, mean of 3 x 3 (the tools')": difference(step.x0_hat, y_0, m, bench.to_rgb),
                "decoded, from the photograph itself": apart(decoded, photographs),
                "decoded, of the last step": final}
        for name, values in maps.items():
            numbers[f"{name}/{t}"] = correlations(values, apart(decoded, scene.normal_seen), scene.cells)
    bench.keep(key, numbers)
    return numbers


def rankings(bench: Bench) -> Iterator[list[str]]:
    """A line a map and defect: means over the scenes."""
    for defect in bench.defects:
        numbers = ranked(bench, defect)
        for name in dict.fromkeys(key.rpartition("/")[0] for key in numbers):
            yield [defect.key, name, *(f"{np.mean(numbers[f'{name}/{t}']):.2f}" for t in TIMES)]


def main(folder: Path) -> None:
    """Print every table."""
    folder.mkdir(parents=True, exist_ok=True)
    seeded = [variant for names in SEEDED.values() for variant in names]
    bench = Bench(folder, Scale(variants=(*seeded, WIDE_BACKGROUND)))
    defects, single, main_scale = [d.key for d in bench.defects], bench.scale.single, bench.scale.main
    for title, learned, painting in (("own guidance", NEARER, BASE), ("no guidance", CONTROLS, BARE)):
        table([f"distance, {title}", "mean", "three seeds", *defects], seeds(bench, ("learned", *learned), painting))
    ranking = ["distance from the real defect", *defects, "mean", "mean less the tools'"]
    table(ranking, nearest(bench, "tune", ways(), single))
    table(COLUMNS, lines(bench, "tune", ways(), single, bench.defects))
    table(["defect", "difference", *(f"t = {t}" for t in TIMES)], rankings(bench))
    constants, maps = calibrated()
    own = [BASE, BARE, constants, maps]
    table(ranking, nearest(bench, "report", own, main_scale))
    table([*ranking[:-1], "mean less the constant's"], nearest(bench, "report", [maps], main_scale, constants))
    table(COLUMNS, lines(bench, "report", own, main_scale, bench.defects))
    table(PLACES, places(bench, (BACKGROUND, WIDE_BACKGROUND)))
    table(["defect", "e_a", *(f"t = {t}" for t in GRADIENTS), "eps and -eps", "two noises"], noises(bench))
    table(["composite", "defect", "colour", "histogram", "contrast", "fine texture", "the surface's texture"],
          composites(bench, BASE))
    table(["detector trained on", "defect", "average precision", "real defect marked", "rest of it",
           "D(E(y))", "false alarms"], detectors(bench, BASE))
