"""Folders that a tool writes into: what is there is its own, and one process at a time holds it."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from anomaly.files.names import hidden
from anomaly.files.remarks import remark

LOCK = ".lock"


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


def _ours(folder: Path, path: Path) -> bool:
    """True if nothing lies in the folder but the lock and the folders it lies in."""
    return all(other in (path, path.parent) for other in folder.rglob("*"))


@contextmanager
def held(folder: Path, inner: str = "") -> Iterator[None]:
    """Hold a folder; the lock lies in inner of it. FileExistsError while another process does.

    A folder that was made for it, and into which nothing was written, is taken away again.
    """
    path, new = folder / inner / LOCK, not folder.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0)       # Windows has no such flag
    with open(os.open(path, flags, 0o644), "r+", encoding="utf-8") as file:
        _hold(file, folder, path)
        try:
            yield
        finally:
            if new and _ours(folder, path):
                with suppress(OSError):
                    path.unlink()
                    for empty in dict.fromkeys((path.parent, folder)):
                        empty.rmdir()


def _hold(file: IO[str], folder: Path, path: Path) -> None:
    try:
        _lock(file)
        there = path.exists() and os.path.samestat(path.stat(), os.fstat(file.fileno()))
    except BlockingIOError:
        there = False
    except OSError as err:      # a network drive without locks
        there = True
        remark(folder, "cannot be locked (%s): let no second process write there", err.strerror)
    content = file.read().strip()
    if not there:
        raise FileExistsError(f"{folder}: process {content or 'of another user'} is writing there; "
                              f"wait for it, or choose another --out")
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
