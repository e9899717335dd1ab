"""Names as people read them: of any script, in either Unicode form, even in bytes that are none.

A Mac writes "ö" as o and two dots (NFD), other systems as one letter (NFC): the same name to the
eye, other bytes on the disk. Python keeps bytes that are not UTF-8 as lone surrogates, which no
UTF-8 file can hold.
"""

import os
import re
import unicodedata
from pathlib import Path

# What systems and servers leave in folders, beside names with a leading dot.
LEFTOVERS = {"__MACOSX", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information",
             "lost+found"}


def hidden(path: Path) -> bool:
    """True for what people do not see or do not mean."""
    return path.name.startswith(".") or path.name in LEFTOVERS


def normal_form(name: str) -> str:
    """NFC, in which names are compared."""
    return unicodedata.normalize("NFC", name)


def text_of(name: str) -> str:
    """The name of a folder as text that is the same on every system."""
    return shown(normal_form(name))


def slug(name: str) -> str:
    """A name as a file's: letters, digits and their marks of any script, "_" and "-"; else "-"."""
    return "".join(c if c in "_-" or unicodedata.category(c)[0] in "LMN" else "-"
                   for c in normal_form(name))


def shown(name: str | Path) -> str:
    r"""The name as UTF-8 can hold it: bytes that are no UTF-8 become \xe4."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def unshown(text: str) -> Path:
    """The way back from shown, if the path it gives is there; else the text as it stands."""
    path = Path(os.fsdecode(re.sub(rb"\\x([89a-f][0-9a-f])", lambda m: bytes.fromhex(m[1].decode()),
                                   os.fsencode(text))))
    return path if path.exists() else Path(text)


def same_path(a: object, b: object) -> bool:
    """True if both are equal, or are paths of the same place, by way of a link."""
    texts = isinstance(a, str) and isinstance(b, str)
    return a == b or (texts and os.path.realpath(str(a)) == os.path.realpath(str(b)))


def whole(path: Path) -> Path:
    """The absolute path, links left as they are: a link's own name counts."""
    return Path(os.path.abspath(path))
