"""The crop round a defect: its side, place, mirrored surroundings, and the mask on its grids."""

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage

from anomaly.crop import (
    Crop,
    augmented,
    box,
    cut,
    defect_crop,
    take,
    thin,
    touched,
    turn_mask,
    turn_window,
)


def rectangle(height, width, top, left, h, w):
    mask = np.zeros((height, width), bool)
    mask[top:top + h, left:left + w] = True
    return mask


@pytest.mark.parametrize("mask, size, side", [
    (rectangle(300, 400, 100, 100, 80, 40), 128, 100),      # 1.25 x the longer side
    (rectangle(300, 400, 100, 100, 3, 3), 128, 32),         # size / 4
    (rectangle(300, 400, 0, 0, 300, 390), 128, 400),        # at most the photograph's longer side
    (rectangle(60, 20, 10, 10, 1, 1), 512, 60),
])
def test_the_side_follows_the_rule(mask, size, side):
    assert defect_crop(mask, size).side == side


def test_every_crop_holds_the_whole_mask_and_leaves_the_photograph_only_when_it_must():
    rng = np.random.default_rng(0)
    for _ in range(300):
        height, width = rng.integers(5, 120, 2)
        h, w = rng.integers(1, height + 1), rng.integers(1, width + 1)
        y, x = rng.integers(0, height - h + 1), rng.integers(0, width - w + 1)
        mask = rectangle(height, width, y, x, h, w)
        left, top, right, bottom = box(mask)
        for generator in (None, rng):
            crop = defect_crop(mask, 64, generator)
            for start, low, high, extent in ((crop.left, left, right, width),
                                             (crop.top, top, bottom, height)):
                assert start <= low and high <= start + crop.side
                if crop.side <= extent:
                    assert 0 <= start and start + crop.side <= extent
                else:
                    assert start <= 0 and extent <= start + crop.side


def test_jitter_reaches_every_place_that_holds_the_mask():
    mask = rectangle(100, 100, 40, 50, 10, 10)
    rng = np.random.default_rng(0)
    starts = {defect_crop(mask, 64, rng).left for _ in range(500)}
    assert starts == set(range(60 - 16, 50 + 1))


def test_surroundings_are_mirrored_and_never_mask():
    photograph = np.arange(12, dtype=np.uint8).reshape(3, 4)
    crop = Crop(left=-3, top=-4, side=11)
    expected = np.pad(photograph, ((4, 4), (3, 4)), mode="symmetric")
    assert np.array_equal(cut(photograph, crop), expected)
    cells = touched(np.ones((3, 4), bool), crop, 11)
    assert cells.sum() == 12 and cells[4:7, 3:7].all()


@pytest.mark.parametrize("side, grid", [(7, 7), (32, 8), (33, 8), (5, 16), (100, 13)])
def test_touched_equals_a_loop_over_cells(side, grid):
    rng = np.random.default_rng(side)
    mask = rng.random((120, 90)) < 0.01
    crop = Crop(-2, 30, side)
    expected = np.zeros((grid, grid), bool)
    for v, u in np.argwhere(mask):
        y, x = v - crop.top, u - crop.left
        for i in range(grid):
            for j in range(grid):
                rows = i * side < (y + 1) * grid and y * grid < (i + 1) * side
                columns = j * side < (x + 1) * grid and x * grid < (j + 1) * side
                expected[i, j] |= rows and columns
    assert np.array_equal(touched(mask, crop, grid), expected)


def test_a_one_pixel_scratch_survives_any_reduction():
    for place in range(0, 400, 37):
        mask = np.zeros((400, 400), bool)
        mask[place, :] = True
        assert touched(mask, Crop(0, 0, 400), 8).any(axis=0).all()


def test_take_gives_the_models_ranges_and_shapes():
    photograph = np.full((50, 70), 255, np.uint8)
    view = take(photograph, rectangle(50, 70, 10, 10, 5, 5), Crop(0, 0, 50), 64, 4)
    assert view.image.shape == (3, 64, 64) and view.image.min() == view.image.max() == 1
    assert view.mask.shape == (64, 64) and view.mask.dtype == torch.bool
    assert view.cells.shape == (16, 16)
    assert take(photograph * 0, view.mask.numpy()[:50], Crop(0, 0, 50), 64, 4).image.max() == -1


def test_rotation_turns_mask_and_image_alike_and_fills_no_corner_with_mask():
    mask = rectangle(80, 100, 30, 20, 20, 40)
    photograph = np.where(mask, 200, 50).astype(np.uint8)
    turned = turn_window(photograph, 10.0, (40, 40), slice(0, 80), slice(0, 100))
    turned_mask = turn_mask(mask, 10.0)
    assert turned.shape == photograph.shape
    agreement = ((turned > 125) == turned_mask).mean()
    assert agreement > 0.97 and not turned_mask[:5].any()
    corners = turned[[0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 50).all()        # mirrored, not black
    expected = ndimage.rotate(mask.astype(float), 10.0, reshape=False, order=1) > 0.5
    centre = ndimage.center_of_mass
    assert np.allclose(centre(turned_mask), centre(mask), atol=0.5)     # turned about its centre
    assert abs(int(turned_mask.sum()) - int(expected.sum())) < 0.1 * expected.sum()


@pytest.mark.parametrize("angle", [-10.0, 0.0, 3.7])
@pytest.mark.parametrize("channels", [None, 3])
def test_a_turned_window_is_that_part_of_the_whole_photograph_turned(angle, channels):
    """As Pillow turns the photograph with mirrored surroundings; truncation may differ by one."""
    shape = (90, 120) if channels is None else (90, 120, 3)
    photograph = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    margins = [(90, 90), (120, 120), (0, 0)][:photograph.ndim]
    surrounded = Image.fromarray(np.pad(photograph, margins, mode="symmetric"))
    whole = surrounded.rotate(angle, Image.Resampling.BICUBIC, center=(120 + 70.5, 90 + 12))
    for rows, columns in ((slice(0, 40), slice(50, 100)), (slice(60, 90), slice(0, 120))):
        found = turn_window(photograph, angle, (70.5, 12), rows, columns)
        expected = np.asarray(whole)[90:180, 120:240][rows, columns].astype(int)
        assert np.abs(found - expected).max() <= 1 and (found == expected).mean() > 0.999


def test_a_single_pixel_survives_every_angle():
    mask = np.zeros((60, 60), bool)
    mask[[20, 41, 33], [30, 17, 44]] = True
    for angle in np.linspace(-10, 10, 41):
        assert ndimage.label(turn_mask(mask, angle), np.ones((3, 3)))[1] == 3


def test_augmentation_moves_image_and_mask_together():
    mask = rectangle(90, 120, 20, 50, 5, 50)        # long: turned by 3 degrees it lies elsewhere
    photograph = np.where(mask, 255, 0).astype(np.uint8)
    rng = np.random.default_rng(1)
    for _ in range(20):
        view = augmented(photograph, mask, 64, 4, True, rng)
        bright = view.image[0] > 0
        assert (bright & view.mask).sum() / (bright | view.mask).sum() > 0.7
        assert view.cells.any()


def test_no_flip_never_mirrors():
    mask = rectangle(60, 60, 20, 20, 20, 20)
    photograph = np.zeros((60, 60), np.uint8)
    photograph[20:40, 20:30] = 255      # bright on the left
    for flip in (False, True):
        rng = np.random.default_rng(2)
        left_brighter = []
        for _ in range(30):
            view = augmented(photograph, mask, 64, 4, flip, rng)
            columns = torch.where(view.mask)[1]
            middle = (columns.min() + columns.max()) // 2
            image = (view.image[0] + 1) * view.mask
            left_brighter.append(bool(image[:, :middle].sum() > image[:, middle:].sum()))
        assert all(left_brighter) != flip


def test_thin_counts_masks_that_hold_no_two_by_two_cells():
    photograph = np.zeros((64, 64), np.uint8)
    for width, expected in ((7, True), (8, False), (20, False)):
        view = take(photograph, rectangle(64, 64, 10, 10, 40, width), Crop(0, 0, 64), 64, 4)
        assert thin(view) is expected
