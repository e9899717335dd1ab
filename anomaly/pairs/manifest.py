"""The manifest of a folder of pairs, written by several workers at once without meeting.

    OUT/_meta/manifest.csv            a row a pair
    OUT/_meta/parts/1-of-3.csv        the rows of worker 1 of 3, until the last worker merges them
    OUT/_meta/parts/.lock-1-of-3-...  held by that worker while it lives; ends in what it shares out
    OUT/_meta/.lock                   held for a moment, by who begins, starts writing, or ends

A row is appended to its worker's part: as quick for the thousandth pair as for the first.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from anomaly.files.atomic_files import append_rows, read_rows, write_rows
from anomaly.files.holding import LOCK, held, living, missing, take_away
from anomaly.files.names import slug

COLUMNS = ["image", "mask", "object", "defect", "k", "try", "seed", "normal", "normal_sha256",
           "mask_source", "change", "scale", "thin", "visible", "alike", "grain", "copy", "verdict",
           "reason"]
NUMBERS = ("k", int), ("change", float), ("scale", float)


@dataclass(frozen=True)
class Shard:
    """Worker i of n: every n-th block of pairs is its own."""

    i: int = 0
    n: int = 1

    @property
    def name(self) -> str:
        """As its files are called."""
        return f"{self.i}-of-{self.n}"


ALONE = Shard()


def names_of(object_: str, defect: str, k: int, rejected: bool = False) -> tuple[str, str]:
    """The files of a pair, image and mask; the image of one that is not rejected is its key."""
    root = f"_meta/rejected/{slug(object_)}" if rejected else slug(object_)
    return (f"{root}/test/{slug(defect)}/{k:05d}.png",
            f"{root}/ground_truth/{slug(defect)}/{k:05d}_mask.png")


def manifest_rows(out: Path) -> list[dict[str, str]]:
    """The rows of a folder of pairs in order, those that no worker has merged yet among them.

    The parts are read first: what is merged meanwhile is in the manifest then.
    """
    meta = out / "_meta"
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for path in (*sorted(meta.glob("parts/*.csv")), meta / "manifest.csv"):
        for row in read_rows(path, COLUMNS, NUMBERS):
            own = [names_of(row["object"], row["defect"], int(row["k"]), away)
                   for away in (False, True)]
            if (row["image"], row["mask"]) not in own:      # its files may be taken away
                raise ValueError(f"{path}: names {row['image']!r} and {row['mask']!r}, expected "
                                 f"{own[0][0]!r} and {own[0][1]!r}; repair that row or remove it")
            rows.setdefault((row["object"], row["defect"], row["k"]), row)
    return sorted(rows.values(), key=lambda row: (row["object"], row["defect"], int(row["k"])))


class Manifest:
    """One worker's view of a folder of pairs."""

    def __init__(self, out: Path, shard: Shard):
        self.out, self.shard, self.path = out, shard, out / "_meta" / "manifest.csv"
        self._parts = out / "_meta" / "parts"
        self._part = self._parts / f"{shard.name}.csv"
        self._made = missing(out / "_meta")

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """For a moment no other worker begins, starts to write or ends."""
        with held(self.out, f"_meta/{LOCK}", wait=True):
            yield

    def refuse_living(self, work: str | None = None) -> None:
        """FileExistsError if this worker lives in another process, or one with another sharing.

        work: names the blocks that are shared out; None: not known yet. Asked in quiet.
        """
        for lock in sorted(self._parts.glob(".lock-*")):
            found = re.fullmatch(r"\.lock-(\d+)-of-(\d+)-(\w+)", lock.name)
            if found is None or (process := living(lock)) is None:
                continue
            if int(found[2]) != self.shard.n or int(found[1]) == self.shard.i:
                raise FileExistsError(
                    f"{self.out}: process {process} is writing there, as worker {found[1]} of "
                    f"{found[2]}; wait for it, choose another --out, or give each worker its own "
                    f"--shard I/{found[2]}")
            if work not in (None, found[3]):
                raise FileExistsError(
                    f"{self.out}: process {process} is writing there, with another --n, --only or "
                    f"--batch-size, or an older run; workers that live together need the same")

    @contextmanager
    def worker(self, work: str) -> Iterator[None]:
        """Be this worker; begun and ended in quiet."""
        with held(self.out, f"_meta/parts/.lock-{self.shard.name}-{work}"):
            if self._part.is_file():    # of one that died: its last line may be torn
                write_rows(self._part, COLUMNS, read_rows(self._part, COLUMNS))
            yield

    def append(self, row: dict[str, object]) -> None:
        """One more row of this worker."""
        append_rows(self._part, COLUMNS, [row])

    def alone(self) -> bool:
        """True if no worker lives; asked in quiet."""
        return all(living(lock) is None for lock in self._parts.glob(".lock-*"))

    def merge(self, rows: list[dict[str, str]]) -> None:
        """Make rows the manifest and take the parts away; in quiet and alone."""
        if rows or self.path.exists():
            write_rows(self.path, COLUMNS, rows)
        for path in [*self._parts.glob("*.csv*"), *self._parts.glob(".lock-*")]:
            path.unlink()
        with suppress(OSError):
            self._parts.rmdir()
        take_away(self.out / "_meta" / LOCK, self._made)
