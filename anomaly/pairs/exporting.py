"""The story of tools/export.py: pairs -> a data set as those who train detectors know it.

    mvtec   OBJECT/{train/good,test/good,test/DEFECT}/00000.png, ground_truth/DEFECT/00000_mask.png
    yolo    images/{train,val}/OBJECT-DEFECT-00000.png, labels/{train,val}/*.txt, data.yaml
    coco    images/OBJECT-DEFECT-00000.png, annotations.json, annotations_{train,val}.json
    all     export.json (how it was made), README.md (the card), contact_sheet.jpg

The pictures are the same files under another name where the disk can have that; 16-bit grey is
written as 8 bits, as trainers read anything else as nearly black or white. Of yolo and coco each
connected part of a mask is an instance. In mvtec all pairs lie in test, and so do the photographs
that are painted into: --split divides the other photographs.

An index (data.yaml, annotations, README.md) is taken away first and written last: where one is, the
data set is whole. What is there of these pairs stays; a picture or label of anything else is
refused: gone or decided otherwise since, it would mix two data sets. Only the index is replaced.
"""

import filecmp
import hashlib
import json
import logging
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from anomaly import __version__
from anomaly.files.atomic_files import link, read_json, write_image, write_json, write_text
from anomaly.files.folders import READ
from anomaly.files.holding import held, refuse_foreign
from anomaly.files.names import same_path, shown, slug, whole
from anomaly.files.photographs import Photograph, decode, open_photograph
from anomaly.files.remarks import remark
from anomaly.pairs.card import exported_card, read_config
from anomaly.pairs.contours import Part, check_extra, parts, ring, run_lengths
from anomaly.pairs.selection import (
    Entry,
    decisions,
    good_entries,
    painted_into,
    rows_of,
    say_one_sided,
    selected,
    sides,
)
from anomaly.progress import Report, Stop, Stopped, each, never, silent

log = logging.getLogger(__name__)
# What tells pairs from others: options that every version records, in the same words.
MADE_SO = ("run", "masks", "normals", "steps", "guidance", "negative", "seed")
SHEET = "contact_sheet.jpg"
INDEX = {"mvtec": ["README.md"], "yolo": ["README.md", "data.yaml"], "coco": [
    "README.md", "annotations.json", "annotations_train.json", "annotations_val.json"]}
RECORD = {"format": str, "boxes": bool, "split": float, "all": bool, "review": (bool, None),
          "normals": (str, None), "pairs": str, "classes": [str], "sides": dict}


@dataclass(frozen=True)
class Layout:
    """Where a format has its pictures and labels, relative to the data set."""

    form: str                   # mvtec, yolo or coco
    sides: dict[str, str]       # photograph -> train or val
    classes: list[str]          # in the order of their numbers
    boxes: bool = False         # of yolo: in the place of outlines

    def side(self, entry: Entry) -> str:
        """Train or val."""
        return self.sides[entry.photograph]

    def image(self, entry: Entry) -> str:
        """Of the picture."""
        if self.form == "mvtec":
            part = {"train": "train", "val": "test"}[self.side(entry)]
            return f"{slug(entry.object)}/{part}/{slug(entry.defect)}/{entry.k:05d}.png"
        folder = f"images/{self.side(entry)}" if self.form == "yolo" else "images"
        return f"{folder}/{entry.name}.png"

    def label(self, entry: Entry) -> str | None:
        """Of the mask, or of the text that says what is in the picture; None: it has none."""
        if self.form == "yolo":
            return f"labels/{self.side(entry)}/{entry.name}.txt"
        if self.form == "coco" or entry.mask is None:
            return None
        truth = f"{slug(entry.object)}/ground_truth/{slug(entry.defect)}"
        return f"{truth}/{entry.k:05d}_mask.png"


def read_parts(entry: Entry) -> tuple[tuple[int, int], list[Part]]:
    """Height and width of a picture, and the parts of its mask."""
    with Image.open(entry.mask or entry.file) as file:
        width, height = file.size
    if entry.mask is None:
        return (height, width), []
    return (height, width), list(parts(np.asarray(decode(entry.mask, "mask")) > 0))


def yolo_label(entry: Entry, number: int, boxes: bool) -> str:
    """A line a part: the number of its class, then its ring, or centre, width and height."""
    (height, width), found = read_parts(entry)
    lines = []
    for part in found:
        x, y, w, h = part.box
        values = np.array([x + w / 2, y + h / 2, w, h]) if boxes else ring(part).ravel()
        of_one = values / np.resize((width, height), values.size)
        lines.append(" ".join([str(number), *(f"{value:.8f}" for value in of_one)]) + "\n")
    return "".join(lines)


def yolo_index(out: Path, layout: Layout) -> str:
    """data.yaml. A string in JSON is one in YAML."""
    names = [f"  {n}: {json.dumps(name, ensure_ascii=False)}\n"
             for n, name in enumerate(layout.classes)]
    place = json.dumps(str(whole(out)), ensure_ascii=False)
    return ("# path is where this folder lies: change it when you move it\n"
            f"path: {place}\ntrain: images/train\nval: images/val\nnames:\n{''.join(names)}")


def coco_index(entries: list[Entry], layout: Layout, report: Report) -> dict[str, str]:
    """File name -> annotations in JSON: of all, and of each side, with the same numbers."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    side_of = {}
    for n, entry in enumerate(each(entries, "describing", len(entries), report), 1):
        (height, width), found = read_parts(entry)
        side_of[n] = layout.side(entry)
        images.append({"id": n, "file_name": f"{entry.name}.png", "width": width,
                       "height": height})
        annotations += [{
            "id": len(annotations) + i, "image_id": n, "iscrowd": 0, "bbox": part.box,
            "category_id": 1 + layout.classes.index(entry.kind), "area": int(part.pixels.sum()),
            "segmentation": run_lengths(part, height, width)} for i, part in enumerate(found, 1)]
    categories = [{"id": n, "name": name} for n, name in enumerate(layout.classes, 1)]
    return {f"annotations{suffix}.json": json.dumps({
        "images": [image for image in images if side_of[image["id"]] in some],
        "annotations": [one for one in annotations if side_of[one["image_id"]] in some],
        "categories": categories}) + "\n"
        for suffix, some in (("", ("train", "val")), ("_train", ("train",)), ("_val", ("val",)))}


def as_png(source: Path, white: int | None) -> np.ndarray | None:
    """The values to write as PNG, upright and of 8 bits; None: the file itself is such a one.

    white: of a pair's 16 bits; None: as the folder of the photograph has it.
    """
    with Image.open(source) as file:
        if (file.format == "PNG" and file.getexif().get(0x0112, 1) == 1
                and not file.mode.startswith("I")):
            return None
    photograph = open_photograph(source) if white is None else \
        Photograph(np.asarray(decode(source, "pair")), white)
    if photograph.values.dtype == np.uint8:
        return photograph.values
    remark(Path("--format"), "16-bit grey is written as 8 bits, white is %d", photograph.white)
    return photograph.seen


def label_text(entry: Entry, layout: Layout) -> str:
    """Of yolo, what is in the picture."""
    number = layout.classes.index(entry.kind) if entry.mask else 0
    return yolo_label(entry, number, layout.boxes)


def _is(path: Path, entry: Entry, layout: Layout) -> bool:
    """True if path has what an export would write there."""
    if path.suffix == ".txt":
        return path.read_bytes() == label_text(entry, layout).encode()
    source = (path.name.endswith("_mask.png") and entry.mask) or entry.file
    values = as_png(source, entry.white)
    if values is not None:
        return np.array_equal(np.asarray(decode(path, "picture")), values)
    return path.samefile(source) or filecmp.cmp(path, source, shallow=False)


def put(source: Path, path: Path, white: int | None) -> None:
    """The picture under another name, if it is not there."""
    if not path.exists():
        values = as_png(source, white)
        if values is None:
            link(source, path)
        else:
            write_image(path, values)


def recorded(out: Path, options: dict[str, Any]) -> dict[str, Any]:
    """What export.json says; {} before the first time. ValueError if it was made otherwise."""
    path = out / "export.json"
    if not path.is_file():
        refuse_foreign(out, {"export.json.part"})
        return {}
    before = read_json(path, RECORD, "choose another --out")
    for name, value in options.items():
        old = before.get(name, value)       # no review: of an older version
        if not same_path(old, value):
            now = {None: "not given", False: "not given", True: "given"}.get(value, repr(value))
            then = "without it" if old in (None, False) else \
                "with it" if old is True else f"with {old!r}"
            raise ValueError(f"--{name}: " + (
                f"other pairs than those in {out}" if name == "pairs" else
                f"{now}, but {out} was made {then}") + "; do the same or choose another --out")
    return before


def check_there(out: Path, entries: list[Entry], layout: Layout) -> None:
    """FileExistsError for pictures and labels in the folder that are not of these pairs."""
    expected = {layout.image(entry): entry for entry in entries}
    expected |= {label: entry for entry in entries if (label := layout.label(entry)) is not None}
    found: list[Path] = []
    why = "gone, changed or decided otherwise since, or yours"
    for path in sorted(out.rglob("*")):
        name = path.relative_to(out).as_posix()
        if path.suffix.lower() not in {*READ, ".txt"} or name == SHEET or path.is_dir():
            continue
        if name not in expected or not _is(path, expected[name], layout):
            now = expected.get(name.replace("/train/good/", "/test/good/"))
            if not found and name not in expected and now and _is(path, now, layout):
                why = "it has been painted into since, and may be nothing that a detector learns"
            found.append(path)
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        raise FileExistsError(f"{found[0]}{more}: not of these pairs: {why}; choose a new --out, "
                              f"or move it away")


def write_data_set(out: Path, entries: list[Entry], layout: Layout, stop: Stop,
                   report: Report) -> None:
    """Pictures and labels that are not there, then the index."""
    for entry in each(entries, "exporting", len(entries), report):
        if stop():
            raise Stopped
        label = layout.label(entry)
        if layout.form == "yolo":
            if not (out / str(label)).exists():
                write_text(out / str(label), label_text(entry, layout))
        elif entry.mask is not None and label is not None:
            put(entry.mask, out / label, 255)
        put(entry.file, out / layout.image(entry), entry.white)
    index = {} if layout.form == "mvtec" else {"data.yaml": yolo_index(out, layout)} \
        if layout.form == "yolo" else coco_index(entries, layout, report)
    for name, text in index.items():
        write_text(out / name, text)


def export(pairs: Path, out: Path, form: str, *, boxes: bool = False, split: float = 0.8,
           everything: bool = False, review: Path | None = None, normals: Path | None = None,
           stop: Stop = never, report: Report = silent) -> Path:
    """Write the pairs that the review accepts, else the gate passes, as mvtec, yolo or coco.

    boxes: of yolo, boxes in the place of outlines. split: the share of photographs for training.
    everything: the doubtful pairs, too. normals: defect-free photographs that go with them. stop:
    True ends it after a picture, with Stopped. Returns the card, which is written last.
    """
    rows, config = rows_of(pairs), read_config(pairs)
    if form != "mvtec":
        check_extra()
    if out.resolve().is_relative_to(pairs.resolve()):
        raise ValueError(f"--out: {out} lies in the folder of the pairs; choose another")
    if form == "yolo" and shown(whole(out)) != str(whole(out)):
        raise ValueError(f"--out: {shown(whole(out))} is not UTF-8, which data.yaml must be; "
                         f"choose another")
    entries = selected(pairs, rows, {} if review is None else decisions(review, rows), everything,
                       config.get("white") or 255)
    if normals is not None:
        entries += good_entries(normals, rows, {entry.object for entry in entries})
    elif form == "mvtec":
        log.info("no good photographs, which anomalib needs: --normals takes them")
    made_so = [str(config.get(name)) for name in MADE_SO]
    options = {"format": form, "boxes": boxes, "split": split, "all": everything,
               "review": review is not None,
               "normals": None if normals is None else str(whole(normals)),
               "pairs": hashlib.sha256("\n".join(made_so).encode()).hexdigest()}
    recorded(out, options)
    with held(out):
        before = recorded(out, options)
        start = before.get("sides", {})
        if form == "mvtec":     # what is painted into may be nothing that a detector has learned
            start = start | dict.fromkeys(painted_into(rows).values(), "val")
        old = before.get("classes", [])
        layout = Layout(form, sides(entries, split, start), old + sorted(
            {p.kind for p in entries if p.mask is not None} - set(old)), boxes)
        check_there(out, entries, layout)
        for name in INDEX[form]:
            (out / name).unlink(missing_ok=True)
        write_json(out / "export.json", {"version": __version__, **options,
                                         "classes": layout.classes, "sides": layout.sides})
        say_one_sided([p for p in entries if form != "mvtec" or p.mask is None], layout.sides)
        write_data_set(out, entries, layout, stop, report)
        sheet = pairs / "_meta" / SHEET
        if sheet.is_file():
            (out / SHEET).unlink(missing_ok=True)
            link(sheet, out / SHEET)
        found = Counter((entry.kind, layout.side(entry)) for entry in entries)
        write_text(out / "README.md", exported_card(config, rows, sheet.is_file(), options, found))
    return out / "README.md"
