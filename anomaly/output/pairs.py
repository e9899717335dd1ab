"""The folder of generated pairs, in MVTec AD layout.

    OUT/OBJECT/test/DEFECT/00000.png                    OUT/OBJECT/ground_truth/DEFECT/00000_mask.png
    OUT/_meta/{config.json, manifest.csv, contact_sheet.jpg}

Loaders sort names, hence the fixed width, and take every PNG below OUT/OBJECT for a sample, hence _meta.
"""

import json
from collections.abc import Iterator
from itertools import groupby, islice
from pathlib import Path

import numpy as np

from anomaly.crop import defect_crop
from anomaly.dataset import Defect, read_mask, read_photograph, slug
from anomaly.output.files import append_rows, read_rows, write_image, write_json, write_rows
from anomaly.output.generate import Painted
from anomaly.output.sheets import framed, sheet

COLUMNS = ["image", "mask", "object", "defect", "k", "try", "seed", "normal", "mask_source", "change"]
ON_SHEET, A_ROW = 4, 2      # pairs of each defect on the contact sheet, and in one row of it


class PairFolder:
    """Writes pairs, one row of the manifest each, so that a killed command can be run again.

    Order: mask, row, image. An image is there only if its mask and its row are; a row without an image is
    dropped. Raises ValueError if the folder was made with other options.
    """

    def __init__(self, folder: Path, options: dict):
        if folder.exists() and not folder.is_dir():
            raise FileExistsError(f"{folder}: is a file; --out takes a folder")
        self.folder, self.options = folder, options
        self._manifest = folder / "_meta" / "manifest.csv"
        self._started = False
        self._check_options()
        self._rows = [row for row in read_rows(self._manifest, COLUMNS)
                      if (folder / row["image"]).is_file() and (folder / row["mask"]).is_file()]

    def _check_options(self) -> None:
        path = self.folder / "_meta" / "config.json"
        if not path.is_file():
            return
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as err:
            raise ValueError(f"{path}: not JSON ({err}); choose another --out") from None
        for name, value in self.options.items():
            if before.get(name) != value:
                raise ValueError(f"--{name.replace('_', '-')}: {value!r}, but the pairs in {self.folder} were "
                                 f"made with {before.get(name)!r}; use that or choose another --out")

    def _names(self, defect: Defect, k: int) -> tuple[str, str]:
        object_, name = slug(defect.object), slug(defect.name)
        return f"{object_}/test/{name}/{k:05d}.png", f"{object_}/ground_truth/{name}/{k:05d}_mask.png"

    def done(self, defect: Defect, k: int) -> bool:
        """True if pair k is complete."""
        image, _ = self._names(defect, k)
        return any(row["image"] == image for row in self._rows)

    def write(self, defect: Defect, painted: Painted) -> Path:
        """Write a pair; returns the image's path."""
        if not self._started:       # nothing at all is written before the first pair
            write_json(self.folder / "_meta" / "config.json", self.options)
            write_rows(self._manifest, COLUMNS, self._rows)
            self._started = True
        image, mask = self._names(defect, painted.plan.k)
        row = {"image": image, "mask": mask, "object": defect.object, "defect": defect.name,
               "k": painted.plan.k, "try": 0, "seed": self.options["seed"],
               "normal": str(painted.target.normal.path), "mask_source": painted.target.source,
               "change": f"{painted.change:.6g}"}
        write_image(self.folder / mask, painted.target.mask.astype(np.uint8) * 255)
        append_rows(self._manifest, COLUMNS, [row])
        write_image(self.folder / image, painted.image)
        self._rows.append({column: str(row[column]) for column in COLUMNS})
        return self.folder / image

    def finish(self, size: int) -> Path:
        """Sort the manifest and draw the contact sheet; returns the sheet's path."""
        self._rows.sort(key=lambda row: (row["object"], row["defect"], int(row["k"])))
        write_rows(self._manifest, COLUMNS, self._rows)
        path = self.folder / "_meta" / "contact_sheet.jpg"
        write_image(path, sheet(list(self._sheet_rows(size))))
        return path

    def _sheet_rows(self, size: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        """The first pairs of each defect, A_ROW to a row."""
        for (object_, name), group in groupby(self._rows, key=lambda row: (row["object"], row["defect"])):
            chosen = list(islice(group, ON_SHEET))
            for i in range(0, len(chosen), A_ROW):
                some = chosen[i:i + A_ROW]
                numbers = ", ".join(f"{int(row['k']):05d} (change {float(row['change']):.3f})" for row in some)
                yield f"{object_}/{name}  {numbers}", [tile for row in some for tile in self._tiles(row, size)]

    def _tiles(self, row: dict, size: int) -> list[np.ndarray]:
        """The photograph with the crop framed, then the crop: before, mask, after."""
        after, mask = read_photograph(self.folder / row["image"]), read_mask(self.folder / row["mask"])
        before = read_photograph(Path(row["normal"]))
        crop = defect_crop(mask, size)
        window = crop.inside(*mask.shape)
        return [framed(after, crop.left, crop.top, crop.side), before[window],
                mask[window].astype(np.uint8) * 255, after[window]]
