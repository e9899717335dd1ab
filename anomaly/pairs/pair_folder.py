"""The folder of generated pairs, in MVTec AD layout.

    OUT/OBJECT/test/DEFECT/00000.png            OUT/OBJECT/ground_truth/DEFECT/00000_mask.png
    OUT/_meta/{config.json, manifest.csv, contact_sheet.jpg}

Loaders sort names, hence the fixed width, and read every PNG below OUT/OBJECT, hence _meta.
"""

import json
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from anomaly import __version__
from anomaly.crop import defect_crop
from anomaly.dataset import Defect, read_mask, read_photograph, slug
from anomaly.pairs.plan import Target
from anomaly.runs.atomic_files import append_rows, read_rows, write_image, write_json, write_rows
from anomaly.runs.sheets import sheet

COLUMNS = ["image", "mask", "object", "defect", "k", "try", "seed", "normal", "mask_source",
           "change"]
ON_SHEET, A_ROW = 4, 2      # pairs of each defect on the contact sheet, and in one row of it
# Version 0.1 wrote no version, and had these words for two values of --reweight.
REWEIGHT_0_1 = {"paper": "adaptive", "literal": "paper"}


def framed(photograph: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """The photograph with a frame drawn round a square, uint8 (h, w, 3)."""
    picture = Image.fromarray(photograph).convert("RGB")
    width = max(1, max(picture.size) // 128)
    square = left, top, left + side, top + side
    ImageDraw.Draw(picture).rectangle(square, outline=(255, 64, 64), width=width)
    return np.asarray(picture)


class PairFolder:
    """Writes pairs, one row of the manifest each, so that a killed command can be run again.

    Order: mask, row, image. An image is there only if its mask and its row are; a row without an
    image is dropped. Raises ValueError if the folder was made with other options.
    """

    def __init__(self, folder: Path, options: dict[str, Any] | None = None):
        """options: how the pairs are made, by name; a second command must give the same."""
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder}: is a file; --out takes a folder")
        self.folder, self.options = folder, options or {}
        self._manifest = folder / "_meta" / "manifest.csv"
        self._started = False
        self._check_options()
        self._rows = [row for row in read_rows(self._manifest, COLUMNS)
                      if (folder / row["image"]).is_file() and (folder / row["mask"]).is_file()]

    def _check_options(self) -> None:
        path = self.folder / "_meta" / "config.json"
        self._before: dict[str, Any] = {}
        if not path.is_file():
            return
        try:
            before = self._before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as err:
            raise ValueError(f"{path}: not JSON ({err}); choose another --out") from None
        if not isinstance(before, dict):
            raise ValueError(f"{path}: found a JSON {type(before).__name__}, expected an object; "
                             f"choose another --out")
        if "version" not in before:
            word = str(before.get("reweight", "off"))
            before["reweight"] = REWEIGHT_0_1.get(word, word)
            if before["reweight"] != "off" and before.get("guidance") == "auto":
                raise ValueError(f"{path}: made by version 0.1, which re-weighted with the "
                                 f"guidance that training found; choose another --out")
        for name, value in self.options.items():
            if name == "run" and before.get(name) != value:
                raise ValueError(f"--run: another run than that of the pairs in {self.folder}, or "
                                 f"trained further since; choose another --out")
            if before.get(name) != value:
                raise ValueError(
                    f"--{name.replace('_', '-')}: {value!r}, but the pairs in {self.folder} "
                    f"were made with {before.get(name)!r}; use that or choose another --out")

    def _names(self, defect: Defect, k: int) -> tuple[str, str]:
        object_, name = slug(defect.object), slug(defect.name)
        return (f"{object_}/test/{name}/{k:05d}.png",
                f"{object_}/ground_truth/{name}/{k:05d}_mask.png")

    def done(self, defect: Defect, k: int) -> bool:
        """True if pair k is complete."""
        image, _ = self._names(defect, k)
        return any(row["image"] == image for row in self._rows)

    def write(self, defect: Defect, k: int, target: Target, image: np.ndarray, change: float,
              seed: int) -> tuple[Path, Path]:
        """Write pair k; returns the paths of image and mask."""
        if not self._started:       # nothing at all is written before the first pair
            write_json(self.folder / "_meta" / "config.json", {
                **self._before, "version": __version__, **self.options})
            write_rows(self._manifest, COLUMNS, self._rows)
            self._started = True
        image_name, mask_name = self._names(defect, k)
        row = {"image": image_name, "mask": mask_name, "object": defect.object,
               "defect": defect.name, "k": k, "try": 0, "seed": seed,
               "normal": str(target.normal.path),
               "mask_source": target.source, "change": f"{change:.6g}"}
        write_image(self.folder / mask_name, target.mask.astype(np.uint8) * 255)
        append_rows(self._manifest, COLUMNS, [row])
        write_image(self.folder / image_name, image)
        self._rows.append({column: str(row[column]) for column in COLUMNS})
        return self.folder / image_name, self.folder / mask_name

    @property
    def sheet(self) -> Path:
        """The picture to judge the pairs by."""
        return self.folder / "_meta" / "contact_sheet.jpg"

    def finish(self, size: int) -> None:
        """Sort the manifest and draw the contact sheet; size is that of the run's crops."""
        self._rows.sort(key=lambda row: (row["object"], row["defect"], int(row["k"])))
        write_rows(self._manifest, COLUMNS, self._rows)
        write_image(self.sheet, sheet(list(self._sheet_rows(size))))

    def _sheet_rows(self, size: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        """The first pairs of each defect, A_ROW to a row."""
        defects = groupby(self._rows, key=lambda row: (row["object"], row["defect"]))
        for (object_, name), group in defects:
            chosen = list(islice(group, ON_SHEET))
            for i in range(0, len(chosen), A_ROW):
                some = chosen[i:i + A_ROW]
                numbers = ", ".join(f"{int(row['k']):05d} (change {float(row['change']):.3f})"
                                    for row in some)
                tiles = [tile for row in some for tile in self._tiles(row, size)]
                yield f"{object_}/{name}  {numbers}", tiles

    def _tiles(self, row: dict[str, str], size: int) -> list[np.ndarray]:
        """The photograph with the crop framed, then the crop: before, mask, after."""
        after = read_photograph(self.folder / row["image"])
        mask = read_mask(self.folder / row["mask"])
        before = read_photograph(Path(row["normal"]))
        crop = defect_crop(mask, size)
        window = crop.inside(*mask.shape)
        return [framed(after, crop.left, crop.top, crop.side), before[window],
                mask[window].astype(np.uint8) * 255, after[window]]
