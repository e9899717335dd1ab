"""Finding, pairing, splitting and reading photographs and masks."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly.dataset import (
    Defect,
    Example,
    check_names,
    find_defects,
    first_third,
    pair_folders,
    read_example,
    select,
)


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return path


def category(root, defects=("crack",), n=7):
    for defect in defects:
        for i in range(n):
            save(root / "test" / defect / f"{i:03d}.png", np.full((8, 9), i, np.uint8))
            mask = np.zeros((8, 9), np.uint8)
            mask[2, 3] = 255
            save(root / "ground_truth" / defect / f"{i:03d}_mask.png", mask)
    save(root / "train" / "good" / "000.png", np.zeros((8, 9), np.uint8))
    return root


def test_a_category_and_a_folder_of_categories_are_found(tmp_path):
    category(tmp_path / "tile", ("crack", "hole"))
    category(tmp_path / "nut", ("scratch",))
    (tmp_path / "tile/test/good").mkdir()
    assert [d.key for d in find_defects(tmp_path)] == ["nut/scratch", "tile/crack", "tile/hole"]
    one = find_defects(tmp_path / "tile")
    assert [d.key for d in one] == ["tile/crack", "tile/hole"]
    assert one[0].normals == tmp_path / "tile/train/good"


def test_the_split_is_the_lowest_third_by_name_and_at_least_one():
    def defect(n):
        return Defect("o", "d", tuple(
            Example(Path(f"{i:02d}"), (Path(f"{i:02d}m"),)) for i in range(n)))
    for n, kept in ((1, 1), (2, 1), (3, 1), (5, 1), (6, 2), (18, 6), (20, 6)):
        train, test = first_third(defect(n))
        assert [str(e.image) for e in train + test] == [f"{i:02d}" for i in range(n)]
        assert len(train) == kept


def test_a_defect_is_not_called_good():
    with pytest.raises(ValueError, match="tile/good: good is the name of what has no defect"):
        check_names([Defect("tile", "good", ())])


def test_a_photograph_that_is_linked_into_both_sides_of_the_split_is_refused(tmp_path):
    for name in ("0", "1", "2"):
        save(tmp_path / f"{name}.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "3.png").symlink_to(tmp_path / "0.png")
    examples = tuple(Example(tmp_path / f"{i}.png", (tmp_path / "m.png",)) for i in range(4))
    message = "0.png: both in the first third of o/d, which is learned, and in the rest"
    with pytest.raises(ValueError, match=message):
        first_third(Defect("o", "d", examples))
    assert len(first_third(Defect("o", "d", examples[:3]))[1]) == 2


@pytest.mark.parametrize("suffix", ["", "_mask", "_GT", "_label"])
def test_masks_are_paired_by_name_whatever_order_and_format(tmp_path, suffix):
    for stem in ("b 2", "a", "exp1_num_10", "exp1_num_9"):
        save(tmp_path / "images" / f"{stem}.bmp", np.zeros((4, 4), np.uint8))
        save(tmp_path / "masks" / f"{stem}{suffix}.png", np.zeros((4, 4), np.uint8))
    (tmp_path / "images/.DS_Store").write_text("x")
    (tmp_path / "images/a.json").write_text("{}")
    pairs = pair_folders(tmp_path / "images", tmp_path / "masks")
    assert [e.image.stem for e in pairs] == ["a", "b 2", "exp1_num_10", "exp1_num_9"]
    assert all(e.masks[0].stem == e.image.stem + suffix for e in pairs)


def test_an_image_without_mask_and_a_mask_without_image_are_refused(tmp_path):
    root = category(tmp_path / "tile")
    (root / "ground_truth/crack/003_mask.png").unlink()
    with pytest.raises(ValueError, match=r"003\.png: no mask of that name"):
        find_defects(root)
    (root / "test/crack/003.png").unlink()
    (root / "test/crack/004.png").unlink()
    with pytest.raises(ValueError, match=r"004_mask\.png: no image of that name"):
        find_defects(root)


def test_names_that_share_a_file_are_refused_letter_case_aside():
    with pytest.raises(ValueError, match="would both be written as"):
        check_names([Defect("tile", "a b", ()), Defect("tile", "a-b", ())])
    with pytest.raises(ValueError, match="would both be written as"):
        check_names([Defect("a-b", "c", ()), Defect("a", "b-c", ())])
    with pytest.raises(ValueError, match="would both be written as"):
        check_names([Defect("Tile", "x", ()), Defect("tile", "X", ())])
    check_names([Defect("tile", "cut", ()), Defect("tile", "cut_inner", ())])


def test_an_unknown_defect_is_refused_with_the_known_ones():
    defects = [Defect("tile", "crack", ()), Defect("tile", "hole", ())]
    assert select(defects, "tile/hole") == defects[1:]
    with pytest.raises(ValueError, match="no defect 'tile/hoel'; known are tile/crack, tile/hole"):
        select(defects, "tile/crack,tile/hoel")


@pytest.mark.parametrize("fault", ["truncated", "empty", "text", "black", "size"])
def test_faulty_files_are_refused_by_name_in_one_line(tmp_path, fault):
    rng = np.random.default_rng(0)
    image = save(tmp_path / "p.png", rng.integers(0, 255, (40, 50), dtype=np.uint8))
    mask = save(tmp_path / "m.png", np.full((40, 50), 255, np.uint8))
    if fault == "truncated":
        image.write_bytes(image.read_bytes()[:700])
    elif fault == "empty":
        image.write_bytes(b"")
    elif fault == "text":
        image.write_text("not an image")
    elif fault == "black":
        save(mask, np.zeros((40, 50), np.uint8))
    else:
        save(mask, np.full((50, 40), 255, np.uint8))
    with pytest.raises(ValueError) as err:
        read_example(Example(image, (mask,)))
    assert ("m.png" if fault in ("black", "size") else "p.png") in str(err.value)
    assert "\n" not in str(err.value)
