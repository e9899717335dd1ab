"""Blended DDIM: what stays, what is painted, where the weights go."""

from functools import partial

import pytest
import torch

from anomaly.reweight import adaptive, constant, difference, pyramid
from anomaly.sampler import Guidance, blended_ddim, guided

STEPS = 5


@pytest.fixture
def scene(sd):
    """y_0, m, noise, context and guidance of a batch of two."""
    generator = torch.Generator().manual_seed(0)
    y_0, noise = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
    m = torch.zeros(2, 16, 16)
    m[0, 3:9, 4:12] = 1
    m[1, 7, 7] = 1
    context = sd.context("a photo of crack").expand(2, -1, -1)
    return y_0, m, noise, context, Guidance(3.0, sd.context(""))


TO_RGB = torch.randn(4, 3, generator=torch.Generator().manual_seed(1))


def run(sd, scene, weigh=None, guidance=None):
    y_0, m, noise, context, default = scene
    return list(blended_ddim(sd, y_0, m, noise, context, guidance or default, STEPS, TO_RGB, weigh))


def test_outside_the_mask_every_step_equals_q_of_y_and_the_last_equals_y(sd, scene):
    y_0, m, noise, *_ = scene
    outside = (m[:, None] == 0).expand_as(y_0)
    steps = run(sd, scene, adaptive)
    for step in steps[:-1]:
        a = sd.schedule.alphas_cumprod[step.t_prev].double()
        expected = a.sqrt() * y_0.double() + (1 - a).sqrt() * noise.double()
        found = step.x.double()
        torch.testing.assert_close(found[outside], expected[outside], rtol=1e-5, atol=1e-6)
    assert steps[-1].t_prev is None and torch.equal(steps[-1].x[outside], y_0[outside])


def test_inside_the_mask_the_last_step_is_its_x0_hat(sd, scene):
    _, m, *_ = scene
    last = run(sd, scene)[-1]
    inside = (m[:, None] > 0).expand_as(last.x)
    assert torch.equal(last.x[inside], last.x0_hat[inside])


def test_inside_the_mask_it_starts_from_pure_noise_and_follows_ddim(sd, scene):
    """The whole run again, with the update written out in float64 from the adaptive's equations."""
    y_0, m, noise, context, guidance = scene
    a = sd.schedule.alphas_cumprod.double()
    ts = [801, 601, 401, 201, 1]
    x = m[:, None] * noise + (1 - m[:, None]) * (a[801].sqrt() * y_0 + (1 - a[801]).sqrt() * noise)
    for step, t, t_prev in zip(run(sd, scene), ts, ts[1:] + [None]):
        with torch.no_grad():
            tt = torch.tensor([t, t])
            eps_u = sd.unet(x.float(), tt, guidance.uncond_context.expand(2, -1, -1)).double()
            eps_c = sd.unet(x.float(), tt, context).double()
        eps = eps_u + 3.0 * (eps_c - eps_u)
        x0 = (x - (1 - a[t]).sqrt() * eps) / a[t].sqrt()
        if t_prev is None:
            x = m[:, None] * x0 + (1 - m[:, None]) * y_0
        else:
            p = a[t_prev].sqrt() * x0 + (1 - a[t_prev]).sqrt() * eps
            q = a[t_prev].sqrt() * y_0 + (1 - a[t_prev]).sqrt() * noise
            x = m[:, None] * p + (1 - m[:, None]) * q
        torch.testing.assert_close(step.x.double(), x, rtol=1e-3, atol=1e-3)


def test_a_map_of_ones_changes_nothing(sd, scene):
    plain = run(sd, scene)
    ones = run(sd, scene, partial(constant, gain=1.0))
    for a, b in zip(plain, ones):
        torch.testing.assert_close(a.x, b.x, rtol=1e-5, atol=1e-5)


def test_the_first_step_is_not_weighted_and_each_later_one_by_the_step_before(sd, scene):
    y_0, m, *_ = scene
    plain, weighted = run(sd, scene), run(sd, scene, partial(constant, gain=3.0))
    assert weighted[0].weight is None and torch.equal(plain[0].x, weighted[0].x)
    assert not torch.allclose(plain[1].x, weighted[1].x)
    adapted = run(sd, scene, adaptive)
    for before, step in zip(adapted, adapted[1:]):
        expected = adaptive(difference(before.x0_hat, y_0, m, TO_RGB), m)
        torch.testing.assert_close(step.weight, expected)


def test_under_guidance_only_the_conditional_half_is_weighted(sd, scene):
    y_0, m, noise, context, guidance = scene
    t = torch.tensor([500, 500])
    maps = pyramid(constant(m, m, 2.5), m, sd.unet.config.levels)
    with torch.no_grad():
        got = guided(sd, noise, 500, context, guidance, maps)
        eps_u = sd.unet(noise, t, guidance.uncond_context.expand(2, -1, -1))
        eps_c = sd.unet(noise, t, context, maps)
    torch.testing.assert_close(got, eps_u + 3.0 * (eps_c - eps_u), rtol=1e-4, atol=1e-5)


def test_guidance_of_one_makes_one_call_of_the_conditional_model(sd, scene, monkeypatch):
    calls = []
    forward = sd.unet.forward
    monkeypatch.setattr(sd.unet, "forward",
                        lambda x, *a, **k: calls.append(len(x)) or forward(x, *a, **k))
    run(sd, scene, guidance=Guidance(1.0, scene[-1].uncond_context))
    assert calls == [2] * STEPS


def test_a_sample_does_not_depend_on_its_batch_neighbour(sd, scene):
    y_0, m, noise, context, guidance = scene
    both = run(sd, scene, adaptive)[-1].x
    alone = run(sd, (y_0[:1], m[:1], noise[:1], context[:1], guidance), adaptive)[-1].x
    torch.testing.assert_close(both[:1], alone, rtol=1e-3, atol=1e-3)
