"""Folders that a tool writes into: what is there is its own, and one process at a time holds it."""

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from anomaly.files.names import hidden
from anomaly.files.remarks import remark

LOCK = ".lock"
LONGEST = 64        # characters of a lock that are read: it has the number of a process


class HeldError(FileExistsError):
    """Another process holds the folder."""


def _lock(file: IO[str]) -> None:
    """Hold the file until it is closed or the process ends; BlockingIOError if another does."""
    if sys.platform == "win32":
        import msvcrt
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        except PermissionError as err:
            raise BlockingIOError from err
    else:
        import fcntl
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def missing(folder: Path) -> list[Path]:
    """The folders that are to be made for it to be there, the innermost first."""
    found = [folder, *folder.parents]
    return found[:next(n for n, path in enumerate(found) if path.exists())]


def take_away(lock: Path, made: list[Path]) -> None:
    """Take the folders that were made for a lock away again, if nothing else lies in them."""
    if made and all(path == lock or path in made for path in made[-1].rglob("*")):
        with suppress(OSError):
            lock.unlink()
            for folder in made:
                folder.rmdir()


@contextmanager
def held(folder: Path, lock: str = LOCK, wait: bool = False) -> Iterator[None]:
    """Hold a folder by a lock in it; FileExistsError while another process does, or wait for it.

    What was made for the lock, and into which nothing was written, is taken away again.
    """
    path, made = folder / lock, missing((folder / lock).parent)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)       # Windows has no such flag
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(os.open(path, flags, 0o644), "r+", encoding="utf-8",
                  errors="replace") as file:
            try:
                _hold(file, folder, path)
            except HeldError:
                if not wait:
                    raise
                time.sleep(0.05)
                continue
            try:
                yield
            finally:
                take_away(path, made)
            return


def living(lock: Path) -> str | None:
    """The process that holds a lock, as text; None if none does."""
    try:
        with open(lock, "r+", encoding="utf-8", errors="replace") as file:
            try:
                _lock(file)
            except BlockingIOError:
                return file.read(LONGEST).strip() or "of another user"
    except PermissionError:
        raise
    except OSError:         # gone, or on a network drive without locks, which is said elsewhere
        pass
    return None


def _hold(file: IO[str], folder: Path, path: Path) -> None:
    try:
        _lock(file)
        there = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except BlockingIOError:
        there = False
    except OSError as err:      # a network drive without locks
        there = True
        remark(folder, "cannot be locked (%s): let no second process write there", err.strerror)
    content = file.read(LONGEST).strip()
    if not there:
        raise HeldError(f"{folder}: process {content or 'of another user'} is writing there; wait "
                        f"for it, or choose another --out")
    if content and not content.isdigit():
        raise FileExistsError(f"{path}: was there before and is never touched; choose a new or "
                              f"empty --out")
    file.seek(0)
    file.truncate()
    file.write(str(os.getpid()))
    file.flush()


def refuse_foreign(folder: Path, own: set[str]) -> None:
    """FileExistsError if the folder shows anything but own, naming its first file."""
    if folder.is_symlink() and not folder.exists():
        raise FileExistsError(f"{folder}: a link to {folder.readlink()}, which is not there; bring "
                              f"that back, or choose another --out")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; --out takes a folder")
    for path in sorted(folder.iterdir()):
        if path.name not in own and not hidden(path):
            first = next((inner for inner in path.rglob("*") if inner.is_file()), path)
            raise FileExistsError(f"{first}: was there before and is never touched; choose a new "
                                  f"or empty --out")
