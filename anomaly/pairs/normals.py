"""The defect-free photographs that are painted into, and whether they are still what they were."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from anomaly.files.atomic_files import read_rows, write_rows
from anomaly.files.folders import image_files
from anomaly.files.names import shown
from anomaly.files.photographs import Photograph, open_photograph, size_of
from anomaly.training_files import sha256

COLUMNS = ["object", "name", "bytes"]       # of the file in which they are recorded


@dataclass(frozen=True)
class Normal:
    """A defect-free photograph, not decoded yet."""

    path: Path
    height: int
    width: int
    bytes: int = 0      # of its file

    @cached_property
    def sha256(self) -> str:
        """Of the file, when it was first asked for."""
        return sha256(self.path)

    def open(self) -> Photograph:
        """The photograph; ValueError if its file has changed since it was first opened."""
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: is gone; restore it and run the command again")
        if sha256(self.path) != self.sha256:
            raise ValueError(f"{self.path}: has changed while it was painted into; restore it and "
                             f"run the command again")
        return open_photograph(self.path)


def find_normals(path: Path) -> list[Normal]:
    """A photograph, or the photographs of a folder; only their headers are read."""
    if not path.exists():
        link = f"a link to {path.readlink()}, which is not there" if path.is_symlink() else \
            "no such file or folder"
        raise FileNotFoundError(f"{path}: {link}; --normals takes defect-free photographs")
    files = image_files(path) if path.is_dir() else [path]
    return [Normal(file, *size_of(file), file.stat().st_size) for file in files]


@dataclass(frozen=True)
class NormalsRecord:
    """Which photographs each object's pairs are painted into: a pair depends on all of them."""

    path: Path      # a CSV file, there or not

    def _read(self) -> dict[str, dict[str, int]]:
        found: dict[str, dict[str, int]] = {}
        for row in read_rows(self.path, COLUMNS, [("bytes", int)]):
            found.setdefault(row["object"], {})[row["name"]] = int(row["bytes"])
        return found

    def check(self, normals: dict[str, list[Normal]]) -> None:
        """By object; FileNotFoundError or ValueError for one that came, went or changed."""
        for object_, before in self._read().items():
            found = {shown(normal.path.name): normal for normal in normals.get(object_, [])}
            if not found:
                continue        # another object's
            folder, remedy = next(iter(found.values())).path.parent, "or choose another --out"
            for name in sorted(before.keys() - found.keys()):
                raise FileNotFoundError(f"{folder / name}: is gone, and the pairs that are there "
                                        f"depend on it; bring it back, {remedy}")
            for name in sorted(found.keys() - before.keys()):
                raise ValueError(f"{folder / name}: has come since the pairs that are there were "
                                 f"painted; move it away, {remedy}")
            for name, normal in found.items():
                if normal.bytes != before[name]:
                    raise ValueError(f"{normal.path}: {normal.bytes} bytes, but {before[name]} "
                                     f"when the pairs that are there were painted; restore it, "
                                     f"{remedy}")

    def add(self, normals: dict[str, list[Normal]]) -> None:
        """Record them, beside other objects'."""
        known = self._read() | {object_: {shown(n.path.name): n.bytes for n in found}
                                for object_, found in normals.items()}
        write_rows(self.path, COLUMNS, [
            {"object": object_, "name": name, "bytes": size}
            for object_, found in sorted(known.items()) for name, size in sorted(found.items())])
