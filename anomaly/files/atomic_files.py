"""Files that are whole or not there: written under a temporary name, then renamed."""

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor


@contextmanager
def naming(path: Path, size: int = 0) -> Iterator[None]:
    """What a disk fails to write to path names it, the bytes that it takes and the remedy."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError,
            NotADirectoryError):
        raise       # the folder is at fault, not the disk
    except (SafetensorError, OSError) as err:
        full = isinstance(err, SafetensorError) or err.errno in (errno.ENOSPC, errno.EDQUOT)
        takes = f" (up to {size / 1e6:.2f} MB are needed)" if size and full else ""
        remedy = "make room on" if full else "check"
        raise OSError(f"{path}: not written: {err}{takes}; {remedy} the disk, or give another "
                      f"--out") from None


@contextmanager
def replacing(path: Path, size: int = 0) -> Iterator[Path]:
    """A temporary path beside `path`; renamed to it if the block ends well, removed if it fails.

    size: bytes that will be written at most, for the message of a full disk; 0: not known.
    """
    with naming(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")     # one name: a killed run's is overwritten
    try:
        with naming(path, size):
            yield temporary
            os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_image(path: Path, pixels: np.ndarray) -> None:
    """(h, w), uint8 or uint16, or uint8 (h, w, 2 to 4) -> PNG, or JPEG by the suffix."""
    with replacing(path, pixels.nbytes + 1024) as temporary:
        kind = "PNG" if path.suffix == ".png" else "JPEG"
        Image.fromarray(pixels).save(temporary, format=kind, quality=90)


def write_tensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """A safetensors file."""
    size = sum(tensor.nbytes for tensor in tensors.values())
    with replacing(path, size + 4096) as temporary:
        # Clones: safetensors refuses tensors that share memory, as expanded or sliced ones do.
        clones = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
        save_file(clones, temporary, metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Rewrite a safetensors header with its metadata in order: the library's varies by process."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        file.write(text.ljust(length))      # the format pads its header with spaces


def write_text(path: Path, text: str) -> None:
    """UTF-8, lines ended as on Unix."""
    content = text.encode()
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Indented JSON."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def link(source: Path, path: Path) -> None:
    """The same file under another name, or a copy where the disk cannot have that."""
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), path)
    except FileExistsError:
        raise
    except OSError:         # another disk, a system without links, too many of one file
        with replacing(path, source.stat().st_size) as temporary:
            shutil.copyfile(source, temporary)


def _csv(columns: list[str], rows: Iterable[Mapping[str, object]], header: bool) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def write_rows(path: Path, columns: list[str], rows: Iterable[Mapping[str, object]]) -> None:
    """A CSV file with a header."""
    content = _csv(columns, rows, header=True)
    with replacing(path, len(content)) as temporary:
        temporary.write_bytes(content)


def append_rows(path: Path, columns: list[str], rows: Iterable[Mapping[str, object]]) -> None:
    """More rows for a CSV file, or its first; a torn last line is the reader's to drop."""
    rows = list(rows)
    with naming(path, 500 * len(rows)), open(path, "ab") as file:
        file.write(_csv(columns, rows, header=file.tell() == 0))


def read_rows(path: Path, columns: list[str]) -> list[dict[str, str]]:
    """The whole rows of a CSV file; [] if there is none. A line torn by a kill is left out.

    A column that the file does not have is empty: older versions wrote fewer.
    """
    if not path.is_file():
        return []
    with open(path, newline="", encoding="utf-8") as file:
        text = file.read()
    whole = text[:text.rfind("\n") + 1]
    rows = csv.DictReader(io.StringIO(whole, newline=""))
    return [{**dict.fromkeys(columns, ""), **row} for row in rows
            if set(row) <= set(columns) and None not in row.values()]
