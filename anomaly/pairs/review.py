"""What people judge pairs by: the contact sheet, and a page that shows every pair.

    OUT/_meta/contact_sheet.jpg                     the first pairs of each defect
    OUT/_meta/review.html                           every pair, what was rejected of them too
    OUT/_meta/review/OBJECT/DEFECT/00000.jpg        its squares, side by side: the crop after, the
                                                    photograph with the crop framed, the crop before
    OUT/_meta/review/OBJECT/DEFECT/00000.svg        the mask's outline in the crop

The page is review.html, in this folder, with the rows of the manifest. It opens from the disk:
browsers show pictures there, but let no page read their pixels, hence the outline as a file.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from anomaly.crop import Crop, cut, defect_crop, touched
from anomaly.files.atomic_files import write_image, write_text
from anomaly.files.names import slug, unshown
from anomaly.files.photographs import Photograph, decode, open_photograph
from anomaly.files.remarks import remark
from anomaly.runs.sheets import sheet

LARGE = 2048                # pixels of a photograph that is to be shrunk to a tile
ON_SHEET, A_ROW = 4, 2      # pairs of each defect on the contact sheet, and in one row of it
SIDE, GRID = 512, 256       # pixels of a square for the page; cells of an outline at most
BACKDROP = (32, 32, 32)     # round a photograph that is not square; the page's, too
COLUMNS = ["image", "object", "defect", "k", "try", "change", "scale", "thin", "visible", "alike",
           "grain", "copy", "verdict", "reason"]        # of the manifest, that the page shows


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


@dataclass(frozen=True)
class Look:
    """A pair as people judge it: photographs uint8 (h, w) or (h, w, 3), mask bool (h, w)."""

    before: np.ndarray | None       # None: its normal photograph is gone
    after: np.ndarray
    mask: np.ndarray
    crop: Crop

    @property
    def frame(self) -> np.ndarray:
        """The photograph with the crop framed."""
        return framed(self.after, self.crop.left, self.crop.top, self.crop.side)


def look(out: Path, row: Mapping[str, str], size: int, white: int) -> Look:
    """A pair from its files. size: of the run's crops; white: of 16 bits if the normal is gone."""
    normal = unshown(row["normal"])
    before = open_photograph(normal) if normal.is_file() else None
    after = Photograph(np.asarray(decode(out / row["image"], "pair")),
                       white if before is None else before.white)
    mask = np.asarray(decode(out / row["mask"], "mask")) > 0
    return Look(None if before is None else before.seen, after.seen, mask, defect_crop(mask, size))


# the contact sheet

def draw_sheet(path: Path, out: Path, rows: list[dict[str, str]], size: int) -> None:
    """The first pairs of each defect that are not rejected."""
    rows = [row for row in rows if not row["image"].startswith("_meta/")]
    drawable = [row for row in rows if unshown(row["normal"]).is_file()]
    if len(drawable) < len(rows):
        remark(path, "%d pairs are not on it, their normal photographs are gone",
               len(rows) - len(drawable))
    if drawable:
        write_image(path, sheet(list(_sheet_rows(out, drawable, size))))


def _sheet_rows(out: Path, rows: list[dict[str, str]],
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
            tiles = [tile for row in some for tile in _tiles(look(out, row, size, 255))]
            yield f"{object_}/{name}  {numbers}", tiles


def _tiles(pair: Look) -> list[np.ndarray]:
    """The photograph with the crop framed, then the crop: before, mask, after."""
    window = pair.crop.inside(*pair.mask.shape)
    assert pair.before is not None      # as draw_sheet has chosen
    return [pair.frame, pair.before[window], pair.mask[window].astype(np.uint8) * 255,
            pair.after[window]]


# the page

def picture(object_: str, defect: str, k: int) -> str:
    """Name, below OUT, of what the page shows of a pair, without the suffix."""
    return f"_meta/review/{slug(object_)}/{slug(defect)}/{k:05d}"


def outline(cells: np.ndarray) -> str:
    """The border of the True cells (n, n) as an SVG path: x to the right, y down, cells of 1."""
    path = ""
    for step, grid in (("h", cells), ("v", cells.T)):
        padded = np.pad(grid, 1)
        border = np.pad(padded[1:] != padded[:-1], ((0, 0), (1, 1))).astype(np.int8)
        ends = np.diff(border, axis=1)
        for line, start, stop in zip(*np.nonzero(ends > 0), np.nonzero(ends < 0)[1]):
            x, y = (start - 1, line) if step == "h" else (line, start - 1)
            path += f"M{x} {y}{step}{stop - start}"
    return path


def write_pictures(stem: Path, pair: Look) -> None:
    """What the page shows of a pair; the .jpg is last, and tells that all is there."""
    grid = min(pair.crop.side, GRID)
    d = outline(touched(pair.mask, pair.crop, grid))
    write_text(stem.with_suffix(".svg"), (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {grid} {grid}" fill="none" '
        f'stroke-linecap="square"><defs><path id="m" vector-effect="non-scaling-stroke" d="{d}"/>'
        f'</defs><use href="#m" stroke="#000" stroke-width="3"/>'
        f'<use href="#m" stroke="#ffe14d" stroke-width="1.3"/></svg>\n'))
    squares = [cut(pair.after, pair.crop), pair.frame]
    squares += [] if pair.before is None else [cut(pair.before, pair.crop)]
    strip = Image.new("RGB", (SIDE * len(squares), SIDE), BACKDROP)
    for i, pixels in enumerate(squares):
        square = Image.fromarray(pixels).convert("RGB")
        width, height = (max(1, round(SIDE * side / max(square.size))) for side in square.size)
        square = square.resize((width, height), Image.Resampling.BICUBIC)
        strip.paste(square, (SIDE * i + (SIDE - width) // 2, (SIDE - height) // 2))
    write_image(stem.with_suffix(".jpg"), np.asarray(strip))


def _digest(*content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


def identity(row: Mapping[str, str]) -> str:
    """Of a pair: another one of the same name has another."""
    return _digest(row["seed"], row["normal_sha256"], *(row[name] for name in COLUMNS))


def write_page(path: Path, rows: list[dict[str, str]], options: Mapping[str, object]) -> None:
    """The page of these rows. options: of the data set, by which decisions in a browser are kept.

    A pair's decision is kept by what was painted: not where it lies, so that a copy knows it too.
    """
    page = {"key": _digest(options), "columns": ["id", "picture", "normal", *COLUMNS],
            "rows": [[identity(row), picture(row["object"], row["defect"],
                                             int(row["k"])).removeprefix("_meta/"),
                      Path(row["normal"]).name, *(row[name] for name in COLUMNS)] for row in rows]}
    # ASCII alone, and no "<": whatever names hold, it ends no script and no line of one.
    text = json.dumps(page, separators=(",", ":")).replace("<", "\\u003c").replace("],[", "],\n[")
    template = Path(__file__).with_suffix(".html").read_text(encoding="utf-8")
    write_text(path, template.replace("PAIRS_OF_THE_PAGE", text))
