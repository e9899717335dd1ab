"""Which masks belong to which photograph: by name, whatever the tool that wrote them calls them.

    NAME.png  NAME_mask.png  NAME-mask.png  NAME_GT.png  NAME_label.png  NAME_seg.png  NAME.jpg.png
    NAME_mask_1.png, NAME_mask_2.png, ...: united
    NAME/000.png, NAME/001.png, ...: united (MVTec LOCO)

Suffixes in any letter case, names in either Unicode form. An image is never its own mask.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from anomaly.files.folders import READ, image_files, subfolders
from anomaly.files.names import normal_form

SUFFIX = re.compile(
    r"(.+?)([ ._-]*)(masks?|gt|ground[ _-]?truth|labels?|seg|segm|segmentation|annotation)"
    r"(?P<number>[ ._-]*\d+)?", re.IGNORECASE | re.DOTALL)


@dataclass(frozen=True)
class MaskFiles:
    """The masks under one name: a file, or a folder with several."""

    path: Path
    files: tuple[Path, ...]


def mask_files_in(path: Path) -> list[MaskFiles]:
    """A mask file, or all masks in a folder, those in a subfolder as one; errors of image_files."""
    if path.is_file():
        return [MaskFiles(path, (path,))]
    here = [MaskFiles(file, (file,)) for file in image_files(path, flat=False)]
    return here + [MaskFiles(inner, tuple(image_files(inner))) for inner in subfolders(path)]


def _stem(name: str) -> str:
    """The name without an image file's ending."""
    base, dot, ending = name.rpartition(".")
    return base if base and dot + ending.lower() in READ else name


def _names(mask: MaskFiles) -> Iterator[tuple[str, bool]]:
    """The names that a mask's photograph may have, likeliest first, and whether it is numbered."""
    stem = normal_form(mask.path.stem if mask.path in mask.files else mask.path.name)
    for base in dict.fromkeys((stem, _stem(stem))):
        yield base, False
        if match := SUFFIX.fullmatch(base):
            for end in range(match.end(2), match.end(1) - 1, -1):       # "a " may be a name, too
                yield base[:end], match["number"] is not None
            yield _stem(match[1]), match["number"] is not None


def masks_of(images: Sequence[Path], masks: Sequence[MaskFiles]) -> tuple[
        dict[Path, list[MaskFiles]], list[MaskFiles]]:
    """The masks of each image that has some, and those of none of them.

    Raises ValueError if two images have the name of a mask, or an image has two masks of its name.
    """
    named: dict[str, list[Path]] = {}
    for image in images:
        named.setdefault(normal_form(image.stem), []).append(image)
    found: dict[Path, list[MaskFiles]] = {}
    single: dict[Path, MaskFiles] = {}
    left = []
    for mask in masks:
        for name, numbered in _names(mask):
            own = [image for image in named.get(name, ())
                   if not any(file.samefile(image) for file in mask.files)]
            if not own:
                continue
            if len(own) > 1:
                raise ValueError(f"{own[1]}: of the same name as {own[0].name} beside it, and one "
                                 f"mask, {mask.path}; rename one")
            if not numbered and single.setdefault(own[0], mask) is not mask:
                raise ValueError(f"{mask.path}: a second mask of {own[0].name} beside "
                                 f"{single[own[0]].path.name}; keep one, or number them _mask_1, "
                                 f"_mask_2 to unite them")
            found.setdefault(own[0], []).append(mask)
            break
        else:
            left.append(mask)
    return found, left
