"""Each measure on cases whose answer is known, or against a loop over pixels."""

import numpy as np
import pytest
import torch

from anomaly.scores.pictures import contrast_energy, mean_colour, ring, wrong_way


def test_mean_colour_is_that_of_a_loop_over_the_masks_pixels():
    rng = np.random.default_rng(0)
    pictures, masks = rng.uniform(-1, 1, (2, 3, 7, 5)), rng.uniform(size=(2, 7, 5)) < 0.3
    masks[1] = False
    masks[1, 6, 4] = True
    expected = [[np.mean([p[c, y, x] for y in range(7) for x in range(5) if m[y, x]])
                 for c in range(3)] for p, m in zip(pictures, masks)]
    found = mean_colour(torch.from_numpy(pictures), torch.from_numpy(masks))
    assert np.allclose(found.numpy(), expected)


def squares(*boxes, size=64):
    masks = torch.zeros((len(boxes), size, size), dtype=torch.bool)
    for mask, (top, left, bottom, right) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return masks


def noise(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def test_the_ring_is_as_wide_as_said_and_stops_at_the_picture():
    masks = squares((20, 20, 30, 30), (0, 0, 10, 64))
    assert ring(masks)[0].sum() == 18 * 18 - 100 and not (ring(masks) & masks).any()
    assert torch.equal(ring(masks)[1], squares((10, 0, 14, 64))[0])


@pytest.mark.parametrize("height", [0.0, 0.1, 0.8])
def test_the_energy_of_contrast_is_the_squared_step_whatever_the_grain(height):
    masks = squares((20, 20, 40, 40), (0, 0, 10, 64))
    flat = 0.3 + height * masks[:, None].double().expand(-1, 3, -1, -1)
    expected = torch.full((2,), height ** 2, dtype=torch.float64)
    assert torch.allclose(contrast_energy(flat, masks), expected)
    for grain, error in ((0.1, 0.01), (0.5, 0.03)):      # whose own energies are 0.003 and 0.083
        grainy = flat + grain * noise(2, 3, 64, 64, seed=2)
        assert torch.allclose(contrast_energy(grainy, masks), expected, atol=error)


@pytest.mark.parametrize("step, real, share", [
    (0.5, 0.5, 0), (-0.5, 0.5, 1), (0.5, -0.2, 1), (0.0, 0.5, 0), (-0.5, 0.0, 0)])
def test_what_goes_the_wrong_way_is_the_energy_of_its_step(step, real, share):
    masks = squares((20, 20, 40, 40))
    flat = masks[:, None].double().expand(-1, 3, -1, -1)
    assert wrong_way(step * flat, masks, real * flat).item() == pytest.approx(share * step ** 2)
    assert contrast_energy(step * flat, masks, real * flat).item() == pytest.approx(
        step ** 2 * (1 - 2 * share))


def test_a_real_defect_of_light_and_dark_parts_has_no_direction():
    masks = squares((20, 20, 40, 40))
    real = torch.zeros(1, 3, 64, 64, dtype=torch.float64)
    real[:, :, 20:30, 20:40], real[:, :, 30:40, 20:40] = 0.6, -0.4     # a step of 0.1 in 0.26
    flat = -0.5 * masks[:, None].double().expand(-1, 3, -1, -1)
    assert wrong_way(flat, masks, real).item() == pytest.approx(0.25 * 0.01 / 0.26)


def test_a_defect_that_is_light_and_dark_has_contrast():
    masks = squares((20, 20, 40, 40))
    line = torch.zeros(1, 3, 64, 64)
    line[:, :, 20:30, 20:40], line[:, :, 30:40, 20:40] = 0.5, -0.5
    assert contrast_energy(line, masks).item() == pytest.approx(0.25)
    assert mean_colour(line, masks).abs().max() == 0
