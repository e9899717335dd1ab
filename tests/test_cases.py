"""Situations that users reported, each drawn by a script of its own, with their right outcomes.

The scripts lie outside the project (DEFECT_CASES); the other tests redraw what matters.
"""

import os
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from commands import ROOT, call

CASES = Path(os.environ.get("DEFECT_CASES", ROOT.parent / "shared/cases"))
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="DEFECT_CASES names no folder")

# case -> pixels of the mask that is painted, and what a remark says
PAINTED = {
    "big": (51865, ""), "panorama": (800, ""), "cmyk_normal": (3000, "CMYK is written as RGB"),
    "palette_normal": (3000, "a palette is written as RGB"), "palette_white_first": (3000, ""),
    "rgba_mask": (3000, ""), "colour_classes": (3900, "3 colours: all but (0, 0, 0)"),
    "jpeg_grey_mask": (3841, "above 50 is the defect"), "full_mask": (32000, "100 % of the"),
    "sixteen_bit_normal": (3000, ""), "rgba_normal": (3000, ""), "linescan": (40000, ""),
    "linescan_smaller": (40000, ""), "multipage": (3000, "page 1 of 3 is used"),
    "stray_files": (3000, ""), "stray_h5": (3000, "")}
# case -> folders of photographs and masks, and what the line says; None: it learns
LEARNED = {
    "same_folder": ("data", "data", None), "nfd": ("img", "msk", None),
    "nested": ("img", "msk", "img: no image files, but in its subfolders mon, tue"),
    "broken_link": ("img", "msk", "1.png: a link to /nowhere/1.png, which is not there"),
    "heic_mixed": ("img", "msk", "IMG_2.HEIC: HEIC cannot be read; convert it to PNG or JPEG"),
    "exif_mask": ("img", "msk", "200x160 pixels, but a.jpg has 160x200"),
    "one_pixel": ("img", "msk", "201x160 pixels, but a.png has 200x160"),
    "junk": ("my img (1)", "my msk", None), "tiff16rgb": ("img", "msk", None),
    "truncated_jpeg": ("img", "msk", "1.jpg: cannot be read as a photograph"),
    "colmap_names": ("img", "msk", None), "latin1": ("img", "msk", None),
    "chinese_one": ("图", "标签", None),
    **{f"upper_suffix {i}": (f"img{i}", f"msk{i}", None) for i in range(4)}}


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a case in the folder that the tools then run in."""
    def drawn(name):
        monkeypatch.syspath_prepend(CASES)
        monkeypatch.setattr(sys, "argv", [name, str(tmp_path)])
        sys.modules.pop("common", None)
        runpy.run_path(str(CASES / f"{name}.py"))
        monkeypatch.chdir(tmp_path)
        return tmp_path
    return drawn


@pytest.fixture(scope="module")
def run(checkpoint, tmp_path_factory):
    """Three steps on three photographs, object tile, defect blowhole."""
    folder = tmp_path_factory.mktemp("run")
    for i in range(3):
        pixels = np.random.default_rng(i).integers(90, 130, (64, 80), dtype=np.uint8)
        mask = np.zeros_like(pixels)
        mask[20:40, 30:50] = 255
        for name, picture in (("img", pixels), ("msk", mask)):
            (folder / name).mkdir(exist_ok=True)
            Image.fromarray(picture).save(folder / name / f"{i}.png")
    assert call("train_embed", "--weights", checkpoint, "--images", folder / "img", "--masks",
                folder / "msk", "--name", "tile/blowhole", "--steps", 3, "--no-masks", "--out",
                folder / "run") == 0
    return folder / "run"


def sample(run, *more, masks="m", out="out"):
    return call("sample", "--run", run, "--normals", "good", "--masks", masks, "--steps", 3,
                "--n", 1, "--batch-size", 1, "--out", out, *more)


def pair(out, k=0, *, thing="tile", defect="blowhole"):
    return (np.asarray(Image.open(out / thing / "test" / defect / f"{k:05}.png")),
            np.asarray(Image.open(out / thing / "ground_truth" / defect / f"{k:05}_mask.png")) > 0)


@pytest.mark.parametrize("name", PAINTED)
def test_painted(draw, run, capsys, recwarn, monkeypatch, name):
    pixels, said = PAINTED[name]
    folder = draw(name)
    assert sample(run) == 0
    errors = capsys.readouterr().err
    assert said in errors and "Warning" not in errors and not recwarn.list
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)     # of this test's own reading
    image, mask = pair(folder / "out")
    assert mask.sum() == pixels
    normal = Image.open(next(path for path in sorted((folder / "good").iterdir())
                             if path.suffix in (".png", ".jpg", ".tif")))
    if name in ("cmyk_normal", "palette_normal"):
        normal = normal.convert("RGB")
    if not name.startswith("stray"):    # which of the two normals it is, the manifest says
        before = np.asarray(normal)
        assert image.dtype == before.dtype and image.shape == before.shape
        assert np.array_equal(image[~mask], before[~mask]) and (image[mask] != before[mask]).any()


@pytest.mark.parametrize("name", LEARNED)
def test_learned(draw, checkpoint, capsys, name):
    images, masks, words = LEARNED[name]
    draw(name.split()[0])
    code = call("train_embed", "--weights", checkpoint, "--images", images, "--masks", masks,
                "--name", "k/d", "--steps", 3, "--no-masks", "--out", "run")
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == (0 if words is None else 2), error
    assert words is None or words in error


def test_existing_pairs(draw, run, capsys):
    folder = draw("existing_pairs")
    before = {path: path.read_bytes() for path in folder.rglob("*.png")}
    assert sample(run, masks="train", out="dataset") == 2
    assert "00000" in capsys.readouterr().err.splitlines()[-1]
    assert {path: path.read_bytes() for path in folder.rglob("*.png")} == before


def test_named_masks(draw, run):
    folder = draw("named_masks")
    assert sample(run, "--n", 4) == 0
    for k in range(4):
        image, mask = pair(folder / "out", k)
        before = np.asarray(Image.open(folder / f"good/part_{k}.png"))
        assert np.array_equal(mask, np.asarray(Image.open(folder / f"m/part_{k}.png")) > 0)
        assert np.array_equal(image[~mask], before[~mask]) and (before[mask] == 170).all()


def test_voc_void(draw, run, capsys):
    folder = draw("voc_void")
    assert sample(run) == 2 and not (folder / "out").exists()
    assert "its values are 0, 1, 255" in capsys.readouterr().err.splitlines()[-1]


def test_latin1(draw, run):
    folder = draw("latin1")
    assert sample(run, "--n", 2, masks="train") == 0
    manifest = (folder / "out/_meta/manifest.csv").read_text(encoding="utf-8")
    assert r"gut_\xe4_0.png" in manifest and r"gut_\xe4_1.png" in manifest
    assert (folder / "out/_meta/contact_sheet.jpg").is_file()


def test_checkpoints_dir(draw, checkpoint):
    draw("checkpoints_dir")
    assert call("train_embed", "--weights", checkpoint, "--data", "tile", "--steps", 3,
                "--no-masks", "--out", "run") == 0


def test_chinese_names_are_kept(draw, checkpoint):
    folder = draw("chinese_one")
    assert call("train_embed", "--weights", checkpoint, "--images", "图", "--masks", "标签",
                "--name", "瓷砖/划痕", "--steps", 3, "--no-masks", "--out", "run") == 0
    assert (folder / "run/embeddings/瓷砖-划痕.safetensors").is_file()
    assert sample("run", masks="train") == 0
    image, mask = pair(folder / "out", thing="瓷砖", defect="划痕")
    assert image.shape == mask.shape == (160, 200)
