"""Masks on objects: the user's own part masks, and places for masks on them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import fftconvolve

from anomaly.crop import box
from anomaly.dataset import Defect, Example
from anomaly.mask_model import mask_picture
from anomaly.pairs import masks as mask_sources
from anomaly.pairs.foreground import part_masks
from anomaly.pairs.masks import learned_masks, mask_files, training_masks
from anomaly.pairs.normals import Normal, find_normals
from anomaly.pairs.placement import MaskPatch, placed
from anomaly.pairs.plan import Plan
from anomaly.progress import silent
from anomaly.runs.run_folder import Run, load_masks, save_masks

SIDE = 200
Y, X = np.mgrid[0:1:SIDE * 1j, 0:1:SIDE * 1j]


# part masks

def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8) * (255 if array.dtype == bool else 1)).save(path)
    return path


def test_part_masks_are_paired_by_name_and_united(tmp_path):
    left, right = X < 0.3, X > 0.6
    for name in ("a", "b"):
        save(tmp_path / f"good/{name}.png", np.full((SIDE, SIDE), 9))
    save(tmp_path / "parts/a_mask_1.png", left)
    save(tmp_path / "parts/a_mask_2.png", right)
    save(tmp_path / "parts/b.png", right)
    save(tmp_path / "parts/another.png", left)
    normals = find_normals(tmp_path / "good")
    objects = part_masks(tmp_path / "parts")(normals, silent)
    assert np.array_equal(objects(normals[0]), left | right)
    assert np.array_equal(objects(normals[1]), right)


@pytest.mark.parametrize("part, words", [
    (None, "a.png: no mask of that name in .*; --foreground takes auto, none, or a folder with"),
    (np.ones((5, 9), bool), "a.png: 9x5 pixels, but a.png, .* has 200x200; draw it over"),
    (np.zeros((SIDE, SIDE), bool), "a.png: no defect in it")])
def test_part_masks_that_do_not_belong_are_refused(part, words, tmp_path):
    save(tmp_path / "good/a.png", np.full((SIDE, SIDE), 9))
    save(tmp_path / "parts/other.png", X > 0.5)
    if part is not None:
        save(tmp_path / "parts/a.png", part)
    with pytest.raises(ValueError, match=words):
        part_masks(tmp_path / "parts")(find_normals(tmp_path / "good"), silent)


# placement

def patch_at(rng, height, width, place):
    shape = gaussian_filter(rng.standard_normal((height, width)), 2) > 0
    shape[:, [0, -1]] = shape[[0, -1]] = True
    return MaskPatch(shape, place, 64, "m.png")


def places_on(on_object, patch):
    """Top and left of every place where 95 % of the patch lie on the object, from direct sums."""
    hits = np.round(fftconvolve(on_object.astype(float), patch.mask[::-1, ::-1], "valid"))
    return np.argwhere(hits >= 0.95 * patch.mask.sum())


@pytest.mark.parametrize("side, slack", [(200, 0), (1300, 1)])
def test_a_mask_moves_to_the_nearest_place_on_the_object(side, slack):
    rng = np.random.default_rng(0)
    y, x = np.mgrid[0:1:side * 1j, 0:1:side * 1.3j]
    for _ in range(8):
        radius = np.hypot(*(axis - rng.uniform(0.35, 0.65) for axis in (x, y)))
        on_object = (radius < 0.35) & (radius > 0.12)
        h, w = rng.integers(side // 25, side // 6, 2)
        patch = patch_at(rng, h, w, tuple(rng.uniform(0, 1, 2)))
        normal = Normal(Path("n"), *on_object.shape)
        mask = placed(patch, normal, on_object)
        left, top, right, bottom = box(mask)
        assert np.array_equal(mask[top:bottom, left:right], patch.mask)     # the shape is whole
        assert mask.sum() == patch.mask.sum() and on_object[mask].mean() >= 0.95
        wanted = box(placed(patch, normal))[1::-1]
        best = np.hypot(*(places_on(on_object, patch) - wanted).T).min()
        assert np.hypot(top - wanted[0], left - wanted[1]) <= best + slack


def test_in_a_large_photograph_a_place_is_found_in_its_last_corner():
    on_object = np.zeros((1301, 1301), bool)
    on_object[1241:, 1251:] = True
    patch = MaskPatch(np.ones((60, 50), bool), (0.0, 0.0), 64, "m.png")
    mask = placed(patch, Normal(Path("n"), 1301, 1301), on_object)
    assert mask.sum() == 3000 and on_object[mask].mean() >= 0.95


def test_a_mask_that_lies_on_the_object_stays_and_one_that_cannot_has_no_place():
    patch, normal = patch_at(np.random.default_rng(0), 20, 30, (0.3, 0.6)), Normal("n", SIDE, SIDE)
    where = placed(patch, normal)
    almost = where & ~(np.cumsum(where).reshape(where.shape) <= 0.05 * where.sum())
    assert np.array_equal(placed(patch, normal, almost), where)
    assert placed(patch, normal, np.ones_like(where)).sum() == where.sum()
    assert placed(patch, normal, X * SIDE < 20) is None     # large enough, but too narrow
    assert placed(patch, normal, np.zeros_like(where)) is None


@pytest.fixture
def learned(tmp_path):
    """A run that has one training mask, 60 x 40 at the top left of its photograph, and its defect.

    The normals a, b and c show objects: too small, at the right, everywhere.
    """
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:60, :40] = True
    example = Example(save(tmp_path / "i.png", np.full((SIDE, SIDE), 9)),
                      (save(tmp_path / "m.png", mask),))
    defect, run = Defect("o", "d", (example,)), Run(tmp_path, {
        "size": 64, "options": {"no_masks": False, "no_flip": False}})
    save_masks(run, [defect])
    for name, part in (("a", X < 0.1), ("b", X > 0.5), ("c", X >= 0)):
        save(tmp_path / f"good/{name}.png", np.full((SIDE, SIDE), 9))
        save(tmp_path / f"parts/{name}.png", part)
    normals = find_normals(tmp_path / "good")
    return run, defect, normals, part_masks(tmp_path / "parts")(normals, silent)


@pytest.mark.parametrize("source", [training_masks, learned_masks])
@pytest.mark.parametrize("order, name", [((0, 1, 2), "b"), ((2, 1, 0), "c")])
def test_without_a_place_on_the_object_the_next_photograph_is_tried(
        source, order, name, learned, sd, monkeypatch):
    run, defect, normals, objects = learned
    picture = mask_picture(load_masks(run, defect)[0], 64, 4).mask
    monkeypatch.setattr(mask_sources, "load_vectors", lambda *_: torch.zeros(1))
    monkeypatch.setattr(mask_sources, "sample_masks", lambda *_: picture[None])
    monkeypatch.setattr(mask_sources, "varied", lambda patch, *_: patch)
    plan = Plan(0, np.zeros((4, 16, 16)), 0, np.array(order), np.random.default_rng(0))
    target, = source(sd, run, defect, normals, 20, objects).choose([plan], lambda _: None)
    assert target.normal.path.stem == name and objects(target.normal)[target.mask].mean() >= 0.95
    plain, = source(sd, run, defect, normals, 20).choose([plan], lambda _: None)
    assert plain.normal is normals[order[0]] and plain.mask[:10, :10].all()
    assert target.mask.sum() == plain.mask.sum()


def test_a_training_mask_without_any_place_is_left_out_and_said(learned, caplog):
    run, defect, normals, objects = learned
    caplog.set_level("INFO", "anomaly")
    with pytest.raises(ValueError, match="fits on the object of a photograph .* --foreground none"):
        training_masks(None, run, defect, normals[:1], 20, objects)
    assert "m.png: 40x60 pixels, which fit on the object of no photograph; left" in caplog.text
    assert training_masks(None, run, defect, normals[:1], 20).references == 1


def test_a_mask_of_the_users_own_stays_and_is_remarked_on_beside_the_object(learned, caplog):
    run, defect, normals, objects = learned
    caplog.set_level("INFO", "anomaly")
    path = defect.examples[0].masks[0]
    for number, said in ((2, False), (1, True)):
        plan = Plan(0, None, 0, np.array([number]), None)
        target, = mask_files(path)(None, run, defect, normals, 20, objects).choose([plan], print)
        assert np.array_equal(target.mask, load_masks(run, defect)[0])
        assert ("m.png: most of it lies beside the object in b.png" in caplog.text) == said
