"""Each measure on cases whose answer is known, or against a loop over pixels."""

import numpy as np
import pytest
import torch

from anomaly.output.quality import (colour_share, contrast_energy, diversity, distance, elongation, fill,
                                    histogram_distance, histogram_share, intersection_over_union, leak, mean_colour,
                                    overlap, perimeter, place, ring)


def disc(radius, size=65, stretch=1.0, shift=(0, 0)):
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    return (x - shift[0]) ** 2 / stretch ** 2 + (y - shift[1]) ** 2 < radius ** 2


def test_mean_colour_is_that_of_a_loop_over_the_masks_pixels():
    rng = np.random.default_rng(0)
    pictures, masks = rng.uniform(-1, 1, (2, 3, 7, 5)), rng.uniform(size=(2, 7, 5)) < 0.3
    masks[1] = False
    masks[1, 6, 4] = True
    expected = [[np.mean([p[c, y, x] for y in range(7) for x in range(5) if m[y, x]]) for c in range(3)]
                for p, m in zip(pictures, masks)]
    found = mean_colour(torch.from_numpy(pictures), torch.from_numpy(masks))
    assert np.allclose(found.numpy(), expected)


@pytest.mark.parametrize("way", [0.0, 0.25, 1.0, 1.5])
def test_the_share_of_a_mixture_is_its_share(way):
    generator = torch.Generator().manual_seed(0)
    normal, real = torch.rand((2, 3, 8, 8), generator=generator), torch.rand((2, 3, 8, 8), generator=generator)
    masks = torch.zeros((2, 8, 8), dtype=torch.bool)
    masks[:, 2:5, 3:] = True
    to_go, whole = colour_share(normal + way * (real - normal), normal, real, masks)
    # Beyond the real defect is as wrong as short of it.
    assert torch.allclose(1 - to_go / whole, torch.full((2,), 1 - abs(1 - way)), atol=1e-5)


def squares(*boxes, size=64):
    masks = torch.zeros((len(boxes), size, size), dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return masks


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def test_the_distance_of_histograms_is_the_earth_movers():
    from scipy.stats import wasserstein_distance
    a, b, masks = noise(2, 3, 64, 64), noise(2, 3, 64, 64, seed=1) ** 3, squares((3, 5, 20, 40), (60, 60, 61, 61))
    expected = [np.mean([wasserstein_distance(p[c][m], q[c][m]) for c in range(3)]) for p, q, m in zip(a, b, masks)]
    assert np.allclose(histogram_distance(a, b, masks), expected)
    # The same pixels elsewhere in the mask are the same histogram, though not the same picture.
    turned = a.clone()
    turned[0, :, 3:20, 5:40] = a[0, :, 3:20, 5:40].flip(1, 2)
    assert histogram_distance(a, turned, masks)[0] == 0 and not torch.equal(a, turned)


@pytest.mark.parametrize("way", [0.0, 0.4, 1.0])
def test_the_histograms_share_of_a_shift_is_its_share(way):
    normal, masks = 0.2 * noise(2, 3, 64, 64), squares((3, 5, 20, 40), (0, 0, 64, 10))
    to_go, whole = histogram_share(normal + way * 0.5, normal, normal + 0.5, masks)
    assert torch.allclose(1 - to_go / whole, torch.full((2,), way, dtype=torch.float64))


def test_fill_counts_the_pixels_that_changed_more_than_an_empty_prompt_changes_them():
    normal, masks = noise(2, 3, 64, 64), squares((0, 0, 20, 20), (10, 10, 30, 50))
    nothing = normal + 0.1 * noise(2, 1, 64, 64, seed=1)
    assert fill(normal, normal, nothing, masks).tolist() == [0, 0]
    assert torch.allclose(fill(nothing, normal, nothing, masks), torch.full((2,), 0.05, dtype=torch.float64), atol=0.01)
    half = normal.clone()
    half[:, :, :, :20] += 0.11
    assert fill(half, normal, nothing, masks).tolist() == [1, 0.25]
    # Flat pictures: nothing changes, and then any change is one.
    flat = torch.zeros(2, 3, 64, 64)
    assert fill(flat, flat, flat, masks).tolist() == [0, 0] and fill(flat + 1e-3, flat, flat, masks).tolist() == [1, 1]


def test_the_ring_is_as_wide_as_said_and_stops_at_the_picture():
    masks = squares((20, 20, 30, 30), (0, 0, 10, 64))
    assert ring(masks)[0].sum() == 18 * 18 - 100 and not (ring(masks) & masks).any()
    assert torch.equal(ring(masks)[1], squares((10, 0, 14, 64))[0])


@pytest.mark.parametrize("height", [0.0, 0.1, 0.8])
def test_the_energy_of_contrast_is_the_squared_step_whatever_the_grain(height):
    masks = squares((20, 20, 40, 40), (0, 0, 10, 64))
    flat = 0.3 + height * masks[:, None].double().expand(-1, 3, -1, -1)
    assert torch.allclose(contrast_energy(flat, masks), torch.full((2,), height ** 2, dtype=torch.float64))
    for grain, error in ((0.1, 0.01), (0.5, 0.03)):      # whose own energies are 0.003 and 0.083
        grainy = flat + grain * noise(2, 3, 64, 64, seed=2)
        expected = torch.full((2,), height ** 2, dtype=torch.float64)
        assert torch.allclose(contrast_energy(grainy, masks), expected, atol=error)


def test_a_defect_that_is_light_and_dark_has_contrast():
    masks = squares((20, 20, 40, 40))
    line = torch.zeros(1, 3, 64, 64)
    line[:, :, 20:30, 20:40], line[:, :, 30:40, 20:40] = 0.5, -0.5
    assert contrast_energy(line, masks).item() == pytest.approx(0.25)
    assert mean_colour(line, masks).abs().max() == 0


def test_leak_is_the_change_outside_and_nothing_of_the_inside():
    normal, masks = noise(2, 3, 64, 64), squares((20, 20, 40, 40), (0, 0, 32, 64))
    painted = normal + 0.7 * masks[:, None]
    assert leak(painted, normal, masks).tolist() == [0, 0]
    painted[1, :, 32:48] -= 0.2
    assert leak(painted, normal, masks)[1].item() == pytest.approx(0.1)


def test_the_place_is_where_more_has_changed():
    normal, here, there = noise(2, 3, 64, 64), squares((0, 0, 8, 8), (5, 5, 9, 20)), squares((0, 56, 8, 64), (0, 0, 0, 0))
    painted = normal + 0.6 * here[:, None] - 0.2 * there[:, None]
    assert place(painted, normal, here, there).tolist() == pytest.approx([0.4, 0.6])
    assert place(painted, normal, there, here).tolist() == pytest.approx([-0.4, -0.6])
    assert place(normal + 0.3, normal, here, here.flip(2)).tolist() == pytest.approx([0, 0])


def test_intersection_over_union_is_counted_where_the_masks_lie():
    a, b = squares((0, 0, 10, 10), (3, 3, 9, 9)), squares((0, 5, 10, 15), (3, 3, 9, 9))
    assert intersection_over_union(a, b).tolist() == pytest.approx([50 / 150, 1])
    assert intersection_over_union(a, a.flip(2)).tolist() == [0, 0]


def test_diversity_is_the_mean_difference_of_all_pairs_inside():
    masks = squares((20, 20, 40, 40), (0, 0, 32, 64))
    paintings = [torch.full((2, 3, 64, 64), value) for value in (0.0, 0.3, 0.9)]
    paintings[0][0, :, 0:10] = 5        # outside
    assert diversity(paintings, masks).tolist() == pytest.approx([0.6, 0.6])


def test_elongation_is_the_ratio_of_an_ellipses_axes_and_one_for_points():
    assert elongation(disc(20)) == pytest.approx(1, abs=0.01)
    ellipse = disc(16.5, 129, stretch=3.0)
    assert elongation(ellipse) == pytest.approx(3, rel=0.02)
    assert elongation(ellipse.T) == pytest.approx(elongation(ellipse))
    one = np.zeros((9, 9), dtype=bool)
    one[4, 4] = True
    assert elongation(one) == 1


def test_overlap_is_that_of_the_best_shift():
    a, b = disc(6, 33, shift=(-8, 3)), disc(6, 33, shift=(7, -5))
    assert overlap(a, b) == 1 and overlap(b, a) == 1
    small = disc(4, 33)
    assert overlap(a, small) == pytest.approx(small.sum() / a.sum())
    rng = np.random.default_rng(1)
    a, b = rng.uniform(size=(2, 6, 6)) < 0.4
    best = 0.0
    for y in range(-6, 7):
        for x in range(-6, 7):
            moved = np.zeros((18, 18), dtype=bool)
            moved[6 + y:12 + y, 6 + x:12 + x] = b
            fixed = np.pad(a, 6)
            best = max(best, (moved & fixed).sum() / (moved | fixed).sum())
    assert overlap(a, b) == pytest.approx(best)


def test_the_perimeter_counts_sides():
    mask = np.zeros((5, 5), dtype=bool)
    mask[1:3, 0:4] = True
    assert perimeter(mask) == 12
    mask[1, 1] = False          # a notch adds its two flanks
    assert perimeter(mask) == 14


def test_the_distance_from_the_real_defect_counts_too_much_as_too_little():
    nothing, half, real, twice = ([1, 1, 1, 1, 0, 0.5, 0, 0.3], [0.5, 1, 0.5, 1, 0.25, 0.5, 0.075, 0.3],
                                  [0, 1, 0, 1, 0.5, 0.5, 0.3, 0.3], [0, 1, 0, 1, 0.75, 0.5, 1.2, 0.3])
    for means, expected in ((nothing, 1), (half, 0.5), (real, 0), (twice, 1.5 / 4)):
        assert distance(*means) == pytest.approx(expected)
