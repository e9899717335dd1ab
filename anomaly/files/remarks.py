"""What is worth a line, but only one."""

import logging
from pathlib import Path

log = logging.getLogger(__name__)
_said: set[tuple[Path, str]] = set()


def remark(about: Path, text: str, *values: object) -> None:
    """Say it of a file or folder, once whatever the values."""
    if (about, text) not in _said:
        _said.add((about, text))
        log.info("%s: " + text, about, *values)
