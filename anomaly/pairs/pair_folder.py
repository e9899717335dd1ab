"""The folder of generated pairs, in MVTec AD layout.

    OUT/OBJECT/test/DEFECT/00000.png            OUT/OBJECT/ground_truth/DEFECT/00000_mask.png
    OUT/_meta/{config.json, normals.csv, manifest.csv, contact_sheet.jpg, README.md, review.html,
               review/}

Loaders sort names, hence the fixed width, and read every PNG below OUT/OBJECT, hence _meta.
normals.csv has the photographs that are painted into: a pair depends on which there are.
"""

import os
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from anomaly import __version__
from anomaly.crop import defect_crop
from anomaly.dataset import Defect
from anomaly.files.atomic_files import read_json, write_image, write_json
from anomaly.files.holding import refuse_foreign
from anomaly.files.names import normal_form, same_path, unshown
from anomaly.files.photographs import Photograph, open_photograph
from anomaly.pairs.card import write_card
from anomaly.pairs.manifest import ALONE, COLUMNS, Manifest, Shard, manifest_rows, names_of
from anomaly.pairs.normals import Normal, NormalsRecord
from anomaly.pairs.review import Look, draw_sheet, look, picture, write_page, write_pictures

# Version 0.1 wrote no version, and had these words for two values of --reweight.
REWEIGHT_0_1 = {"paper": "adaptive", "literal": "paper"}


def _summary(rows: list[dict[str, str]], asked: int) -> str:
    """What came of pairs of a defect, in words."""
    doubtful = [row for row in rows if row["verdict"] == "doubtful"]
    empty = sum(row["image"].startswith("_meta/") for row in rows)
    reasons = Counter(reason.split()[0] for row in doubtful
                      for reason in row["reason"].split("; "))
    why = ", ".join(f"{name} {count}" for name, count in reasons.most_common())
    coarse = sum(float(row["scale"] or 0) > 1 for row in rows)
    slim = sum(row["thin"] == "1" for row in rows)
    return (f"{asked} asked, {len(rows) - empty} made, {len(doubtful)} doubtful"
            + (f" ({why})" if why else "") + (f", {empty} left out" if empty else "")
            + (f"; {coarse} coarser than their photograph" if coarse else "")
            + (f"; {slim} thinner than two latent cells" if slim else ""))


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
        if self._is_ours():     # else nothing is made before the first pair
            with self._manifest.quiet():
                self._check_options()
                self._manifest.refuse_living()

    def _is_ours(self) -> bool:
        """True for a folder that this tool has written into; FileExistsError for another's."""
        config = self._meta / "config.json"
        try:
            if not config.is_file():
                refuse_foreign(self.folder, {"_meta"})
                refuse_foreign(self._meta, {"config.json.part", "normals.csv.part", "parts"})
                refuse_foreign(self._meta / "parts", set())
        except FileExistsError:
            if not config.is_file():    # else another worker has written it since
                raise
        return config.is_file()

    def _read(self) -> None:
        # A row whose pair a kill has cut short: what lies there of it is this tool's.
        self._listed: dict[str, set[str]] = {}
        self._known, self._whole = set(), set()
        self._hashes: dict[tuple[str, str], str] = {}   # of what was painted into; it may move
        for row in manifest_rows(self.folder):
            key = names_of(row["object"], row["defect"], int(row["k"]))[0]
            self._known.add(key)
            if self._is_whole(row):
                self._whole.add(key)
            self._hashes[row["object"], Path(row["normal"]).name] = row["normal_sha256"]

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
    def held(self, size: int, work: str = "") -> Iterator[None]:
        """Be the folder's worker, and know what others left; the last one merges what all did.

        Then the manifest is sorted, the contact sheet drawn, and what a kill has cut short and
        nobody asked for again taken away. size: of the run's crops. work: what all workers share
        out, block by block; one that shares out other blocks is refused while another lives.
        """
        work = f"{crc32(work.encode()):08x}"
        with ExitStack() as worker:
            with self._manifest.quiet():
                _ = self._is_ours()
                self._check_options()
                self._manifest.refuse_living(work)
                worker.enter_context(self._manifest.worker(work))
            self._read()        # nobody merges while this worker lives
            try:
                self._size = size
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
                    self._draw(rows, size)
                    write_card(self.folder, rows)

    def _mend(self) -> list[dict[str, str]]:
        """The rows of whole pairs; the remains of others are taken away."""
        self._listed, rows = {}, []
        for row in manifest_rows(self.folder):
            if self._is_whole(row):
                rows.append(row)
                continue
            stem = picture(row["object"], row["defect"], int(row["k"]))
            for name in (row["image"], row["mask"], f"{stem}.svg", f"{stem}.jpg"):
                for path in (name, f"{name}.part"):
                    (self.folder / path).unlink(missing_ok=True)
        return rows

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

    def settle(self, normals: dict[str, list[Normal]], white: int, source: dict[str, Any]) -> None:
        """The photographs of each object, white of those of 16 bits, and the run's source.

        ValueError or FileNotFoundError if pairs are there that were painted into others.
        """
        self.options["white"], self._normals, self._source = white, normals, source
        self._check_options()
        self._record.check(normals)

    def _key(self, defect: Defect, k: int) -> str:
        return names_of(defect.object, defect.name, k)[0]

    def done(self, defect: Defect, k: int) -> bool:
        """True if pair k is complete. FileExistsError if a file of it is not this tool's."""
        names = names_of(defect.object, defect.name, k)
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
                **self._before, "version": __version__, **self.options,
                "source": self._source or None})
            self._record.add(self._normals)
        self._started = True

    def write(self, defect: Defect, k: int, said: dict[str, object], image: Photograph,
              mask: np.ndarray, rejected: bool = False) -> tuple[Path, Path]:
        """Write pair k, or what was rejected of it; returns the paths of image and mask.

        said: what the manifest says of it beside its name and files. mask: bool (h, w). ValueError
        if its photograph is not what it was for other pairs.
        """
        normal, found = str(said["normal"]), str(said.get("normal_sha256", ""))
        if self._hashes.setdefault((defect.object, Path(normal).name), found) not in ("", found):
            raise ValueError(f"{normal}: has changed since other pairs in {self.folder} were "
                             f"painted; restore it or choose another --out")
        if not self._started:
            self._start()
        image_name, mask_name = names_of(defect.object, defect.name, k, rejected)
        self._manifest.append({**dict.fromkeys(COLUMNS, ""), "image": image_name,
                               "mask": mask_name, "object": defect.object,
                               "defect": defect.name, "k": k, **said})
        write_image(self.folder / mask_name, mask.astype(np.uint8) * 255)
        write_image(self.folder / image_name, image.values)
        self._whole.add(self._key(defect, k))
        before = unshown(normal)        # the page's pictures: here every worker draws its own
        write_pictures(self.folder / picture(defect.object, defect.name, k), Look(
            open_photograph(before).seen if before.is_file() else None, image.seen, mask,
            defect_crop(mask, self._size)))
        return self.folder / image_name, self.folder / mask_name

    def summaries(self, asked: list[tuple[Defect, set[int], int]]) -> Iterator[str]:
        """What came of the pairs of each defect that this worker was asked for, of so many."""
        found: dict[tuple[str, str], list[dict[str, str]]] = {}
        for row in manifest_rows(self.folder):
            found.setdefault((row["object"], row["defect"]), []).append(row)
        for defect, own, n in asked:
            rows = found.get((defect.object, defect.name), [])
            there = sum(int(row["k"]) < n for row in rows)
            yield _summary([row for row in rows if int(row["k"]) in own], len(own)) + (
                f"; {there} of {n} by all workers" if self.shard.n > 1 else "")

    @property
    def sheet(self) -> Path:
        """The picture to judge the pairs by."""
        return self.folder / "_meta" / "contact_sheet.jpg"

    @property
    def review(self) -> Path:
        """The page to judge every pair by."""
        return self.folder / "_meta" / "review.html"

    def _draw(self, rows: list[dict[str, str]], size: int) -> None:
        """The contact sheet and the page, with the pictures that an older version left out."""
        draw_sheet(self.sheet, self.folder, rows, size)
        options = {**self._before, **self.options}
        for row in rows:
            stem = picture(row["object"], row["defect"], int(row["k"]))
            if not self._is_there(f"{stem}.jpg"):
                write_pictures(self.folder / stem,
                               look(self.folder, row, size, int(options.get("white", 255))))
        if rows:
            write_page(self.review, rows, {name: value for name, value in options.items()
                                           if name not in ("version", "source")})
