"""The folder of generated pairs, in MVTec AD layout.

    OUT/OBJECT/test/DEFECT/00000.png            OUT/OBJECT/ground_truth/DEFECT/00000_mask.png
    OUT/_meta/{config.json, normals.csv, manifest.csv, contact_sheet.jpg, README.md}

Loaders sort names, hence the fixed width, and read every PNG below OUT/OBJECT, hence _meta.
normals.csv has the photographs that are painted into: a pair depends on which there are.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from anomaly import __version__
from anomaly.crop import defect_crop
from anomaly.dataset import Defect
from anomaly.files.atomic_files import write_image, write_json
from anomaly.files.holding import refuse_foreign
from anomaly.files.names import normal_form, same_path, slug, unshown
from anomaly.files.photographs import Photograph, decode, open_photograph
from anomaly.files.remarks import remark
from anomaly.pairs.card import write_card
from anomaly.pairs.manifest import ALONE, COLUMNS, Manifest, Shard, manifest_rows
from anomaly.pairs.normals import Normal, NormalsRecord
from anomaly.runs.sheets import sheet

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
    another process writes there as the same worker; ValueError if it was made with other options.
    """

    def __init__(self, folder: Path, options: dict[str, Any] | None = None,
                 shard: Shard = ALONE):
        """options: how the pairs are made, by name; a second command must give the same.

        shard: which of the workers that write there this one is.
        """
        self.folder, self.options, self.shard = folder, options or {}, shard
        self._meta = folder / "_meta"
        self._manifest = Manifest(folder, shard)
        self._normals: dict[str, list[Normal]] = {}
        self._record = NormalsRecord(self._meta / "normals.csv")
        self._started, self._source = False, dict[str, Any]()
        self._check()

    def _check(self) -> None:
        """That the folder is this tool's or empty, of the same options, and free."""
        if not (self._meta / "config.json").is_file():
            refuse_foreign(self.folder, {"_meta"})
            refuse_foreign(self._meta, {"config.json.part", "normals.csv.part", "parts"})
            refuse_foreign(self._meta / "parts", set())
        self._check_options()
        self._manifest.refuse_living()

    def _read(self) -> None:
        # A row whose pair a kill has cut short: what lies there of it is this tool's.
        self._listed: dict[str, set[str]] = {}
        self._known, self._whole = set(), set()
        self._hashes: dict[str, str] = {}       # of the photographs that were painted into
        for row in manifest_rows(self.folder):
            key = self._names(row["object"], row["defect"], int(row["k"]), False)[0]
            self._known.add(key)
            if self._is_whole(row):
                self._whole.add(key)
            self._hashes[row["normal"]] = row["normal_sha256"]

    def _is_there(self, name: str) -> bool:
        """True for a file of a pair. Folders are listed once: there may be 70,000 pairs."""
        folder, _, file = name.rpartition("/")
        if folder not in self._listed:
            path = self.folder / folder
            self._listed[folder] = set(
                map(normal_form, os.listdir(path))) if path.is_dir() else set()
        return file in self._listed[folder]

    def _is_whole(self, row: dict[str, str]) -> bool:
        return self._is_there(row["image"]) and self._is_there(row["mask"])

    @contextmanager
    def held(self, size: int) -> Iterator[None]:
        """Be the folder's worker, and know what others left; the last one merges what all did.

        Then the manifest is sorted, the contact sheet drawn, and what a kill has cut short and
        nobody asked for again taken away. size: of the run's crops.
        """
        with ExitStack() as worker:
            with self._manifest.quiet():
                self._check()
                worker.enter_context(self._manifest.worker())
                self._read()
            try:
                yield
            except BaseException:
                with suppress(OSError):     # a full disk, maybe; the rows are in the parts
                    self._end(worker)
                raise
            self._end(worker, size)

    def _end(self, worker: ExitStack, size: int | None = None) -> None:
        with self._manifest.quiet():
            worker.close()
            if self._manifest.alone():
                rows = self._mend()
                self._manifest.merge(rows)
                if size is not None:
                    self._draw_sheet(rows, size)
                    write_card(self.folder, rows)

    def _mend(self) -> list[dict[str, str]]:
        """The rows of whole pairs; the remains of others are taken away."""
        self._listed, rows = {}, []
        for row in manifest_rows(self.folder):
            if self._is_whole(row):
                rows.append(row)
                continue
            for name in (row["image"], row["mask"]):
                for path in (name, f"{name}.part"):
                    (self.folder / path).unlink(missing_ok=True)
        return rows

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

    def settle(self, normals: dict[str, list[Normal]], white: int, source: dict[str, Any]) -> None:
        """The photographs of each object, white of those of 16 bits, and the run's source.

        ValueError or FileNotFoundError if pairs are there that were painted into others.
        """
        self.options["white"], self._normals, self._source = white, normals, source
        self._check_options()
        self._record.check(normals)

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
        if names[0] not in self._known:
            for name in names:
                if self._is_there(name):
                    raise FileExistsError(f"{self.folder / name}: no row of {self._manifest.path} "
                                          f"knows it, and it is never overwritten; move it away, "
                                          f"or choose another --out")
        return names[0] in self._whole

    def _start(self) -> None:
        """Write what all pairs share. Nothing at all is written before the first pair."""
        with self._manifest.quiet():
            self._check_options()       # another worker may have been quicker
            self._record.check(self._normals)
            write_json(self._meta / "config.json", {
                **self._before, "version": __version__, **self.options, "source": self._source})
            self._record.add(self._normals)
        self._started = True

    def write(self, defect: Defect, k: int, said: dict[str, object], image: Photograph,
              mask: np.ndarray, rejected: bool = False) -> tuple[Path, Path]:
        """Write pair k, or what was rejected of it; returns the paths of image and mask.

        said: what the manifest says of it beside its name and files. mask: bool (h, w). ValueError
        if its photograph is not what it was for other pairs.
        """
        normal, found = str(said["normal"]), str(said.get("normal_sha256", ""))
        if self._hashes.setdefault(normal, found) not in ("", found):
            raise ValueError(f"{normal}: has changed since other pairs in {self.folder} were "
                             f"painted; restore it or choose another --out")
        if not self._started:
            self._start()
        image_name, mask_name = self._names(defect.object, defect.name, k, rejected)
        self._manifest.append({**dict.fromkeys(COLUMNS, ""), "image": image_name,
                               "mask": mask_name, "object": defect.object,
                               "defect": defect.name, "k": k, **said})
        write_image(self.folder / mask_name, mask.astype(np.uint8) * 255)
        write_image(self.folder / image_name, image.values)
        self._whole.add(self._key(defect, k))
        return self.folder / image_name, self.folder / mask_name

    def summary(self, defect: Defect, asked: set[int]) -> str:
        """What came of pairs of a defect, in words."""
        rows = [row for row in manifest_rows(self.folder) if int(row["k"]) in asked
                and (row["object"], row["defect"]) == (defect.object, defect.name)]
        doubtful = [row for row in rows if row["verdict"] == "doubtful"]
        empty = sum(row["image"].startswith("_meta/") for row in rows)
        reasons = Counter(reason.split()[0] for row in doubtful
                          for reason in row["reason"].split("; "))
        why = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
        coarse = sum(float(row["scale"] or 0) > 1 for row in rows)
        slim = sum(row["thin"] == "1" for row in rows)
        return (f"{len(asked)} asked, {len(rows) - empty} made, {len(doubtful)} doubtful"
                + (f" ({why})" if why else "") + (f", {empty} left out" if empty else "")
                + (f"; {coarse} coarser than their photograph" if coarse else "")
                + (f"; {slim} thinner than two latent cells" if slim else ""))

    @property
    def sheet(self) -> Path:
        """The picture to judge the pairs by."""
        return self.folder / "_meta" / "contact_sheet.jpg"

    def _draw_sheet(self, rows: list[dict[str, str]], size: int) -> None:
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
