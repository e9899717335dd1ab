"""The weight map: closed forms for ordinary, faint, equal and one-pixel cases, and its pyramid."""

import numpy as np
import pytest
import torch

from anomaly.reweight import (
    EPS,
    GAIN,
    TAU,
    adaptive,
    constant,
    difference,
    latent_to_rgb,
    masked_mean,
    paper,
    pyramid,
    released,
)


def case(kind, seed=0):
    """d and m (1, 8, 8)."""
    rng = np.random.default_rng(seed)
    m = np.zeros((8, 8))
    m[2:6, 1:7] = 1
    d = rng.uniform(0.05, 0.8, (8, 8))
    if kind == "faint":
        d = d * 1e-6
    elif kind == "equal":
        d = d * 0
    elif kind == "one pixel":
        m[:] = 0
        m[3, 4] = 1
    elif kind == "partly equal":
        d[2:4] = 0
    return torch.tensor(d * m)[None].float(), torch.tensor(m)[None].float()


KINDS = ["ordinary", "faint", "equal", "one pixel", "partly equal"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("gain, tau, eps", [(GAIN, TAU, EPS), (1.0, 1.0, 0.0), (2.0, 0.3, 0.2)])
def test_adaptive_equals_its_formula_in_float64(kind, gain, tau, eps):
    d, m = case(kind)
    w = adaptive(d, m, gain, tau, eps)[0].double().numpy()
    inside = m[0].numpy() > 0
    d64 = np.maximum(d[0].double().numpy()[inside], 1e-12)
    power = (d64 / d64.mean() + eps) ** -tau        # softmax(-tau log u) = u^-tau / sum
    expected = gain * inside.sum() * power / power.sum()
    np.testing.assert_allclose(w[inside], expected, rtol=1e-4)
    assert (w[~inside] == 1).all()
    np.testing.assert_allclose(w[inside].mean(), gain, rtol=1e-5)


def test_adaptive_gives_the_gain_where_there_is_no_difference_at_all():
    d, m = case("equal")
    assert torch.allclose(adaptive(d, m)[m > 0], torch.tensor(GAIN))


def test_adaptive_is_free_of_units_and_larger_where_the_defect_is_fainter():
    d, m = case("ordinary")
    torch.testing.assert_close(adaptive(d, m), adaptive(d * 255 ** 2, m), rtol=1e-4, atol=1e-5)
    inside = m > 0
    order = d[inside].argsort()
    assert (adaptive(d, m)[inside][order].diff() <= 1e-6).all()


def test_eps_bounds_the_contrast():
    d, m = case("partly equal")
    w = adaptive(d, m)[m > 0]
    worst = ((d[m > 0].max() / masked_mean(d, m).item() + EPS) / EPS) ** TAU
    assert w.max() / w.min() <= worst + 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_paper_equals_the_printed_formula(kind):
    d, m = case(kind)
    w = paper(d, m)[0].double().numpy()
    inside = m[0].numpy() > 0
    d64 = d[0].double().numpy()[inside]
    if kind == "equal":
        expected = np.ones(inside.sum())
    else:
        f = np.where(d64 > 0, 1 / np.where(d64 > 0, d64, 1), -np.inf)
        e = np.exp(f - f.max())
        expected = inside.sum() * e / e.sum()
    np.testing.assert_allclose(w[inside], expected, rtol=1e-4, atol=1e-12)
    assert (w[~inside] == 1).all() and np.isfinite(w).all()


@pytest.mark.parametrize("kind", KINDS)
def test_released_is_one_over_d_over_its_sum_clamped(kind):
    d, m = case(kind)
    w = released(d, m)[0].double().numpy()
    inside = m[0].numpy() > 0
    inverse = 1 / np.maximum(d[0].double().numpy()[inside], 1e-12)
    expected = np.clip(inside.sum() * inverse / inverse.sum(), 1.0, 1.5)
    np.testing.assert_allclose(w[inside], expected, rtol=1e-4)
    assert (w[~inside] == 1).all()
    if kind == "equal":
        np.testing.assert_allclose(w, 1, rtol=1e-5)


def test_constant_is_the_gain_inside_and_one_outside():
    d, m = case("ordinary")
    assert torch.equal(constant(d, m, 2.0), 1 + m)


def test_samples_of_a_batch_do_not_see_each_other():
    (d0, m0), (d1, m1) = case("ordinary"), case("one pixel", 1)
    for weigh in (adaptive, paper, released, constant):
        both = weigh(torch.cat([d0, d1]), torch.cat([m0, m1]))
        torch.testing.assert_close(both, torch.cat([weigh(d0, m0), weigh(d1, m1)]))


def test_the_pyramid_keeps_a_cells_mean_weight_over_its_mask():
    torch.manual_seed(0)
    m = (torch.rand(2, 8, 16) < 0.2).float()
    w = torch.where(m > 0, 1 + torch.rand(2, 8, 16), 1.0)
    maps = pyramid(w, m, 3)
    assert torch.allclose(maps[0], w)
    for level, got in enumerate(maps):
        f = 2 ** level
        assert got.shape == (2, 8 // f, 16 // f)
        for b in range(2):
            for y in range(8 // f):
                for x in range(16 // f):
                    block = (b, slice(y * f, y * f + f), slice(x * f, x * f + f))
                    inside = m[block] > 0
                    expected = w[block][inside].mean() if inside.any() else torch.tensor(1.0)
                    torch.testing.assert_close(got[b, y, x], expected)


def test_a_one_pixel_mask_keeps_its_weight_on_the_coarsest_level():
    d, m = case("one pixel")
    maps = pyramid(constant(d, m, 2.0), m, 3)
    assert [float(level.max()) for level in maps] == [2.0, 2.0, 2.0]


def test_the_difference_equals_a_loop_over_neighbourhoods():
    torch.manual_seed(0)
    x0_hat, y_0, to_rgb = torch.randn(1, 4, 5, 6), torch.randn(1, 4, 5, 6), torch.randn(4, 3)
    m = (torch.rand(1, 5, 6) < 0.5).float()
    got = difference(x0_hat, y_0, m, to_rgb)
    rgb = torch.einsum("bchw,ck->bkhw", (x0_hat - y_0).double(), to_rgb.double())
    colour = rgb.square().sum(dim=1)[0]
    for y in range(5):
        for x in range(6):
            near = [colour[v, u] for v in range(max(y - 1, 0), min(y + 2, 5))
                    for u in range(max(x - 1, 0), min(x + 2, 6)) if m[0, v, u]]
            expected = torch.stack(near).mean().float() if m[0, y, x] else torch.tensor(0.0)
            torch.testing.assert_close(got[0, y, x], expected, rtol=1e-4, atol=1e-5)


def test_equal_latents_have_no_difference():
    y_0 = torch.randn(1, 4, 5, 6)
    assert (difference(y_0, y_0, torch.ones(1, 5, 6), torch.randn(4, 3)) == 0).all()


def test_the_latent_to_rgb_map_is_the_least_squares_solution():
    torch.manual_seed(0)
    latents, true = torch.randn(3, 4, 8, 8), torch.randn(4, 3)
    offset = torch.tensor([0.3, -0.2, 0.1])[:, None, None]
    small = torch.einsum("bchw,ck->bkhw", latents, true) + offset
    images = small.repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(latent_to_rgb(latents, images), true, rtol=1e-4, atol=1e-4)
    flat = latent_to_rgb(torch.ones(2, 4, 8, 8), torch.zeros(2, 3, 32, 32))     # nothing to fit
    assert (flat == 0).all()
