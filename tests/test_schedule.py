"""The schedule and DDIM against published values, closed forms and diffusers' DDIMScheduler."""

from types import SimpleNamespace

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel

from anomaly.sampler import Guidance, ddim
from ldm.config import ScheduleConfig
from ldm.schedule import Schedule

# Computed in float64 from linspace(sqrt(0.00085), sqrt(0.012), 1000) ** 2, outside this project.
PUBLISHED = {0: .9991500000, 1: .9982960278, 21: .9803807481, 500: .2763326838, 981: .0057755001,
             999: .0046600985}


def ddim_scheduler(prediction_type: str = "epsilon", **more) -> DDIMScheduler:
    return DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                         clip_sample=False, set_alpha_to_one=False, steps_offset=1,
                         timestep_spacing="leading", prediction_type=prediction_type, **more)


def noise_latents(kind, b=2, h=8, w=12):
    torch.manual_seed(3)
    noise = torch.randn(b, 4, h, w)
    return noise if kind == "noisy" else 0.3 + 1e-3 * noise


def reference_ddim(eps_of, x_t, steps, prediction_type="epsilon"):
    """diffusers' own loop."""
    scheduler = ddim_scheduler(prediction_type)
    scheduler.set_timesteps(steps)
    for t in scheduler.timesteps:
        x_t = scheduler.step(eps_of(x_t, t), t, x_t).prev_sample
    return x_t


def assert_equal(found, expected):
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_alphas_cumprod_has_the_published_values():
    found = Schedule().alphas_cumprod
    assert found.shape == (1000,) and found.dtype == torch.float32
    for t, value in PUBLISHED.items():
        assert float(found[t]) == pytest.approx(value, rel=1e-6)


def test_alphas_cumprod_equals_diffusers():
    torch.testing.assert_close(Schedule().alphas_cumprod, ddim_scheduler().alphas_cumprod,
                               rtol=2e-6, atol=0)


def test_alphas_cumprod_of_zero_terminal_snr_equals_diffusers():
    found = Schedule(ScheduleConfig(v_prediction=True, zero_snr=True))
    expected = ddim_scheduler("v_prediction", rescale_betas_zero_snr=True).alphas_cumprod
    torch.testing.assert_close(found.alphas_cumprod, expected, rtol=1e-4, atol=1e-8)
    assert found.alphas_cumprod[-1] == 0
    x_t, out = noise_latents("noisy"), noise_latents("flat")
    assert torch.equal(found.x0_hat(x_t, 999, out), -out)      # progressive distillation, app. D


@pytest.mark.parametrize("kind", ["noisy", "flat"])
def test_q_sample_equals_the_closed_form_in_float64(kind):
    x_0, eps, t = noise_latents(kind), noise_latents("noisy").flip(0), torch.tensor([21, 981])
    a = torch.tensor([PUBLISHED[21], PUBLISHED[981]], dtype=torch.float64)[:, None, None, None]
    expected = a ** 0.5 * x_0.double() + (1 - a) ** 0.5 * eps.double()
    found = Schedule().q_sample(x_0, t, eps)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["noisy", "flat"])
def test_x0_hat_equals_the_closed_form_in_float64(kind):
    x_t, eps, t = noise_latents(kind), noise_latents("noisy").flip(0), torch.tensor([21, 981])
    a = torch.tensor([PUBLISHED[21], PUBLISHED[981]], dtype=torch.float64)[:, None, None, None]
    expected = (x_t.double() - (1 - a) ** 0.5 * eps.double()) / a ** 0.5
    found = Schedule().x0_hat(x_t, t, eps)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 3, 10, 20, 30, 50, 500])
def test_timesteps_equal_diffusers(steps):
    scheduler = ddim_scheduler()
    scheduler.set_timesteps(steps)
    expected = scheduler.timesteps.tolist()
    pairs = Schedule().timesteps(steps)
    assert [t for t, _ in pairs] == expected
    assert [t_prev for _, t_prev in pairs] == expected[1:] + [0]


@pytest.mark.parametrize("steps", [-1, 0, 501, 1000])
def test_a_number_of_steps_that_leaves_no_stride_of_two_is_refused(steps):
    with pytest.raises(ValueError, match=f"{steps} sampling steps; expected 1 to 500"):
        Schedule().timesteps(steps)


@pytest.mark.parametrize("kind", ["noisy", "flat"])
@pytest.mark.parametrize("steps", [1, 30, 50])
def test_ddim_of_a_fixed_predictor_ends_where_diffusers_ends(steps, kind):
    def eps_of(x_t, t):
        return torch.tanh(0.3 * x_t + t / 1000)

    fake = SimpleNamespace(schedule=Schedule(),
                           unet=lambda x_t, t, *_: eps_of(x_t, t[:, None, None, None]))
    x_T = noise_latents(kind)
    found = ddim(fake, x_T, torch.zeros(2, 1, 1), Guidance(1.0, torch.zeros(1, 1, 1)), steps)
    assert_equal(found, reference_ddim(eps_of, x_T, steps))


@torch.no_grad()
@pytest.mark.parametrize("b", [1, 2])
def test_ddim_of_the_small_unet_ends_where_diffusers_ends(sd, checkpoint, b):
    reference = UNet2DConditionModel.from_pretrained(checkpoint / "unet").eval()
    context = sd.context("a photo of crack").expand(b, -1, -1)
    x_T = noise_latents("noisy", b, 8, 16)
    found = ddim(sd, x_T, context, Guidance(1.0, sd.context("")), 10)
    assert_equal(found, reference_ddim(lambda x_t, t: reference(x_t, t, context).sample, x_T, 10))


V = Schedule(ScheduleConfig(v_prediction=True))


@pytest.mark.parametrize("kind", ["noisy", "flat"])
def test_the_target_of_a_v_model_equals_diffusers_velocity(kind):
    x_0, eps, t = noise_latents(kind), noise_latents("noisy").flip(0), torch.tensor([21, 981])
    assert_equal(V.target(x_0, t, eps), ddim_scheduler().get_velocity(x_0, eps, t))
    assert Schedule().target(x_0, t, eps) is eps


@pytest.mark.parametrize("kind", ["noisy", "flat"])
@pytest.mark.parametrize("t", [1, 501, 981])
def test_x0_hat_of_a_v_model_equals_diffusers(kind, t):
    scheduler = ddim_scheduler("v_prediction")
    scheduler.set_timesteps(50)
    x_t, v = noise_latents(kind), noise_latents("noisy").flip(0)
    found = V.x0_hat(x_t, torch.tensor([t, t]), v)
    assert_equal(found, scheduler.step(v, t, x_t).pred_original_sample)


@pytest.mark.parametrize("schedule", [Schedule(), V], ids=["eps", "v"])
def test_the_target_leads_back_to_the_latent_and_the_noise(schedule):
    x_0, eps, t = noise_latents("flat"), noise_latents("noisy").flip(0), torch.tensor([21, 501])
    x_t, out = schedule.q_sample(x_0, t, eps), schedule.target(x_0, t, eps)
    torch.testing.assert_close(schedule.x0_hat(x_t, t, out), x_0, rtol=0, atol=1e-5)
    torch.testing.assert_close(schedule.eps_hat(x_t, t, out), eps, rtol=0, atol=1e-5)


@pytest.mark.parametrize("steps", [1, 30, 50])
def test_ddim_of_a_fixed_v_predictor_ends_where_diffusers_ends(steps):
    def v_of(x_t, t):
        return torch.tanh(0.3 * x_t + t / 1000)

    fake = SimpleNamespace(schedule=V, unet=lambda x_t, t, *_: v_of(x_t, t[:, None, None, None]))
    x_T = noise_latents("noisy")
    found = ddim(fake, x_T, torch.zeros(2, 1, 1), Guidance(1.0, torch.zeros(1, 1, 1)), steps)
    assert_equal(found, reference_ddim(v_of, x_T, steps, "v_prediction"))
