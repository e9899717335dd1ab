"""The VAE against diffusers' AutoencoderKL, on the same random weights; our latents are scaled."""

import math

import pytest
import torch
from diffusers import AutoencoderKL

from benchmarks.random_models import small_vae
from ldm.config import VAEConfig
from ldm.vae import VAE

ARCHITECTURES = {
    "f=4": {},
    "f=8, as SD": {
        "block_out_channels": (16, 32, 32, 32), "layers_per_block": 2, "norm_num_groups": 16},
    "f=8, one layer, other scale": {
        "block_out_channels": (8, 16, 24, 24), "norm_num_groups": 4, "scaling_factor": 0.5},
}
# Layers whose output a norm reads. Scaled down, variances are as small as eps, which then shows.
WRITERS = ("conv_in", "conv1", "conv2", "to_out.0")
LINEAR = ("conv_shortcut.bias", "downsamplers.0.conv.bias", "upsamplers.0.conv.bias")


def quiet(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.rpartition(".")[0].endswith(WRITERS) or name.endswith(LINEAR):
                parameter.mul_(0.003)
    return model


def ours(reference: AutoencoderKL) -> VAE:
    """Our VAE of the same sizes with the same weights, copied strictly."""
    c = reference.config
    vae = VAE(VAEConfig(channels=tuple(c.block_out_channels), layers_per_block=c.layers_per_block,
                        norm_groups=c.norm_num_groups, scaling_factor=c.scaling_factor))
    vae.load_state_dict(reference.state_dict(), strict=True)
    return vae.eval()


def picture(kind, b, c, h, w):
    torch.manual_seed(7)
    noise = torch.randn(b, c, h, w)
    return noise.clamp(-1, 1) if kind == "noisy" else 0.3 + 1e-3 * noise


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def assert_encodes_as(reference, image):
    mean, std = ours(reference).encode(image)
    expected, scale = reference.encode(image).latent_dist, reference.config.scaling_factor
    assert_equal(mean, expected.mean * scale)
    assert_equal(std, expected.std * scale)


@torch.no_grad()
def assert_decodes_as(reference, latents):
    expected = reference.decode(latents / reference.config.scaling_factor).sample
    assert_equal(ours(reference).decode(latents), expected)


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("kind", ["noisy", "flat"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_mean_and_std_equal_diffusers_times_the_scaling_factor(name, kind, b):
    assert_encodes_as(small_vae(**ARCHITECTURES[name]), picture(kind, b, 3, 32, 48))


@pytest.mark.parametrize("b", [1, 2])
@pytest.mark.parametrize("kind", ["noisy", "flat"])
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_decoded_images_equal_diffusers(name, kind, b):
    assert_decodes_as(small_vae(**ARCHITECTURES[name]), picture(kind, b, 4, 6, 4))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_flat_images_equal_diffusers_where_the_norms_eps_decides(name):
    reference = quiet(small_vae(**ARCHITECTURES[name]))
    assert_encodes_as(reference, picture("flat", 2, 3, 48, 32))
    assert_decodes_as(reference, picture("flat", 2, 4, 4, 6))


def test_the_logarithm_of_the_variance_is_clamped_as_in_diffusers():
    reference = small_vae()
    with torch.no_grad():
        reference.quant_conv.bias[4:] = torch.tensor([-80.0, 50.0, 0.0, -29.0])
    assert_encodes_as(reference, picture("noisy", 1, 3, 16, 16))
    lowest = ours(reference).encode(picture("noisy", 1, 3, 16, 16))[1][:, 0]
    torch.testing.assert_close(lowest, torch.full_like(lowest, 0.18215 * math.exp(-15)))


def test_each_image_of_a_batch_is_coded_alone():
    vae = ours(small_vae())
    images = torch.cat([picture("noisy", 1, 3, 16, 24), picture("flat", 1, 3, 16, 24)])
    with torch.no_grad():
        together = vae.encode(images)[0]
        alone = torch.cat([vae.encode(images[n:n + 1])[0] for n in range(2)])
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(vae.decode(together)[1:], vae.decode(alone[1:]),
                                   rtol=1e-4, atol=1e-5)
