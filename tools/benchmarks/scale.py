"""What a thousand pairs a defect cost beside the U-Net's arithmetic, which a stub leaves out.

Everything else is the product's own: the embedded checkpoint's VAE, the gate, the files.
"""

import os
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from anomaly.dataset import Defect, find_defects, first_third
from anomaly.drawn.demo import demo_data
from anomaly.files.atomic_files import write_rows
from anomaly.pairs import PairFolder, paint, training_masks
from anomaly.pairs.manifest import COLUMNS, Manifest, Shard, manifest_rows, names_of
from anomaly.pairs.review import picture
from anomaly.runs import learn
from anomaly.runs.run_folder import Run
from ldm.model import StableDiffusion
from weights import TINY, load

FEW, MANY = 10, 1000        # pairs of a defect
DEFECTS = 73                # of MVTec AD
APPENDED = 200              # rows, timed


def resident() -> float:
    """MiB of this process."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2 ** 20


def painting(sd: StableDiffusion, run: Run, out: Path, defect: Defect) -> list[tuple[str, str]]:
    """Rows of one process that paints MANY pairs: memory after FEW, time at begin and end."""
    times, memory = [time.process_time()], []
    for _ in paint(sd, run, PairFolder(out, {"seed": 0}), defects=[defect], n=MANY, steps=1,
                   masks=training_masks, gate="mark", tries=1):
        times.append(time.process_time())
        memory.append(resident())
    first, last = times[208] - times[8], times[MANY] - times[MANY - 200]
    return [("memory after 10 pairs, after 1,000", f"{memory[FEW - 1]:.0f} MiB, "
                                                   f"{memory[-1] - memory[FEW - 1]:+.0f} MiB"),
            ("processor time of the last 200 pairs over the first 200's", f"{last / first:.2f}")]


def crowd(out: Path) -> None:
    """Fill a folder of pairs up to MANY of DEFECTS defects, with links to a pair of each."""
    rows = manifest_rows(out)
    first = rows[0]
    for i in range(DEFECTS - len({row["defect"] for row in rows})):
        for part in ("test", "ground_truth"):
            (out / f"other{i}/{part}/{first['defect']}").mkdir(parents=True)
        for k in range(MANY):
            names = {"image": f"other{i}/test/{first['defect']}/{k:05}.png",
                     "mask": f"other{i}/ground_truth/{first['defect']}/{k:05}_mask.png"}
            for kind, name in names.items():    # a file system has a limit of links to one file
                (os.link if k else shutil.copy)(out / first[kind], out / name)
            shown = [out / picture(object_, first["defect"], int(at)) for object_, at in
                     ((first["object"], first["k"]), (f"other{i}", k))]
            for suffix in (".jpg", ".svg"):
                shown[1].parent.mkdir(parents=True, exist_ok=True)
                (os.link if k else shutil.copy)(*(path.with_suffix(suffix) for path in shown))
            first = {**first, **names, "object": f"other{i}", "k": str(k)}
            rows.append(first)
    write_rows(out / "_meta/manifest.csv", COLUMNS, rows)


def append_seconds(out: Path) -> float:
    """Of one row, the median of many, by a worker of its own."""
    manifest, times = Manifest(out, Shard(0, 1)), []
    image, mask = names_of("x", "y", 0)
    row = {**dict.fromkeys(COLUMNS, ""), "image": image, "mask": mask, "object": "x", "defect": "y",
           "k": 0}
    with manifest.worker(""):
        for _ in range(APPENDED):
            start = time.perf_counter()
            manifest.append(row)
            times.append(time.perf_counter() - start)
    with manifest.quiet():
        manifest.merge(manifest_rows(out)[:-1])
    return float(np.median(times))


def beginning(sd: StableDiffusion, run: Run, out: Path, defect: Defect) -> tuple[float, float]:
    """Seconds until a folder's next block is begun, and until a command with no work has ended."""
    start, begun = time.perf_counter(), []

    def report(label: str, done: int, total: int, note: str) -> None:
        if label.startswith("painting") and not begun:
            begun.append(time.perf_counter() - start)
    _ = list(paint(sd, run, PairFolder(out, {"seed": 0}), defects=[defect], n=MANY, steps=1,
                   masks=training_masks, tries=1, report=report))
    return begun[0], time.perf_counter() - start


def main() -> None:
    """Print the table."""
    sd = load(TINY)
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "out"
        defect = find_defects(demo_data(Path(scratch) / "demo"))[0]
        learned = replace(defect, examples=first_third(defect)[0])
        run = learn(sd, [learned], Path(scratch) / "run", steps=1, mask_model=False)
        sd.unet.forward = lambda x_t, t, context, weight_map=None: torch.zeros_like(x_t)
        rows = painting(sd, run, out, run.defects[0])
        print("painted", file=sys.stderr)
        alone, begun = append_seconds(out), beginning(sd, run, out, run.defects[0])
        crowd(out)
        crowded, late = append_seconds(out), beginning(sd, run, out, run.defects[0])
    many = f"{MANY * DEFECTS:,}"
    rows += [(f"a row more beside 1,000 rows, beside {many}", f"{1e6 * alone:.0f} us, "
                                                              f"{1e6 * crowded:.0f} us"),
             (f"beginning beside 1,000 pairs, beside {many}", f"{begun[0]:.1f} s, {late[0]:.1f} s"),
             (f"a command with nothing to do, beside {many}", f"{late[1]:.1f} s")]
    print("| what | measured |\n|---|---|")
    print(*(f"| {what} | {value} |" for what, value in rows), sep="\n")
