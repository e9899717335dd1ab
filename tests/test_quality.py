"""Each measure on cases whose answer is known, or against a loop over pixels."""

import numpy as np
import pytest
import torch

from anomaly.output.quality import colour_share, elongation, mean_colour, overlap


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
