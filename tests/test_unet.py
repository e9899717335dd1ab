"""The U-Net against diffusers' UNet2DConditionModel, on the same random weights."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from diffusers.models.embeddings import get_timestep_embedding

from benchmarks.random_models import make_prompt_matter, randomise, small_unet
from ldm.config import UNetConfig
from ldm.unet import UNet, timestep_embedding

ATTENTION, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"


def levels(*down):
    """Block types from the finest level down; the way up mirrors them."""
    up = tuple(name.replace("Down", "Up") for name in down[::-1])
    return {"down_block_types": down, "up_block_types": up}


ARCHITECTURES = {
    "three levels, the last without attention": {},
    "four levels of two layers, as SD": {
        "block_out_channels": (32, 64, 96, 96), "layers_per_block": 2, "norm_num_groups": 32,
        **levels(ATTENTION, ATTENTION, ATTENTION, PLAIN)},
    "other heads on every level": {"attention_head_dim": [2, 8, 16], "cross_attention_dim": 24},
    "the first level without attention": {
        "block_out_channels": (16, 32, 64), "norm_num_groups": 16,
        **levels(PLAIN, ATTENTION, ATTENTION)},
}
# Layers whose output a norm reads. Scaled down, variances are as small as eps, which then shows.
WRITERS = ("conv_in", "conv1", "conv2", "time_emb_proj", "proj_in", "proj_out", "to_out.0",
           "ff.net.2")
LINEAR = ("conv_shortcut.bias", "downsamplers.0.conv.bias", "upsamplers.0.conv.bias")


def quiet(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[0].endswith(WRITERS) or name.endswith(LINEAR):
                parameter.mul_(0.003)
            elif name.endswith(("to_q.weight", "to_k.weight")):
                parameter.mul_(4.0)     # probabilities far from uniform: the norms before show too
    return model


def ours(reference: UNet2DConditionModel) -> UNet:
    """Our U-Net of the same sizes with the same weights, copied strictly."""
    c = reference.config
    heads = c.attention_head_dim
    unet = UNet(UNetConfig(
        channels=tuple(c.block_out_channels), layers_per_block=c.layers_per_block,
        cross_attention=tuple(name == ATTENTION for name in c.down_block_types),
        heads=tuple([heads] * len(c.block_out_channels) if isinstance(heads, int) else heads),
        context_dim=c.cross_attention_dim, norm_groups=c.norm_num_groups,
        sample_size=c.sample_size))
    unet.load_state_dict(reference.state_dict(), strict=True)
    return unet.eval()


def latents(kind, b, h, w):
    torch.manual_seed(7)
    noise = torch.randn(b, 4, h, w)
    return noise if kind == "noisy" else 0.3 + 1e-3 * noise


@torch.no_grad()
def difference(reference, b, kind, h=16, w=24):
    """Largest difference to diffusers over diffusers' largest value."""
    x_t, t = latents(kind, b, h, w), torch.tensor([981, 21])[:b]
    context = torch.randn(b, 7, reference.config.cross_attention_dim)
    expected = reference(x_t, t, context).sample
    return float((ours(reference)(x_t, t, context) - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("kind", ["noisy", "flat"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_eps_hat_equals_diffusers(name, kind, b):
    assert difference(make_prompt_matter(small_unet(**ARCHITECTURES[name])), b, kind) <= 1e-4


@pytest.mark.parametrize("kind", ["noisy", "flat"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_eps_hat_equals_diffusers_where_the_norms_eps_decides(name, kind):
    assert difference(quiet(small_unet(**ARCHITECTURES[name])), 2, kind) <= 1e-4


def test_eps_hat_equals_diffusers_where_gates_are_far_from_zero():
    reference = small_unet()
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if "ff.net" in name:
                parameter.mul_(4.0)
    assert difference(reference, 2, "noisy") <= 1e-4


def test_a_portrait_and_the_smallest_grid_equal_diffusers():
    reference = make_prompt_matter(small_unet())
    assert difference(reference, 2, "noisy", h=24, w=8) <= 1e-4
    assert difference(reference, 2, "noisy", h=4, w=4) <= 1e-4


def test_each_row_of_a_batch_has_its_own_timestep_and_context():
    unet = ours(randomise(make_prompt_matter(small_unet()), 9))
    x_t, t, context = latents("noisy", 2, 8, 8), torch.tensor([981, 21]), torch.randn(2, 7, 32)
    with torch.no_grad():
        together = unet(x_t, t, context)
        alone = torch.cat([unet(x_t[n:n + 1], t[n:n + 1], context[n:n + 1]) for n in range(2)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_timesteps_become_cosines_then_sines_of_the_published_frequencies():
    t = torch.tensor([0, 1, 21, 500, 981, 999])
    expected = get_timestep_embedding(t, 320, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, 320), expected, rtol=0, atol=1e-4)
    double = torch.arange(160, dtype=torch.float64)
    angles = t.double()[:, None] * 10000.0 ** (-double / 160)
    closed = torch.cat([angles.cos(), angles.sin()], dim=-1)
    torch.testing.assert_close(timestep_embedding(t, 320).double(), closed, rtol=0, atol=1e-4)
