"""The folder of generated pairs, in MVTec AD layout.

    OUT/OBJECT/test/DEFECT/00000.png            OUT/OBJECT/ground_truth/DEFECT/00000_mask.png
    OUT/_meta/{config.json, manifest.csv, contact_sheet.jpg}

Loaders sort names, hence the fixed width, and read every PNG below OUT/OBJECT, hence _meta.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from anomaly import __version__
from anomaly.crop import defect_crop
from anomaly.dataset import Defect
from anomaly.files.atomic_files import (
    append_rows,
    read_json,
    read_rows,
    write_image,
    write_json,
    write_rows,
)
from anomaly.files.holding import held, refuse_foreign
from anomaly.files.names import same_path, slug, unshown
from anomaly.files.photographs import Photograph, decode, open_photograph
from anomaly.files.remarks import remark
from anomaly.runs.sheets import sheet

COLUMNS = ["image", "mask", "object", "defect", "k", "try", "seed", "normal", "mask_source",
           "change", "scale", "thin", "visible", "alike", "grain", "copy", "verdict", "reason"]
NUMBERS = ("k", int), ("change", float), ("scale", float)
LARGE = 2048                # pixels of a photograph that is to be shrunk to a tile
ON_SHEET, A_ROW = 4, 2      # pairs of each defect on the contact sheet, and in one row of it
# Version 0.1 wrote no version, and had these words for two values of --reweight.
REWEIGHT_0_1 = {"paper": "adaptive", "literal": "paper"}


def framed(photograph: np.ndarray, left: int, top: int, side: int) -> np.ndarray:
    """The photograph with a frame drawn round a square, uint8 (h, w, 3), no side above LARGE."""
    picture = Image.fromarray(photograph)
    scale = min(1.0, LARGE / max(picture.size))
    picture.thumbnail((LARGE, LARGE))
    picture = picture.convert("RGB")
    width = max(1, max(picture.size) // 128)
    square = [round(scale * edge) for edge in (left, top, left + side, top + side)]
    ImageDraw.Draw(picture).rectangle(square, outline=(255, 64, 64), width=width)
    return np.asarray(picture)


class PairFolder:
    """Writes pairs, one row of the manifest each, so that a killed command can be run again.

    Order: row, mask, image. A file of a pair that no row knows is not this tool's, and is never
    overwritten. Raises FileExistsError if the folder holds anything that it did not write, or while
    another process writes there; ValueError if it was made with other options.
    """

    def __init__(self, folder: Path, options: dict[str, Any] | None = None):
        """options: how the pairs are made, by name; a second command must give the same."""
        self.folder, self.options = folder, options or {}
        self._meta = folder / "_meta"
        self._manifest = self._meta / "manifest.csv"
        self._started = False
        self._check_owner()
        if self._meta.is_dir():     # nothing is made before the first pair
            with held(folder, "_meta"):
                self._read()
        else:
            self._read()

    def _check_owner(self) -> None:
        """FileExistsError unless the folder is this tool's or empty."""
        if not (self._meta / "config.json").is_file():
            refuse_foreign(self.folder, {"_meta"})
            refuse_foreign(self._meta, {"config.json.part"})

    def _read(self) -> None:
        self._check_owner()
        self._check_options()
        # A row whose pair a kill has cut short: what lies there of it is this tool's.
        self._rows = {self._names(row["object"], row["defect"], int(row["k"]), False)[0]: row
                      for row in read_rows(self._manifest, COLUMNS, NUMBERS)}
        for row in self._rows.values():     # its files may be taken away
            made = [self._names(row["object"], row["defect"], int(row["k"]), away)
                    for away in (False, True)]
            if (row["image"], row["mask"]) not in made:
                raise ValueError(f"{self._manifest}: names {row['image']!r} and {row['mask']!r}, "
                                 f"expected {made[0][0]!r} and {made[0][1]!r}; repair that row or "
                                 f"remove it")
        self._whole = {key for key, row in self._rows.items() if all(
            (self.folder / row[name]).is_file() for name in ("image", "mask"))}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the folder against other processes, and read what they left."""
        with held(self.folder, "_meta"):
            self._read()
            yield

    def _check_options(self) -> None:
        path = self.folder / "_meta" / "config.json"
        self._before: dict[str, Any] = {}
        if not path.is_file():
            return
        before = self._before = read_json(path, {}, "choose another --out")
        if "version" not in before:
            word = str(before.get("reweight", "off"))
            before["reweight"] = REWEIGHT_0_1.get(word, word)
            if before["reweight"] != "off" and before.get("guidance") == "auto":
                raise ValueError(f"{path}: made by version 0.1, which re-weighted with the "
                                 f"guidance that training found; choose another --out")
        if "seed" in before:    # of sample.py, maybe made before there were these options
            for name, value in {"foreground": "none", "strength": 1.0, "gate": "off",
                                "tries": 1}.items():
                before.setdefault(name, value)
        for name, value in self.options.items():
            if name == "run" and before.get(name) != value:
                raise ValueError(f"--run: another run than that of the pairs in {self.folder}, or "
                                 f"trained further since; choose another --out")
            if name == "white":         # not in folders of version 0.1
                if before.setdefault(name, value) != value:
                    raise ValueError(f"--normals: white of the 16-bit photographs is {value}, of "
                                     f"the pairs in {self.folder} {before[name]}: some came or "
                                     f"went; bring them back or choose another --out")
            elif not same_path(before.get(name), value):
                raise ValueError(
                    f"--{name.replace('_', '-')}: {value!r}, but the pairs in {self.folder} "
                    f"were made with {before.get(name)!r}; use that or choose another --out")

    def settle_white(self, white: int) -> None:
        """White of the photographs that are painted into; a second command must have the same."""
        self.options["white"] = white
        self._check_options()

    def _names(self, object_: str, defect: str, k: int, rejected: bool) -> tuple[str, str]:
        """Of the image and the mask; the image of a pair that is not rejected is its key."""
        root = f"_meta/rejected/{slug(object_)}" if rejected else slug(object_)
        return (f"{root}/test/{slug(defect)}/{k:05d}.png",
                f"{root}/ground_truth/{slug(defect)}/{k:05d}_mask.png")

    def _key(self, defect: Defect, k: int) -> str:
        return self._names(defect.object, defect.name, k, False)[0]

    def done(self, defect: Defect, k: int) -> bool:
        """True if pair k is complete. FileExistsError if a file of it is not this tool's."""
        names = self._names(defect.object, defect.name, k, False)
        if names[0] not in self._rows:
            for name in names:
                if (self.folder / name).exists():
                    raise FileExistsError(f"{self.folder / name}: no row of {self._manifest} knows "
                                          f"it, and it is never overwritten; move it away, or "
                                          f"choose another --out")
        return names[0] in self._whole

    def write(self, defect: Defect, k: int, said: dict[str, object], image: Photograph,
              mask: np.ndarray, rejected: bool = False) -> tuple[Path, Path]:
        """Write pair k, or what was rejected of it; returns the paths of image and mask.

        said: what the manifest says of it beside its name and files. mask: bool (h, w).
        """
        if not self._started:       # nothing at all is written before the first pair
            write_json(self._meta / "config.json", {
                **self._before, "version": __version__, **self.options})
            write_rows(self._manifest, COLUMNS, self._rows.values())
            self._started = True
        image_name, mask_name = self._names(defect.object, defect.name, k, rejected)
        row = {**dict.fromkeys(COLUMNS, ""), "image": image_name, "mask": mask_name,
               "object": defect.object, "defect": defect.name, "k": k, **said}
        key = self._key(defect, k)
        append_rows(self._manifest, COLUMNS, [row])
        self._rows[key] = {column: str(row[column]) for column in COLUMNS}
        write_image(self.folder / mask_name, mask.astype(np.uint8) * 255)
        write_image(self.folder / image_name, image.values)
        self._whole.add(key)
        return self.folder / image_name, self.folder / mask_name

    def summary(self, defect: Defect, n: int) -> str:
        """What came of the first n pairs of a defect, in words."""
        rows = [self._rows[key] for k in range(n) if (key := self._key(defect, k)) in self._whole]
        doubtful = [row for row in rows if row["verdict"] == "doubtful"]
        empty = sum(row["image"].startswith("_meta/") for row in rows)
        reasons = Counter(reason.split()[0] for row in doubtful
                          for reason in row["reason"].split("; "))
        why = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
        coarse = sum(float(row["scale"] or 0) > 1 for row in rows)
        slim = sum(row["thin"] == "1" for row in rows)
        return (f"{n} asked, {len(rows) - empty} made, {len(doubtful)} doubtful"
                + (f" ({why})" if why else "") + (f", {empty} left out" if empty else "")
                + (f"; {coarse} coarser than their photograph" if coarse else "")
                + (f"; {slim} thinner than two latent cells" if slim else ""))

    @property
    def sheet(self) -> Path:
        """The picture to judge the pairs by."""
        return self.folder / "_meta" / "contact_sheet.jpg"

    def finish(self, size: int) -> None:
        """Sort the manifest and draw the contact sheet; size is that of the run's crops.

        What a kill has cut short and this command did not ask for again is taken away.
        """
        for key in set(self._rows) - self._whole:
            row = self._rows.pop(key)
            for name in ("image", "mask"):
                (self.folder / row[name]).unlink(missing_ok=True)
        rows = sorted(self._rows.values(),
                      key=lambda row: (row["object"], row["defect"], int(row["k"])))
        write_rows(self._manifest, COLUMNS, rows)
        rows = [row for row in rows if not row["image"].startswith("_meta/")]
        drawable = [row for row in rows if unshown(row["normal"]).is_file()]
        if len(drawable) < len(rows):
            remark(self.sheet, "%d pairs are not on it, their normal photographs are gone",
                   len(rows) - len(drawable))
        if drawable:
            write_image(self.sheet, sheet(list(self._sheet_rows(drawable, size))))

    def _sheet_rows(self, rows: list[dict[str, str]],
                    size: int) -> Iterator[tuple[str, list[np.ndarray]]]:
        """The first pairs of each defect, A_ROW to a row."""
        defects = groupby(rows, key=lambda row: (row["object"], row["defect"]))
        for (object_, name), group in defects:
            chosen = list(islice(group, ON_SHEET))
            for i in range(0, len(chosen), A_ROW):
                some = chosen[i:i + A_ROW]
                numbers = ", ".join(
                    f"{int(row['k']):05d} (change {float(row['change']):.3f}"
                    + (", doubtful)" if row["verdict"] == "doubtful" else ")") for row in some)
                tiles = [tile for row in some for tile in self._tiles(row, size)]
                yield f"{object_}/{name}  {numbers}", tiles

    def _tiles(self, row: dict[str, str], size: int) -> list[np.ndarray]:
        """The photograph with the crop framed, then the crop: before, mask, after."""
        before = open_photograph(unshown(row["normal"]))
        after = replace(before, values=np.asarray(decode(self.folder / row["image"], "pair"))).seen
        mask = np.asarray(decode(self.folder / row["mask"], "mask")) > 0
        crop = defect_crop(mask, size)
        window = crop.inside(*mask.shape)
        return [framed(after, crop.left, crop.top, crop.side), before.seen[window],
                mask[window].astype(np.uint8) * 255, after[window]]
