"""Which pictures leave the house, and which of them are for training.

A pair leaves if the gate has passed it or did not judge it, unless the review says otherwise. Sides
are of photographs, not of pairs: what is painted into one photograph, and the photograph itself,
lie on the same side, or a detector would be tested on surfaces that it has learned by heart.
"""

import csv
import hashlib
import io
import logging
from collections import Counter, defaultdict
from dataclasses import dataclass
from pathlib import Path

from anomaly.files.names import shown, slug, unshown, whole
from anomaly.pairs.manifest import manifest_rows
from anomaly.pairs.normals import find_normals
from anomaly.pairs.review import identity

REVIEW = ("image", "object", "defect", "k", "decision")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """The image of a pair, or a defect-free photograph."""

    file: Path
    mask: Path | None       # None: nothing is to be found in it
    object: str
    defect: str             # good: none
    k: int
    photograph: str         # what it shows beside the defect, as a hexadecimal hash
    white: int | None = None        # of 16 bits; None: as its folder has it

    @property
    def kind(self) -> str:
        """Its class: object-defect."""
        return f"{slug(self.object)}-{slug(self.defect)}"

    @property
    def name(self) -> str:
        """As its files are called where all lie in one folder."""
        return f"{self.kind}-{self.k:05d}"


def rows_of(pairs: Path) -> list[dict[str, str]]:
    """The manifest of a folder of pairs; FileNotFoundError if it is none."""
    rows = manifest_rows(pairs)
    if not rows or not (pairs / "_meta/config.json").is_file():
        what = "no pairs in its manifest" if (pairs / "_meta").is_dir() else \
            "no _meta/manifest.csv in it" if pairs.is_dir() else "no such folder"
        raise FileNotFoundError(f"{pairs}: {what}; --pairs takes the folder that sample.py wrote")
    return rows


def decisions(review: Path, rows: list[dict[str, str]]) -> dict[str, str]:
    """image -> accept or reject, of a review; ValueError for what the manifest does not know.

    A review without ids, as of a spreadsheet or an older version, is taken by its names.
    """
    if not review.is_file():
        raise FileNotFoundError(f"{review}: no such file; --review takes the CSV of a review")
    text = review.read_text(encoding="utf-8-sig", errors="replace")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    if not set(REVIEW) <= set(reader.fieldnames or ()):
        raise ValueError(f"{review}: its columns are {', '.join(reader.fieldnames or ['none'])}; "
                         f"expected {', '.join(REVIEW)}")
    known, found = {row["image"]: identity(row) for row in rows}, dict[str, str]()
    for row in reader:
        image, word = row["image"], row["decision"]
        if image not in known:
            raise ValueError(f"{review}: {image} is not in the manifest of the pairs; is it the "
                             f"review of other pairs?")
        if (row.get("id") or known[image]) != known[image]:
            raise ValueError(f"{review}: {image} was another pair when it was reviewed; save the "
                             f"review of these pairs again")
        if word not in ("accept", "reject") or found.setdefault(image, word) != word:
            raise ValueError(f"{review}: {image} has the decision {word!r}; expected accept or "
                             f"reject, one a pair")
    return found


def painted_into(rows: list[dict[str, str]]) -> dict[str, str]:
    """Path of a normal photograph -> its hash, or that of the path: version 0.2 recorded none."""
    found = {row["normal"]: row["normal_sha256"] for row in rows if row["normal_sha256"]}
    for row in rows:
        found.setdefault(row["normal"], hashlib.sha256(row["normal"].encode()).hexdigest())
    return found


def selected(pairs: Path, rows: list[dict[str, str]], decided: dict[str, str],
             everything: bool, white: int) -> list[Entry]:
    """The pairs that leave the house: what the review accepts, else what the gate passes.

    everything: the doubtful, too, unless the review rejects them. white: of 16 bits.
    FileNotFoundError if a file of one is gone, ValueError if none is left.
    """
    photographs, found = painted_into(rows), []
    left, of_kind = Counter[str](), Counter[str]()
    for row in rows:
        kind = f"{row['object']}/{row['defect']}"
        of_kind[kind] += 0
        gated = "accept" if everything or row["verdict"] in ("pass", "") else "reject"
        if decided.get(row["image"], gated) == "reject":
            left["rejected" if row["image"] in decided else "doubtful"] += 1
            continue
        of_kind[kind] += 1
        image, mask = pairs / row["image"], pairs / row["mask"]
        for path in (image, mask):
            if not path.is_file():
                raise FileNotFoundError(f"{path}: is gone, but the manifest has it; run sample.py "
                                        f"again, or reject it in --review")
        found.append(Entry(image, mask, row["object"], row["defect"], int(row["k"]),
                           photographs[row["normal"]], white))
    if not found:
        raise ValueError(f"{pairs}: none of {len(rows)} pairs was passed by the gate or accepted "
                         f"by --review; see their contact sheet, or export --all")
    log.info("%d of %d pairs%s%s", len(found), len(rows),
             f"; {left['doubtful']} doubtful left out: --review or --all takes them"
             if left["doubtful"] else "",
             f"; {left['rejected']} rejected by --review" if left["rejected"] else "")
    for kind in (kind for kind, n in of_kind.items() if n == 0):
        log.info("%s: none of its pairs is taken", kind)
    return found


def good_entries(folder: Path, rows: list[dict[str, str]], objects: set[str]) -> list[Entry]:
    """Defect-free photographs of each object: of FOLDER/OBJECT/train/good, or of the folder.

    ValueError if there are several objects and the folder does not say whose the photographs are.
    """
    photographs, found = painted_into(rows), []
    for object_ in sorted(objects):
        own = unshown(f"{folder}/{object_}/train/good")
        if not own.is_dir() and len(objects) > 1:
            raise ValueError(f"--normals: {own} is not there, and the pairs are of "
                             f"{', '.join(sorted(objects))}; "
                             f"give a folder with OBJECT/train/good of each")
        for k, normal in enumerate(find_normals(whole(own if own.is_dir() else folder))):
            seen = photographs.get(shown(normal.path)) or normal.sha256
            found.append(Entry(normal.path, None, object_, "good", k, seen))
    return found


def sides(entries: list[Entry], split: float, before: dict[str, str]) -> dict[str, str]:
    """photograph -> train or val: of every class the share split trains, and both sides have some.

    before: those that have a side already. Classes of few photographs choose first; a photograph's
    place in the queue is its hash.
    """
    classes = defaultdict(set)
    for entry in entries:
        classes[entry.kind].add(entry.photograph)
    found = dict(before)
    for _, members in sorted((len(some), some) for some in map(sorted, classes.values())):
        wanted = min(max(round(split * len(members)), 1), max(len(members) - 1, 1))
        train = sum(found.get(member) == "train" for member in members)
        for member in (member for member in members if member not in found):
            found[member] = "train" if train < wanted else "val"
            train += found[member] == "train"
    return found


def say_one_sided(entries: list[Entry], found: dict[str, str]) -> None:
    """A line for each class that only one side has."""
    there = defaultdict(set)
    for entry in entries:
        there[entry.kind].add(found[entry.photograph])
    for kind, some in sorted(there.items()):
        if len(some) == 1:
            log.info("%s: all on the side of %s; it needs more photographs that are not painted "
                     "into" if kind.endswith("-good") else "%s: all on the side of %s; paint it "
                     "into more photographs", kind, *some)
