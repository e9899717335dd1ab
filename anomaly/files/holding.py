"""Folders that a tool writes into: what is there is its own, and one process at a time holds it."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


@contextmanager
def held(folder: Path, inner: str = "") -> Iterator[None]:
    """Hold a folder; the lock lies in inner of it. FileExistsError while another process does.

    A folder that nothing was written into is taken away again.
    """
    path, new = folder / inner / LOCK, not folder.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with open(path, "a+", encoding="utf-8") as file:
            _hold(file, folder)
            yield
    finally:
        if new and not any(other.is_file() and other != path for other in folder.rglob("*")):
            shutil.rmtree(folder)


def _hold(file: IO[str], folder: Path) -> None:
    try:
        _lock(file)
    except BlockingIOError:
        file.seek(0)
        raise FileExistsError(f"{folder}: process {file.read().strip()} is writing there; wait for "
                              f"it, or choose another --out") from None
    except OSError as err:      # a network drive without locks
        remark(folder, "cannot be locked (%s): let no second process write there", err.strerror)
    file.truncate(0)
    file.write(str(os.getpid()))
    file.flush()


def refuse_foreign(folder: Path, own: set[str]) -> None:
    """FileExistsError if the folder shows anything but own, naming its first file."""
    if not folder.exists():
        return
    if not folder.is_dir():
        raise FileExistsError(f"{folder}: is a file; --out takes a folder")
    for path in sorted(folder.iterdir()):
        if path.name not in own and not hidden(path):
            first = next((inner for inner in path.rglob("*") if inner.is_file()), path)
            raise FileExistsError(f"{first}: was there before and is never touched; choose a new "
                                  f"or empty --out")
