"""Names, folders, and which mask belongs to which photograph."""

import logging
import os
import unicodedata

import numpy as np
import pytest
from PIL import Image

from anomaly.dataset import find_defects, pair_folders, read_example, read_example_mask
from anomaly.files.folders import image_files
from anomaly.files.names import hidden, shown, slug, unshown
from anomaly.files.pairing import mask_files_in, masks_of


def draw(path, value=None, top=2):
    """A photograph, or a mask with one row from top on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((8, 9), 90 if value is None else value, np.uint8)
    if value is not None:
        pixels[top, 2:5] = 255
    Image.fromarray(pixels).save(path, "PNG")
    return path


def pairs(folder, photographs, masks, together=False):
    """Draw them and pair them: {photograph's name: names of its masks}."""
    for name in photographs:
        draw(folder / ("d" if together else "i") / name)
    for name in masks:
        draw(folder / ("d" if together else "m") / name, 0)
    both = (folder / "d", folder / "d") if together else (folder / "i", folder / "m")
    return {e.image.name: [m.name for m in e.masks] for e in pair_folders(*both)}


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("mask", [
    "a_mask.png", "a_MASK.png", "a-mask.png", "a mask.png", "a.mask.png", "a_Masks.png", "a_gt.png",
    "a_GT.bmp", "a_label.png", "a_Labels.tif", "a_seg.png", "a_segmentation.png", "a.jpg.png",
    "a.JPG_mask.png", "a.png_gt.png", "a_ground_truth.png", "a_annotation.png", "a_mask_1.png"])
def test_the_suffixes_of_the_common_layouts_are_known(tmp_path, mask, together):
    assert pairs(tmp_path, ["a.jpg"], [mask], together) == {"a.jpg": [mask]}


@pytest.mark.parametrize("name", ["a b", " a ", "a\nb", "a\tb", "-a", "'a\"", "%s{0}", "a" * 240])
def test_any_name_is_paired(tmp_path, name):
    assert pairs(tmp_path, [f"{name}.png"], [f"{name}_mask.png"]) == {
        f"{name}.png": [f"{name}_mask.png"]}


def test_the_longest_name_wins(tmp_path):
    found = pairs(tmp_path, ["a.png", "a_1.png", "a_gt.png", "b.x.png"],
                  ["a.png", "a_1_mask.png", "a_gt_gt.png", "b.x.png"])
    assert found == {"a.png": ["a.png"], "a_1.png": ["a_1_mask.png"], "a_gt.png": ["a_gt_gt.png"],
                     "b.x.png": ["b.x.png"]}


def test_several_masks_of_a_photograph_are_united(tmp_path):
    assert pairs(tmp_path / "1", ["a.jpg"], ["a_mask_1.png", "a_mask_2.png", "a_mask.png"]) == {
        "a.jpg": ["a_mask.png", "a_mask_1.png", "a_mask_2.png"]}
    assert pairs(tmp_path / "2", ["000.png"], ["000/000.png", "000/001.png"]) == {
        "000.png": ["000.png", "001.png"]}      # MVTec LOCO
    assert pairs(tmp_path / "3", ["1.5mm.png"], ["1.5mm/0.png"]) == {"1.5mm.png": ["0.png"]}
    for i in range(2):
        draw(tmp_path / f"2/m/000/00{i}.png", 0, top=i)
    example, = pair_folders(tmp_path / "2/i", tmp_path / "2/m")
    assert read_example_mask(example).sum(axis=1).tolist() == [3, 3, 0, 0, 0, 0, 0, 0]
    Image.new("L", (9, 9), 255).save(tmp_path / "2/m/000/001.png")
    with pytest.raises(ValueError, match="001.png: 9x9 pixels, but 000.png has 9x8"):
        read_example_mask(example)


@pytest.mark.parametrize("photographs, masks, words", [
    (["a.png"], ["a.png", "a_mask.png"], "a_mask.png: a second mask of a.png beside a.png; keep"),
    (["a.png"], ["a_mask.png", "a_mask.bmp"], "a second mask of a.png"),
    (["a.png", "a.bmp"], ["a_mask.png"], "a.png: of the same name as a.bmp beside it"),
    (["a.png", "a_1.png"], ["a_mask.png", "a_1_mask.png", "a_2_mask.png"],
     "a_2_mask.png: no image of that name"),
    (["a.png", "b.png"], ["a_mask.png"], "b.png: no mask of that name"),
    (["a.png"], ["a_mask.png", "c_mask.png"], "c_mask.png: no image of that name")])
def test_what_is_not_clear_is_refused(tmp_path, photographs, masks, words):
    with pytest.raises(ValueError, match=words):
        pairs(tmp_path, photographs, masks)


def test_an_image_is_never_its_own_mask(tmp_path):
    for name in ("a.png", "b.png", "b_gt.png"):
        draw(tmp_path / "d" / name, 0)
    with pytest.raises(ValueError, match="a.png: no mask of that name"):
        pair_folders(tmp_path / "d", tmp_path / "d")
    (tmp_path / "l").symlink_to(tmp_path / "d")
    with pytest.raises(ValueError, match="a.png: no mask of that name"):
        pair_folders(tmp_path / "d", tmp_path / "l")
    (tmp_path / "h").mkdir()
    for name in ("a.png", "b.png"):     # hard links: other names of the photographs themselves
        os.link(tmp_path / "d" / name, tmp_path / "h" / name)
    with pytest.raises(ValueError, match="a.png: no mask of that name"):
        pair_folders(tmp_path / "d", tmp_path / "h")


@pytest.mark.parametrize("ending, drawn", [("jpg", False), ("png", False), ("png", True)])
@pytest.mark.parametrize("ground", [0, 120, 255])
def test_a_copy_of_the_photograph_is_not_its_mask(tmp_path, ending, drawn, ground):
    """Maybe drawn upon; a part on an even ground is told by the part."""
    photograph, mask = np.full((40, 50), ground, np.uint8), np.zeros((40, 50), np.uint8)
    photograph[10:30, 10:40] = np.random.default_rng(0).integers(60, 100, (20, 30))
    mask[12:20, 12:20] = 255
    copy = np.dstack([photograph] * 3)
    if drawn:
        copy[12:20, 12:20] = 255, 0, 0
    for folder, picture, name in (("i", photograph, "a.png"), ("m", copy, f"a.{ending}"),
                                  ("right", mask, "a.png")):
        (tmp_path / folder).mkdir()
        Image.fromarray(picture).save(tmp_path / folder / name)
    example, = pair_folders(tmp_path / "i", tmp_path / "m")
    with pytest.raises(ValueError, match="m/a.*: shows the photograph itself, not its mask"):
        read_example(example)
    example, = pair_folders(tmp_path / "i", tmp_path / "right")
    assert read_example(example)[1].sum() == 64


@pytest.mark.parametrize("name", ["größe", "é", "ガード", "각인", "tiếng Việt"])
def test_both_unicode_forms_are_the_same_name(tmp_path, name):
    forms = unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)
    assert forms[0] != forms[1] and slug(forms[0]) == slug(forms[1])
    assert len(pairs(tmp_path / "p", [f"{forms[0]}.png"], [f"{forms[1]}_mask.png"])) == 1
    root = tmp_path / forms[1]
    draw(root / f"test/{forms[0]}/0.png")
    draw(root / f"ground_truth/{forms[1]}/0_mask.png", 0)
    defect, = find_defects(root)
    assert (defect.object, defect.name) == (forms[0], forms[0])


@pytest.mark.parametrize("name, kept", [
    ("瓷砖", "瓷砖"), ("царапина", "царапина"), ("خدش", "خدش"), ("खरोंच", "खरोंच"), ("รอย", "รอย"),
    ("a b/c", "a-b-c"), ("x.y:z", "x-y-z"), ("m_2-3", "m_2-3"), ("№5", "-5"), ("😀", "-")])
def test_letters_of_every_script_stay_in_a_files_name(name, kept):
    assert slug(name) == kept


def test_bytes_that_are_no_utf8_are_shown_and_found_again(tmp_path):
    raw = os.fsdecode(os.fsencode(tmp_path) + b"/kratzer_\xe4.png")
    draw(type(tmp_path)(raw))
    assert shown(raw).endswith(r"kratzer_\xe4.png") and str(unshown(shown(raw))) == raw
    plain = draw(tmp_path / r"back\xe4slash.png")
    assert unshown(shown(plain)) == plain


def test_hidden_files_folders_and_leftovers_are_passed_over(tmp_path):
    draw(tmp_path / "tile/test/crack/0.png")
    draw(tmp_path / "tile/ground_truth/crack/0_mask.png", 0)
    for name in (".ipynb_checkpoints", "__MACOSX", "@eaDir", ".Trash-1000"):
        assert hidden(tmp_path / name)
        for place in ("tile/test/crack", "tile/ground_truth/crack", "tile/test", "."):
            (tmp_path / place / name / "test").mkdir(parents=True)
            draw(tmp_path / place / name / "x.png")
    for name in ("Thumbs.db", "._0.png", "notes.txt", "a.pdf", "b.h5", "c.json"):
        (tmp_path / "tile/test/crack" / name).write_bytes(b"x")
    assert [d.key for d in find_defects(tmp_path)] == ["tile/crack"]
    assert len(find_defects(tmp_path)[0].examples) == 1


def test_a_links_own_name_counts(tmp_path):
    draw(tmp_path / "v17/test/crack/0.png")
    draw(tmp_path / "v17/ground_truth/crack/0.png", 0)
    (tmp_path / "tile").symlink_to(tmp_path / "v17")
    (tmp_path / "tile/test/crack/0.png").rename(tmp_path / "object.png")
    (tmp_path / "tile/test/crack/0.png").symlink_to(tmp_path / "object.png")
    defect, = find_defects(tmp_path / "tile")
    assert defect.key == "tile/crack" and defect.examples[0].image.name == "0.png"


@pytest.mark.parametrize("spoil, words", [
    (lambda d: (d / "x.png").symlink_to("/nowhere/x.png"), "x.png: a link to /nowhere/x.png"),
    (lambda d: (d / "IMG_2.HEIC").write_bytes(b"x"), "IMG_2.HEIC: HEIC cannot be read; convert it"),
    (lambda d: (d / "b.CR2").write_bytes(b"x"), "b.CR2: CR2 cannot be read"),
    (lambda d: (d / "c.dcm").write_bytes(b"x"), "c.dcm: DCM cannot be read")])
def test_what_cannot_be_read_is_named(tmp_path, spoil, words):
    draw(tmp_path / "a.png")
    spoil(tmp_path)
    with pytest.raises((ValueError, FileNotFoundError), match=words):
        image_files(tmp_path)


def test_a_file_in_the_place_of_a_folder_is_called_one(tmp_path):
    with pytest.raises(NotADirectoryError, match="a.png: is a file; expected the folder"):
        image_files(draw(tmp_path / "a.png"))


def test_a_raw_file_beside_its_jpeg_is_passed_over(tmp_path):
    draw(tmp_path / "a.png")
    for name in ("a.CR2", "a.xcf", "a.heic"):
        (tmp_path / name).write_bytes(b"x")
    assert [p.name for p in image_files(tmp_path)] == ["a.png"]


def test_subfolders_with_photographs_are_named(tmp_path, caplog):
    for day in ("mon", "tue"):
        draw(tmp_path / day / "a.png")
    with pytest.raises(ValueError, match="no image files, but in its subfolders mon, tue; give"):
        image_files(tmp_path)
    draw(tmp_path / "a.png")
    with caplog.at_level(logging.INFO, "anomaly"):
        assert len(image_files(tmp_path)) == 1
    assert "its subfolders are passed over: mon, tue" in caplog.text


def test_masks_find_the_photograph_of_their_name_and_the_others_are_left(tmp_path):
    images = [draw(tmp_path / f"i/part_{i}.png") for i in range(2)]
    for name in ("part_1_mask.png", "other.png"):
        draw(tmp_path / "m" / name, 0)
    found, left = masks_of(images, mask_files_in(tmp_path / "m"))
    assert {image.name: [mask.path.name for mask in own] for image, own in found.items()} == {
        "part_1.png": ["part_1_mask.png"]}
    assert [mask.path.name for mask in left] == ["other.png"]
