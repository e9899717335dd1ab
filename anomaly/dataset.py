"""Photographs of defects and their masks: finding, pairing, splitting, reading.

Two layouts are read. MVTec AD, DIR being one category (the object) or a folder of categories:

    DIR/test/<defect>/NAME.*        DIR/ground_truth/<defect>/NAME_mask.*

And a plain pair of folders, images and masks of the same names.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

MASK_SUFFIXES = ("", "_mask", "_GT", "_label")      # MVTec AD, KolektorSDD, and plain names


@dataclass(frozen=True)
class Example:
    """One photograph of a defect and the file of its mask."""

    image: Path
    mask: Path


@dataclass(frozen=True)
class Defect:
    """One kind of defect on one object, with its examples in order of name."""

    object: str
    name: str
    examples: tuple[Example, ...]
    normals: Path | None = None     # the folder of defect-free photographs, if the layout has one

    @property
    def key(self) -> str:
        """object/defect, as the command line and the random seeds spell it."""
        return f"{self.object}/{self.name}"

    @property
    def stem(self) -> str:
        """object-defect, safe as a file name on every system."""
        return f"{slug(self.object)}-{slug(self.name)}"


def slug(name: str) -> str:
    """A name with everything but ASCII letters, digits, "_" and "-" turned into "-"."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", name)


def _open(path: Path, kind: str) -> Image.Image:
    """The decoded file, turned as its EXIF tag says; ValueError for what is not a whole image."""
    try:
        with Image.open(path) as file:
            file.load()
            return ImageOps.exif_transpose(file)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: no such {kind}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as err:
        size = path.stat().st_size if path.is_file() else 0
        raise ValueError(f"{path}: cannot be read as a {kind} ({size} bytes: {err}); "
                         f"replace or remove it") from None


def read_photograph(path: Path) -> np.ndarray:
    """uint8 (h, w) for grey files, (h, w, 3) for colour; alpha dropped, 16 bit scaled to 8."""
    image = _open(path, "photograph")
    if image.mode.startswith("I"):          # 16-bit grey: "I;16", or "I" from older files
        values = np.asarray(image, dtype=np.float64)
        if values.min() < 0 or values.max() > 65535:
            raise ValueError(f"{path}: 32-bit values up to {values.max():.0f}; expected 8 or 16 "
                             f"bits a channel; convert it to PNG")
        return np.round(values / 257).astype(np.uint8)
    if image.mode == "F":
        raise ValueError(f"{path}: floating-point pixels; expected 8 or 16 bits a channel; "
                         f"convert it to PNG")
    return np.asarray(image.convert("L" if image.mode in ("1", "L", "LA", "La") else "RGB"))


def read_mask(path: Path) -> np.ndarray:
    """bool (h, w), True on the defect.

    Above 127 if the maximum is 128 or more (0/255 masks, grey edges), else above 0 (index masks).
    """
    image = _open(path, "mask")
    if image.mode not in ("L", "P", "1", "F") and not image.mode.startswith("I"):
        image = image.convert("RGB").convert("L")
    values = np.asarray(image).astype(np.float64)
    scale = 257 if values.max() > 255 else 1            # 16-bit masks
    values = values * 255 if image.mode == "1" else values / scale
    return values > (127 if values.max() >= 128 else 0)


def image_files(folder: Path) -> list[Path]:
    """The image files of a folder by name; labels and other files beside them are passed over."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder; expected one with image files")
    extensions = Image.registered_extensions()
    found = sorted(p for p in folder.iterdir() if p.is_file() and not p.name.startswith("."))
    images = [p for p in found if p.suffix.lower() in extensions]
    if not images:
        inside = f"{len(found)} other files such as {found[0].name}" if found else "nothing"
        raise ValueError(
            f"{folder}: no image files (found {inside}); expected PNG, JPEG, BMP or TIFF")
    return images


def pair_folders(images: Path, masks: Path) -> tuple[Example, ...]:
    """Pair the files of two folders by name; each image needs its mask and each mask its image."""
    mask_of: dict[str, Path] = {}
    for path in image_files(masks):
        if path.stem in mask_of:
            raise ValueError(f"{path}: a second mask named {path.stem} beside "
                             f"{mask_of[path.stem].name}; keep one")
        mask_of[path.stem] = path
    examples = []
    seen: dict[str, Path] = {}
    for path in image_files(images):
        stems = [path.stem + suffix for suffix in MASK_SUFFIXES if path.stem + suffix in mask_of]
        if not stems:
            raise ValueError(f"{path}: no mask of that name in {masks}; expected "
                             f"{path.stem}_mask.png or {path.stem}.png; add it or remove the image")
        if stems[0] in seen:
            raise ValueError(f"{path}: its mask {mask_of[stems[0]].name} belongs to "
                             f"{seen[stems[0]].name} as well; rename one image")
        seen[stems[0]] = path
        examples.append(Example(path, mask_of[stems[0]]))
    unused = sorted(set(mask_of) - set(seen))
    if unused:
        raise ValueError(f"{mask_of[unused[0]]}: no image of that name in {images}; "
                         f"add it or remove the mask")
    return tuple(examples)


def _category(folder: Path) -> list[Defect]:
    good = folder / "train" / "good"
    normals = good if good.is_dir() else None
    names = sorted(p.name for p in (folder / "test").iterdir() if p.is_dir() and p.name != "good")
    return [Defect(folder.name, name,
                   pair_folders(folder / "test" / name, folder / "ground_truth" / name), normals)
            for name in names]


def find_defects(data: Path) -> list[Defect]:
    """All defects of a data set in MVTec AD layout: one category, or a folder of categories."""
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder; expected a data set in MVTec AD layout")
    data = data.resolve()       # the folder's own name is the object's, also for "."
    folders = [data] if (data / "test").is_dir() else sorted(
        p for p in data.iterdir() if (p / "test").is_dir())
    defects = [defect for folder in folders for defect in _category(folder)]
    if not defects:
        raise ValueError(f"{data}: no defects; expected MVTec AD layout: test/DEFECT/NAME.png with "
                         f"ground_truth/DEFECT/NAME_mask.png, or --images and --masks")
    check_names(defects)
    return defects


def check_names(defects: list[Defect]) -> None:
    """ValueError if two defects would share their file names, letter case aside."""
    taken: dict[str, Defect] = {}
    for defect in defects:
        if defect.name.lower() == "good":
            raise ValueError(f"{defect.key}: good is the name of what has no defect; rename it")
        for name in {defect.stem, f"{slug(defect.object)}/{slug(defect.name)}"}:
            other = taken.setdefault(name.lower(), defect)
            if other is not defect:
                raise ValueError(f"{defect.key} and {other.key} would both be written as {name}; "
                                 f"rename one folder")


def select(defects: list[Defect], only: str | None) -> list[Defect]:
    """Those named in "object/defect,...", in the order of defects; all if only is None."""
    if only is None:
        return defects
    wanted = [name.strip() for name in only.split(",")]
    known = [defect.key for defect in defects]
    for name in wanted:
        if name not in known:
            raise ValueError(f"--only: no defect {name!r}; known are {', '.join(known)}")
    return [defect for defect in defects if defect.key in wanted]


def first_third(defect: Defect) -> tuple[tuple[Example, ...], tuple[Example, ...]]:
    """The paper's split: train on the first n // 3 examples by name, or one; test on the rest.

    Raises ValueError if a photograph is in both, by way of a link.
    departs from the released code: it trains on one example more, which its evaluation tests on.
    """
    count = max(1, len(defect.examples) // 3)
    train, test = defect.examples[:count], defect.examples[count:]
    shared = {e.image.resolve() for e in train} & {e.image.resolve() for e in test}
    if shared:
        raise ValueError(
            f"{min(shared)}: both in the first third of {defect.key}, which is learned, and in the "
            f"rest, which is for testing; remove one, or learn from all with --split all")
    return train, test


def read_example(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Photograph and mask of the same size, the mask not empty; ValueError otherwise."""
    photograph, mask = read_photograph(example.image), read_mask(example.mask)
    if photograph.shape[:2] != mask.shape:
        raise ValueError(
            f"{example.mask}: {mask.shape[1]}x{mask.shape[0]} pixels, but {example.image.name} "
            f"has {photograph.shape[1]}x{photograph.shape[0]}; expected the same size")
    if not mask.any():
        raise ValueError(f"{example.mask}: no defect in it, every pixel is background; "
                         f"draw the mask or remove the pair")
    return photograph, mask
