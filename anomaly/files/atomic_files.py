"""Files that are whole or not there: written under a temporary name, then renamed.

What is read back may have been damaged or edited since: it is checked against what was written.
"""

import csv
import errno
import io
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from reprlib import repr as short
from typing import Any

import numpy as np
from PIL import Image
from safetensors.torch import save
from torch import Tensor

JSON_MOST, CSV_MOST = 2 ** 26, 2 ** 28     # bytes that are read; 2 ** 28 are 400,000 pairs


@contextmanager
def naming(path: Path, size: int = 0) -> Iterator[None]:
    """What a disk fails to write to path names it, the bytes that it takes and the remedy."""
    try:
        yield
    except (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError,
            NotADirectoryError):
        raise       # the folder is at fault, not the disk
    except OSError as err:
        full = err.errno in (errno.ENOSPC, errno.EDQUOT)
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
    # Clones: safetensors refuses tensors that share memory, as expanded or sliced ones do.
    clones = {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}
    # Not save_file: it has a temporary file of its own, which a kill would leave under any name.
    content = save(clones, metadata)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8:8 + length])
    # In order: the library's varies by process.
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    with replacing(path, len(content)) as temporary, open(temporary, "wb") as file:
        file.write(content[:8] + text.ljust(length))    # the format pads its header with spaces
        file.write(memoryview(content)[8 + length:])


def write_text(path: Path, text: str) -> None:
    """UTF-8, line ends as they are."""
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


def _is(value: Any, kind: Any) -> bool:
    """True if a JSON value is of a type (a whole number is a float, too), in a range, or equal."""
    if kind is float:
        return type(value) in (int, float) and abs(value) < 1e300       # NaN is not
    if isinstance(kind, range):
        return type(value) is int and value in kind
    return type(value) is kind or value is kind or (isinstance(kind, str) and value == kind)


def misfit(value: Any, kind: Any, name: str = "") -> str:
    """What in a JSON value is not of a kind, in words; "" if all is.

    kind: a type, a range, None or a word; a tuple of kinds: one of them; a list: the kinds of the
    elements, or the one of all of them, and there are some; a dict: the kinds by key. An absent key
    is None.
    """
    inner: list[tuple[Any, Any, str]] = []
    if isinstance(kind, tuple):
        fits = any(not misfit(value, one) for one in kind)
    elif isinstance(kind, dict) and isinstance(value, dict):
        fits = True
        inner = [(value.get(key), one, f"{name}.{key}") for key, one in kind.items()]
    elif isinstance(kind, list) and isinstance(value, list):
        kinds = kind * len(value) if len(kind) == 1 else kind
        fits = len(kinds) == len(value) > 0
        inner = [(*each, f"{name}[{i}]") for i, each in enumerate(zip(value, kinds))]
    else:
        fits = _is(value, kind)
    if not fits:
        expected = "an object" if isinstance(kind, dict) else "a list" if isinstance(kind, list) \
            else getattr(kind, "__name__", kind)
        return f"{name.lstrip('.') or 'it'} is {short(value)}, expected {expected}"
    return next(filter(None, (misfit(*each) for each in inner)), "")


def _content(path: Path, most: int) -> bytes:
    """A file's bytes; ValueError if there are more than most."""
    if (size := path.stat().st_size) > most:
        raise ValueError(f"{size / 1e6:.0f} MB, expected {most / 1e6:.0f} at most")
    return path.read_bytes()


def read_json(path: Path, kind: dict[str, Any], remedy: str) -> dict[str, Any]:
    """A JSON object of a kind; ValueError that names the file, the place and the remedy."""
    try:
        found: dict[str, Any] = json.loads(_content(path, JSON_MOST))
    except (ValueError, RecursionError) as err:
        raise ValueError(f"{path}: not JSON ({err}); {remedy}") from None
    if problem := misfit(found, kind):
        raise ValueError(f"{path}: {problem}; {remedy}")
    return found


def _csv(columns: list[str], rows: Iterable[Mapping[str, object]], header: bool) -> str:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, columns)
    if header:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def write_rows(path: Path, columns: list[str], rows: Iterable[Mapping[str, object]]) -> None:
    """A CSV file with a header."""
    write_text(path, _csv(columns, rows, header=True))


def append_rows(path: Path, columns: list[str], rows: Iterable[Mapping[str, object]]) -> None:
    """More rows for a CSV file, or its first; a torn last line is the reader's to drop."""
    rows = list(rows)
    with naming(path, 500 * len(rows)), open(path, "ab") as file:
        file.write(_csv(columns, rows, header=file.tell() == 0).encode())


def read_rows(path: Path, columns: list[str],
              numbers: Iterable[tuple[str, type[float]]] = ()) -> list[dict[str, str]]:
    """The whole rows of a CSV file; [] if there is none. A line torn by a kill is left out.

    A column that the file does not have is empty: older versions wrote fewer. numbers: int for
    columns of whole numbers, float for others, which may be empty; ValueError for what is none.
    """
    try:
        text = _content(path, CSV_MOST).decode()
        whole = text[:text.rfind("\n") + 1]
        rows = [{**dict.fromkeys(columns, ""), **row}
                for row in csv.DictReader(io.StringIO(whole, newline=""))
                if set(row) <= set(columns) and None not in row.values()]
        for row, (name, kind) in product(rows, numbers):
            kind(row[name] if kind is int else row[name] or 0)
    except (FileNotFoundError, IsADirectoryError):
        return []
    except (ValueError, csv.Error) as err:
        raise ValueError(f"{path}: damaged ({str(err)!r}); repair that row or remove it") from None
    return rows
