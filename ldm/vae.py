"""The VAE: images (b, 3, f*h, f*w) in [-1, 1] <-> latents (b, 4, h, w), f = 8 for SD.

Latents leave `encode` and enter `decode` already scaled by scaling_factor, so that their standard
deviation is near 1; nothing outside this file multiplies by 0.18215.

float16 ends at 65504, and activations of the VAE can pass it. What is not finite is computed again
in float32: never a black image.
"""

import logging
from copy import deepcopy

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import attention
from ldm.blocks import Downsample, ResnetBlock, Upsample
from ldm.config import VAEConfig

# latent-diffusion's Normalize(): 1e-6 in every GroupNorm of the VAE. With 1e-5 a noisy image hardly
# changes, a flat one is wrong by a tenth: variances there are as small as eps.
NORM_EPS = 1e-6
log = logging.getLogger(__name__)


class VAEAttention(nn.Module):
    """Single-head self-attention over a feature map, around a residual. (b, c, h, w) -> same."""

    def __init__(self, channels: int, norm_groups: int):
        super().__init__()
        self.group_norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.Sequential(nn.Linear(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        h = rearrange(self.group_norm(x), "b c h w -> b 1 (h w) c")
        out = attention(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + rearrange(self.to_out(out), "b 1 (h w) c -> b c h w", h=x.shape[2])


def _resnets(config: VAEConfig, c_in: int, c_out: int, n: int) -> nn.ModuleList:
    return nn.ModuleList(ResnetBlock(c_in if j == 0 else c_out, c_out, config.norm_groups, NORM_EPS)
                         for j in range(n))


class Level(nn.Module):
    """Resnets of one resolution, then an optional halving or doubling."""

    def __init__(self, config: VAEConfig, c_in: int, c_out: int, n: int,
                 down: bool = False, up: bool = False):
        super().__init__()
        self.resnets = _resnets(config, c_in, c_out, n)
        self.downsamplers = nn.ModuleList([Downsample(c_out, symmetric=False)] if down else [])
        self.upsamplers = nn.ModuleList([Upsample(c_out)] if up else [])

    def forward(self, x: Tensor) -> Tensor:
        for resnet in self.resnets:
            x = resnet(x)
        for resample in (*self.downsamplers, *self.upsamplers):
            x = resample(x)
        return x


class VAEMidBlock(nn.Module):
    """Resnet, attention, resnet at the coarsest resolution."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        width = config.channels[-1]
        self.resnets = _resnets(config, width, width, 2)
        self.attentions = nn.ModuleList([VAEAttention(width, config.norm_groups)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))


class Encoder(nn.Module):
    """(b, 3, f*h, f*w) -> (b, 2 * latent_channels, h, w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, last = config.channels, len(config.channels) - 1
        self.conv_in = nn.Conv2d(3, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level(config, widths[max(i - 1, 0)], widths[i], config.layers_per_block, down=i < last)
            for i in range(len(widths)))
        self.mid_block = VAEMidBlock(config)
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    """(b, latent_channels, h, w) -> (b, 3, f*h, f*w)."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        widths, last = config.channels[::-1], len(config.channels) - 1
        self.conv_in = nn.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.mid_block = VAEMidBlock(config)
        # One resnet more than the encoder has a level: latent-diffusion's Decoder.
        n = config.layers_per_block + 1
        self.up_blocks = nn.ModuleList(
            Level(config, widths[max(i - 1, 0)], widths[i], n, up=i < last)
            for i in range(len(widths)))
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, widths[-1], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(widths[-1], 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class VAE(nn.Module):
    """AutoencoderKL. Attribute names are the published key segments."""

    def __init__(self, config: VAEConfig):
        super().__init__()
        self.config = config
        z = config.latent_channels
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv2d(2 * z, 2 * z, 1)
        self.post_quant_conv = nn.Conv2d(z, z, 1)
        self.decoder = Decoder(config)
        self.overflowed_before = False      # said once

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in. Images and latents of any float type come back in that type."""
        return self.quant_conv.weight.dtype

    def _overflowed(self, x: Tensor) -> bool:
        overflowed = self.dtype in (torch.float16, torch.bfloat16) and not bool(x.isfinite().all())
        if overflowed and not self.overflowed_before:
            log.warning("the VAE overflows in half precision; what does is computed again in "
                        "float32, which takes longer")
        self.overflowed_before |= overflowed
        return overflowed

    def encode(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """image (b, 3, f*h, f*w) in [-1, 1] -> mean and std of the latents (b, 4, h, w), scaled."""
        moments = self.quant_conv(self.encoder(image.to(self.dtype)))
        if self._overflowed(moments):
            return deepcopy(self).float().encode(image)
        mean, logvar = moments.to(image.dtype).chunk(2, dim=1)
        # The clamp is latent-diffusion's DiagonalGaussianDistribution.
        std = torch.exp(0.5 * logvar.clamp(-30.0, 20.0))
        return mean * self.config.scaling_factor, std * self.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """latents (b, 4, h, w), scaled -> image (b, 3, f*h, f*w), about [-1, 1], not clamped."""
        z = (latents / self.config.scaling_factor).to(self.dtype)
        image = self.decoder(self.post_quant_conv(z))
        if self._overflowed(image):
            return deepcopy(self).float().decode(latents)
        return image.to(latents.dtype)
