"""The photographs and masks that a run learns from, as its config.json has them.

A path in the run's folder is relative to it, so that the folder can move; others are absolute. A
file is known by its bytes: a picture that was replaced under the same name is another one.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from anomaly.dataset import Defect, Example
from anomaly.files.names import whole


def portable(folder: Path, path: Path) -> str:
    """A path as a file in the folder is to have it."""
    path, folder = whole(path), whole(folder)
    return path.relative_to(folder).as_posix() if path.is_relative_to(folder) else str(path)


def sha256(path: Path) -> str:
    """Of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def describe(folder: Path, defects: list[Defect]) -> list[dict[str, Any]]:
    """Defects for the config.json in a folder."""
    return [{"object": d.object, "defect": d.name,
             "normals": None if d.normals is None else portable(folder, d.normals),
             "train": [{"image": portable(folder, e.image),
                        "masks": [portable(folder, mask) for mask in e.masks],
                        "sha256": [sha256(path) for path in (e.image, *e.masks)]}
                       for e in d.examples]} for d in defects]


def _paths(folder: Path, row: dict[str, Any]) -> tuple[Path, ...]:
    """Photograph and masks of an example; in version 0.1 there was one mask."""
    texts = row["image"], *(row["masks"] if "masks" in row else [row["mask"]])
    return tuple(whole(folder / text) for text in texts)


def described(folder: Path, rows: list[dict[str, Any]]) -> list[Defect]:
    """The way back from describe, wherever the folder lies by now; paths absolute."""
    return [Defect(row["object"], row["defect"],
                   tuple(Example(image, tuple(masks)) for image, *masks in
                         (_paths(folder, example) for example in row["train"])),
                   None if row["normals"] is None else whole(folder / row["normals"]))
            for row in rows]


def hashes(folder: Path, rows: list[dict[str, Any]]) -> dict[Path, str]:
    """sha256 of each file; of none in version 0.1."""
    return {path: sha for row in rows for example in row["train"]
            for path, sha in zip(_paths(folder, example), example.get("sha256", ()))}


def _real(defects: list[Defect]) -> list[list[str]]:
    """What each defect is called and learns from, paths behind any links."""
    return [[d.key, *(os.path.realpath(p) for e in d.examples for p in (e.image, *e.masks)),
             *([os.path.realpath(d.normals)] if d.normals else ())] for d in defects]


def check_same(folder: Path, old: list[dict[str, Any]], new: list[dict[str, Any]]) -> None:
    """ValueError unless both lists are of the same files with the same bytes."""
    if _real(described(folder, old)) != _real(described(folder, new)):
        raise ValueError(f"--data: the training files differ from those in {folder}/config.json; "
                         f"restore them or train into another --out")
    was = {os.path.realpath(path): sha for path, sha in hashes(folder, old).items()}
    for path, sha in hashes(folder, new).items():
        if was.get(os.path.realpath(path), sha) != sha:
            raise ValueError(f"{path}: another picture than the one that the run in {folder} "
                             f"learns; restore it or train into another --out")


def check_files(expected: dict[Path, str]) -> None:
    """ValueError for a training file that is gone, or another one."""
    for path, sha in expected.items():
        if not path.is_file() or sha256(path) != sha:
            raise ValueError(f"{path}: {'changed' if path.is_file() else 'gone'} while it is being "
                             f"learned; restore it and run the same command, with --resume "
                             f"unless with --add, or train into another --out")


@contextmanager
def reading(expected: dict[Path, str]) -> Iterator[None]:
    """The block reads training files: check_files before and, lest it read others, after it."""
    check_files(expected)
    yield
    check_files(expected)
