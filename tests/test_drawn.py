"""The drawn photographs: the same at every size, with masks and captions that are true."""

import numpy as np
import pytest

from anomaly.dataset import find_defects, first_third, read_example
from anomaly.drawn import demo
from anomaly.drawn.defects import DEFECTS
from anomaly.drawn.fields import Noise, View, segment
from anomaly.drawn.products import PRODUCTS
from anomaly.drawn.scenes import (
    HELD_OUT,
    PLACES,
    UNSEEN,
    WHOLE,
    close_up,
    describe,
    draw_picture,
    draw_scene,
    extent,
    pairs,
    place,
)

FRAME = View(0.0, 0.0, 1.0, 128)
EVERY = [(product, defect) for product in PRODUCTS for defect in DEFECTS]


def scene(product, defect, seed=3):
    return draw_scene(np.random.default_rng(seed), product, defect)


def shrink(image, factor):
    h, w = image.shape[0] // factor, image.shape[1] // factor
    return image.reshape(h, factor, w, factor, -1).mean(axis=(1, 3))


def test_noise_is_a_cubic_b_spline_of_unit_deviation():
    from scipy.interpolate import BSpline
    noise, view = Noise(np.random.default_rng(0), 5, 3), View(0.0, 0.0, 1.0, 50)
    knots = np.arange(-3, 5 + 4)        # uniform: cell i of 5 lies between i and i + 1
    along = BSpline(knots, noise.knots, 3)(5 * view.y)
    expected = BSpline(np.arange(-3, 3 + 4), along.T, 3)(3 * view.x).T
    assert np.allclose(noise(view), expected / (151 / 315))
    many = [Noise(np.random.default_rng(i), 20, 20)(FRAME).std() for i in range(20)]
    assert 0.9 < np.mean(many) < 1.1


def test_distance_to_a_segment_is_that_of_its_nearest_point():
    x, y = np.random.default_rng(0).uniform(-1, 2, (2, 40))
    a, b = np.array([0.2, 0.1]), np.array([0.9, 0.7])
    points = a + np.linspace(0, 1, 4001)[:, None] * (b - a)
    nearest = np.hypot(x[:, None] - points[:, 0], y[:, None] - points[:, 1]).min(axis=1)
    assert np.allclose(segment(x, y, a, b)[0], nearest, atol=1e-3)


@pytest.mark.parametrize("product, defect", EVERY)
def test_a_scene_is_the_same_at_every_resolution(product, defect):
    small, small_mask = scene(product, defect).render(FRAME)
    large, large_mask = scene(product, defect).render(View(0.0, 0.0, 1.0, 512))
    assert np.abs(shrink(large, 4) - small).mean() < 3.5    # of 255: edges are a pixel wide in both
    assert np.abs(shrink(large_mask[..., None], 4)[..., 0] - small_mask).mean() < 0.01
    assert small_mask.any()


@pytest.mark.parametrize("product, defect", EVERY)
def test_a_window_shows_its_part_of_the_whole(product, defect):
    whole, whole_mask = scene(product, defect).render(View(0.0, 0.0, 1.0, 192))
    part, part_mask = scene(product, defect).render(View(0.25, 0.5, 0.5, 96))
    assert np.abs(whole[96:, 48:144].astype(int) - part).max() <= 1
    assert np.array_equal(whole_mask[96:, 48:144], part_mask)


@pytest.mark.parametrize("product, defect", EVERY)
def test_a_defect_changes_the_photograph_under_its_mask_and_not_elsewhere(product, defect):
    rng, again = (np.random.default_rng(12) for _ in range(2))
    image, mask = draw_scene(rng, product, defect).render(FRAME)
    normal, none = draw_scene(again, product, None).render(FRAME)
    change = np.abs(image.astype(int) - normal).max(axis=2)
    near = np.max([np.roll(mask, shift, (0, 1)) for shift in np.ndindex(5, 5)], axis=0)
    near = np.roll(near, (-2, -2), (0, 1))      # two pixels round the mask: the soft edge
    assert not none.any() and change[~near].max() <= 1
    assert change[mask].mean() > 12


def test_the_whole_set_follows_from_the_seed():
    a, b, c = draw_picture(1, 7, 64), draw_picture(1, 7, 64), draw_picture(2, 7, 64)
    assert np.array_equal(a.image, b.image) and np.array_equal(a.mask, b.mask)
    assert a.caption == b.caption
    assert not np.array_equal(a.image, c.image)


@pytest.fixture(scope="module")
def pictures():
    return [draw_picture(0, i, 64) for i in range(1200)]


def test_what_the_demo_is_to_learn_never_occurs(pictures):
    assert len(HELD_OUT) >= 2 and UNSEEN in DEFECTS
    for product, defect in HELD_OUT:
        assert (product, defect) not in pairs() and product in PRODUCTS and defect in DEFECTS
        assert not [p for p in pictures if {product, defect} <= set(p.caption.split())]
    assert not [p for p in pictures if UNSEEN in p.caption]
    assert UNSEEN not in {d for _, d in pairs()}


def test_a_tenth_or_so_are_masks_and_half_the_defects_are_close(pictures):
    drawn = [p for p in pictures if p.mask.any()]
    masks = [p for p in drawn
             if np.array_equal(p.image, 255 * np.repeat(p.mask[..., None], 3, axis=2))]
    assert 0.10 <= len(masks) / len(pictures) <= 0.15
    assert all(p.caption == "" or p.caption.startswith("a photo of mask with ") for p in masks)
    extents = [extent(p.mask)[2] for p in drawn]
    assert 0.4 <= np.mean([0.45 <= e <= 0.9 for e in extents]) <= 0.65
    words = [word for p in pictures for word in p.caption.split()]
    assert 1.5 <= words.count("nut") / words.count("tile") <= 3


def test_a_close_mask_is_framed_as_the_mask_model_frames_it(pictures):
    huge = [p.mask for p in pictures if "mask with huge" in p.caption]
    assert len(huge) > 10
    # 1 / 1.25 of a picture of 64 px; less where the frame's or the object's edge is in the way.
    sides = np.array([64 * extent(m)[2] for m in huge])
    assert np.mean(np.abs(sides - 51.2) < 2.5) > 0.8


def test_captions_say_what_is_there(pictures):
    known = {*"a photo of with mask small large huge top bottom left right center".split(),
             "red", "blue", "green", "black", *PRODUCTS, *DEFECTS}
    checked = 0
    for picture in pictures:
        words = picture.caption.split()
        assert set(words) <= known
        if not {"top", "bottom"} & set(words):
            continue
        rows, columns = np.nonzero(picture.mask)
        assert ("top" in words) == (rows.mean() < 31.5)
        assert ("left" in words) == (columns.mean() < 31.5)
        longer = extent(picture.mask)[2]
        assert ("large" in words) == (0.36 < longer <= 0.6) and ("huge" in words) == (longer > 0.6)
        checked += 1
    assert checked > 200


def test_a_defect_lies_near_the_middle_of_the_frame_or_of_a_quarter():
    counts = np.zeros(len(PLACES))
    for seed in range(200):
        x, y, _ = extent(scene("tile", "hole", seed).mask(WHOLE))
        distances = [np.hypot(x - a, y - b) for a, b in PLACES]
        assert min(distances) < 0.25
        counts[np.argmin(distances)] += 1
    assert counts.min() > 25        # 40 each
    on_nut = [extent(scene("nut", "hole", seed).mask(WHOLE)) for seed in range(20)]
    assert all(np.hypot(x - 0.5, y - 0.5) < 0.4 for x, y, _ in on_nut)


@pytest.mark.parametrize("product", PRODUCTS)
def test_the_lamp_is_at_the_top_left(product):
    images = [scene(product, None, seed).render(FRAME)[0] for seed in range(30)]
    top_left = np.mean([image[:40, :40] for image in images])
    bottom_right = np.mean([image[88:, 88:] for image in images])
    assert top_left > 1.1 * bottom_right


def test_places_between_the_corners_have_no_words():
    mask = np.zeros((64, 64), dtype=bool)
    mask[0:10, 28:36] = True        # at the top, in the middle
    assert place(mask) == ""
    assert describe("wood", "hole", "", mask) == "a photo of wood with small hole"
    assert place(np.roll(mask, 27, axis=0)) == "center"
    assert place(np.roll(mask, 20, axis=1)) == "top right"


def test_a_close_up_holds_the_whole_mask_and_stays_in_the_frame():
    rng = np.random.default_rng(0)
    for seed in range(40):
        mask = scene("tile", "stain", seed).mask(WHOLE)
        x, y, longer = extent(mask)
        view = close_up(mask, 32, rng.uniform(1.15, 2.0), rng.uniform(-0.5, 0.5, 2))
        rows, columns = np.nonzero(mask)
        for start, cells in ((view.left, columns), (view.top, rows)):
            assert 0 <= start and start + view.side <= 1 + 1e-9
            assert start <= cells.min() / 64 + 1e-9
            assert (cells.max() + 1) / 64 <= start + view.side + 1e-9


def test_the_demo_is_a_data_set_of_twelve_to_learn_and_twenty_four_to_test(tmp_path, monkeypatch):
    monkeypatch.setattr(demo, "FRAME", View(0.0, 0.0, 1.0, 64))
    folder = demo.demo_data(tmp_path / "data")
    found = find_defects(folder)
    assert {(d.object, d.name) for d in found} == set(demo.DEMO)
    for defect in found:
        assert len(defect.examples) == 36
        assert list(map(len, first_third(defect))) == [12, 24]
        assert len(list(defect.normals.iterdir())) == 40
        assert all(read_example(e)[1].any() for e in defect.examples)
    assert not list(tmp_path.glob("*.part")) and demo.demo_data(folder) == folder


def test_the_demo_shows_what_pretraining_has_not_seen():
    assert {d for _, d in demo.DEMO} >= {UNSEEN} and set(demo.DEMO) & HELD_OUT
    thin = set(demo.DEMO) & set(pairs())
    assert thin == {("metal", "scratch")}
