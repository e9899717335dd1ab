"""Any folder of pairs, judged by the gates of a run: `tools/evaluate.py quality` tells it."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from anomaly.crop import Cropped, defect_crop, take
from anomaly.dataset import Defect, Example, read_example_mask
from anomaly.files.names import shown, unshown
from anomaly.files.photographs import Photograph, open_photograph
from anomaly.pairs.manifest import manifest_rows
from anomaly.progress import Report, each, silent
from anomaly.runs.gating import load_gate
from anomaly.runs.run_folder import Run
from anomaly.scores.gate import judge
from ldm.model import StableDiffusion

SCORES = ("visible", "alike", "grain", "copy")
JUDGED = ["image", "object", "defect", *SCORES, "verdict", "reason"]


def normals_by_image(pairs: Path) -> dict[Path, Path]:
    """The normal photograph of each image, as far as the manifest names it and it is there."""
    found = {(pairs / row["image"]).resolve(): unshown(row["normal"])
             for row in manifest_rows(pairs)}
    return {image: normal for image, normal in found.items() if normal.is_file()}


def judged(sd: StableDiffusion, run: Run, defects: list[Defect], normals: dict[Path, Path],
           report: Report = silent) -> Iterator[dict[str, str]]:
    """A row, of JUDGED, for each pair of the defects; visible is "" where no normal is known.

    Raises ValueError for a defect that the run has not learned.
    """
    known = {defect.stem: defect for defect in run.defects}     # as folders of pairs are called
    for defect in defects:
        if defect.stem not in known:
            raise ValueError(f"--pairs: {defect.key}, which {run.folder} has not learned; it has "
                             f"{', '.join(learned.key for learned in run.defects)}")
    gates = {defect.key: load_gate(run, known[defect.stem]) for defect in defects}
    size, factor = run.config["size"], sd.vae.config.factor

    def view(photograph: Photograph, example: Example) -> Cropped:
        mask = read_example_mask(example)
        return take(photograph.seen, mask, defect_crop(mask, size), size, factor)

    pairs = [(defect, example) for defect in defects for example in defect.examples]
    for defect, example in each(pairs, "judging", len(pairs), report):
        normal = normals.get(example.image.resolve())
        pair, before = open_photograph(example.image), None
        if normal is not None:
            photograph = open_photograph(normal)
            before = view(photograph, example).image[None]
            pair = replace(pair, white=photograph.white)
        after = view(pair, example)
        verdict, = judge(sd.vae, gates[defect.key], before, after.image[None], after.mask[None])
        yield {**dict.fromkeys(JUDGED, ""), "image": shown(example.image), "object": defect.object,
               "defect": defect.name, "verdict": "pass" if verdict.passed else "doubtful",
               "reason": verdict.reason, **{n: f"{v:.4g}" for n, v in verdict.scores.items()}}
