"""Photographs of defects and their masks: finding, pairing, splitting, reading.

Two layouts are read. MVTec AD, DIR being one category (the object) or a folder of categories:

    DIR/test/<defect>/NAME.*        DIR/ground_truth/<defect>/NAME_mask.*

And a plain pair of folders, images and masks of the same names, or one folder with both. How names
are paired and what a mask file means is in anomaly/files.
"""

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anomaly.files.folders import image_files
from anomaly.files.mask_reading import read_mask, shows
from anomaly.files.names import hidden, normal_form, slug, text_of, whole
from anomaly.files.pairing import mask_files_in, masks_of
from anomaly.files.photographs import read_photograph

LONGEST = 255 - len(".safetensors.part")    # bytes of a file name that are left for the defect's


@dataclass(frozen=True)
class Example:
    """One photograph of a defect and the files of its mask, which are united."""

    image: Path
    masks: tuple[Path, ...]

    @property
    def source(self) -> str:
        """Where the mask comes from, for people."""
        more = f" and {len(self.masks) - 1} more" if len(self.masks) > 1 else ""
        return f"{self.masks[0]}{more}"


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


def pair_folders(images: Path, masks: Path) -> tuple[Example, ...]:
    """Pair the files of two folders by name; each image needs its mask and each mask its image.

    The two may be one folder: what is a mask of another file in it is no image.
    """
    pictures = image_files(images)
    found, left = masks_of(pictures, mask_files_in(masks))
    used = {file.resolve() for own in found.values() for mask in own for file in mask.files}
    pictures = [image for image in pictures if image.resolve() not in used]
    for image in pictures:
        if image not in found:
            raise ValueError(f"{image}: no mask of that name in {masks}; expected "
                             f"{image.stem}_mask.png or {image.stem}.png; add it or remove the "
                             f"image")
    itself = {image.resolve() for image in pictures}
    for mask in left:
        if mask.path.resolve() not in itself:
            raise ValueError(f"{mask.path}: no image of that name in {images}; "
                             f"add it or remove the mask")
    return tuple(Example(image, tuple(file for mask in found[image] for file in mask.files))
                 for image in pictures)


def _category(folder: Path) -> list[Defect]:
    good = folder / "train" / "good"
    normals = good if good.is_dir() else None
    truth = folder / "ground_truth"
    # A folder of masks may have its name in the other Unicode form.
    masks = {normal_form(p.name): p for p in truth.iterdir()} if truth.is_dir() else {}
    kinds = sorted(p for p in (folder / "test").iterdir()
                   if p.is_dir() and not hidden(p) and p.name != "good")
    return [Defect(text_of(folder.name), text_of(kind.name), pair_folders(
                kind, masks.get(normal_form(kind.name), truth / kind.name)), normals)
            for kind in kinds]


def find_defects(data: Path) -> list[Defect]:
    """All defects of a data set in MVTec AD layout: one category, or a folder of categories."""
    if not data.is_dir():
        raise FileNotFoundError(f"{data}: no such folder; expected a data set in MVTec AD layout")
    data = whole(data)      # the folder's own name is the object's, also for "."
    folders = [data] if (data / "test").is_dir() else sorted(
        p for p in data.iterdir() if not hidden(p) and (p / "test").is_dir())
    defects = [defect for folder in folders for defect in _category(folder)]
    if not defects:
        raise ValueError(f"{data}: no defects; expected MVTec AD layout: test/DEFECT/NAME.png with "
                         f"ground_truth/DEFECT/NAME_mask.png (or --images of train_embed.py)")
    check_names(defects)
    return defects


def check_names(defects: list[Defect]) -> None:
    """ValueError if two defects would share their file names, letter case aside."""
    taken: dict[str, Defect] = {}
    for defect in defects:
        if defect.name.lower() == "good":
            raise ValueError(f"{defect.key}: good is the name of what has no defect; rename it")
        if slug(defect.object) == "_meta":
            raise ValueError(f"{defect.key}: _meta is the name of what belongs to no pair; rename "
                             f"the object")
        if len(os.fsencode(defect.stem)) > LONGEST:
            raise ValueError(f"{defect.key}: the name is too long for a file; shorten it")
        for name in {defect.stem, f"{slug(defect.object)}/{slug(defect.name)}"}:
            other = taken.setdefault(name.casefold(), defect)
            if other is not defect:
                raise ValueError(f"{defect.key} and {other.key} would both be written as {name}; "
                                 f"rename one folder")


def select(defects: list[Defect], only: str | None, option: str = "--only") -> list[Defect]:
    """Those named in "object/defect,...", in the order of defects; all if only is None.

    option: what the names were given with, for the error.
    """
    if only is None:
        return defects
    wanted = [text_of(name.strip()) for name in only.split(",")]
    known = [defect.key for defect in defects]
    for name in wanted:
        if name not in known:
            raise ValueError(f"{option}: no defect {name!r}; known are {', '.join(known)}")
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


def read_example_mask(example: Example) -> np.ndarray:
    """The united mask, bool (h, w); ValueError if the files have several sizes."""
    masks = [read_mask(path) for path in example.masks]
    for path, mask in zip(example.masks, masks):
        if mask.shape != masks[0].shape:
            raise ValueError(f"{path}: {mask.shape[1]}x{mask.shape[0]} pixels, but "
                             f"{example.masks[0].name} has {masks[0].shape[1]}x"
                             f"{masks[0].shape[0]}; expected the same size")
    return np.logical_or.reduce(masks)


def read_example(example: Example) -> tuple[np.ndarray, np.ndarray]:
    """Photograph, as the models see it, and mask, of the same size; ValueError otherwise."""
    photograph = read_photograph(example.image)
    for path in example.masks:
        if shows(path, photograph):
            raise ValueError(f"{path}: shows the photograph itself, not its mask; expected white "
                             f"on the defect and black elsewhere")
    mask = read_example_mask(example)
    if photograph.shape[:2] != mask.shape:
        raise ValueError(
            f"{example.masks[0]}: {mask.shape[1]}x{mask.shape[0]} pixels, but {example.image.name} "
            f"has {photograph.shape[1]}x{photograph.shape[0]}; expected the same size; resize it "
            f"without smoothing")
    return photograph, mask
