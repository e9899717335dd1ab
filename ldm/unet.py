"""The U-Net that predicts the noise (or v): eps_theta(x_t, t, context), with w_m for each level.

Down the levels the feature map halves and the skips are kept; up again they are concatenated. Level
l works on (h / 2^l, w / 2^l); its cross-attentions, on the way down, in the middle and on the way
up, all take the same map weight_map[l].
"""

import math
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ldm.attention import SpatialTransformer
from ldm.blocks import Downsample, ResnetBlock, Upsample
from ldm.config import UNetConfig

NORM_EPS = 1e-5     # GroupNorm of resnets and conv_norm_out: "norm_eps" of the published config


def timestep_embedding(t: Tensor, width: int) -> Tensor:
    """Sinusoids of the timestep: t (b,) -> (b, width), cosines first, float32.

    Cosines first and no frequency shift: latent-diffusion's order ("flip_sin_to_cos": true).
    """
    half = width // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, device=t.device) / half)
    angles = t.float()[:, None] * frequencies[None]
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


class TimestepMLP(nn.Module):
    """(b, channels) -> (b, time_dim)."""

    def __init__(self, channels: int, time_dim: int):
        super().__init__()
        self.linear_1 = nn.Linear(channels, time_dim)
        self.linear_2 = nn.Linear(time_dim, time_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear_2(F.silu(self.linear_1(x)))


def _transformer(config: UNetConfig, level: int) -> SpatialTransformer:
    return SpatialTransformer(config.channels[level], config.context_dim, config.heads[level],
                              config.norm_groups, config.linear_projection, config.upcast_attention)


def _resnet(config: UNetConfig, c_in: int, c_out: int) -> ResnetBlock:
    return ResnetBlock(c_in, c_out, config.norm_groups, NORM_EPS, config.time_dim)


class DownBlock(nn.Module):
    """One level of the way down; appends every feature map to the skips."""

    def __init__(self, config: UNetConfig, level: int):
        super().__init__()
        c_in, c_out = config.channels[max(level - 1, 0)], config.channels[level]
        n = config.layers_per_block
        self.resnets = nn.ModuleList(
            _resnet(config, c_in if j == 0 else c_out, c_out) for j in range(n))
        n_attentions = n if config.cross_attention[level] else 0
        self.attentions = nn.ModuleList(_transformer(config, level) for _ in range(n_attentions))
        last = level == config.levels - 1
        self.downsamplers = nn.ModuleList([] if last else [Downsample(c_out, symmetric=True)])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor, weight_map: Tensor | None,
                skips: list[Tensor]) -> Tensor:
        """x (b, c, h, w) -> the next level's input; skips grows by one map a layer."""
        for j, resnet in enumerate(self.resnets):
            x = resnet(x, temb)
            if self.attentions:
                x = self.attentions[j](x, context, weight_map)
            skips.append(x)
        for downsample in self.downsamplers:
            x = downsample(x)
            skips.append(x)
        return x


class MidBlock(nn.Module):
    """Resnet, transformer, resnet at the coarsest level: attention, even if the level has none."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        width = config.channels[-1]
        self.resnets = nn.ModuleList(_resnet(config, width, width) for _ in range(2))
        self.attentions = nn.ModuleList([_transformer(config, config.levels - 1)])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor,
                weight_map: Tensor | None) -> Tensor:
        x = self.resnets[0](x, temb)
        x = self.attentions[0](x, context, weight_map)
        return self.resnets[1](x, temb)


class UpBlock(nn.Module):
    """One level of the way up; takes its skips from the end of the list."""

    def __init__(self, config: UNetConfig, level: int):
        super().__init__()
        width = config.channels[level]
        below = config.channels[min(level + 1, config.levels - 1)]
        above = config.channels[max(level - 1, 0)]
        n = config.layers_per_block + 1
        # The last skip of a level is the level's input: it has the width of the level above.
        skip_widths = [width] * (n - 1) + [above]
        self.resnets = nn.ModuleList(
            _resnet(config, (below if j == 0 else width) + skip_widths[j], width) for j in range(n))
        n_attentions = n if config.cross_attention[level] else 0
        self.attentions = nn.ModuleList(_transformer(config, level) for _ in range(n_attentions))
        self.upsamplers = nn.ModuleList([Upsample(width)] if level > 0 else [])

    def forward(self, x: Tensor, temb: Tensor, context: Tensor, weight_map: Tensor | None,
                skips: list[Tensor]) -> Tensor:
        for j, resnet in enumerate(self.resnets):
            x = resnet(torch.cat([x, skips.pop()], dim=1), temb)
            if self.attentions:
                x = self.attentions[j](x, context, weight_map)
        for upsample in self.upsamplers:
            x = upsample(x)
        return x


class UNet(nn.Module):
    """eps_theta. Attribute names are the published key segments."""

    def __init__(self, config: UNetConfig):
        super().__init__()
        self.config = config
        channels, levels = config.channels, range(config.levels)
        self.conv_in = nn.Conv2d(config.latent_channels, channels[0], 3, padding=1)
        self.time_embedding = TimestepMLP(channels[0], config.time_dim)
        self.down_blocks = nn.ModuleList(DownBlock(config, level) for level in levels)
        self.mid_block = MidBlock(config)
        self.up_blocks = nn.ModuleList(UpBlock(config, level) for level in reversed(levels))
        self.conv_norm_out = nn.GroupNorm(config.norm_groups, channels[0], eps=NORM_EPS)
        self.conv_out = nn.Conv2d(channels[0], config.latent_channels, 3, padding=1)

    def checkpoint_layers(self) -> None:
        """Keep only the input of each layer for the backward pass, which computes the layer again.

        Less memory, more time (docs/results.md, Speed); the gradients are the same.
        """
        for layer in self.modules():
            if isinstance(layer, (ResnetBlock, SpatialTransformer)):
                layer.forward = partial(             # type: ignore[method-assign]
                    checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)

    def forward(self, x_t: Tensor, t: Tensor, context: Tensor,
                weight_map: list[Tensor] | None = None) -> Tensor:
        """x_t (b, 4, h, w), t (b,) integer timesteps, context (b, j, d) -> eps_hat (b, 4, h, w).

        A v model gives v_hat. Computed in the dtype of the weights, returned in that of x_t. h and
        w must divide by 2^(levels - 1). weight_map: None, or w_m as one (b, h / 2^l, w / 2^l) a
        level, finest first; a level without cross-attention ignores its map.
        """
        dtype = self.conv_in.weight.dtype
        context = context.to(dtype)
        maps = weight_map if weight_map is not None else [None] * self.config.levels
        temb = self.time_embedding(timestep_embedding(t, self.config.channels[0]).to(dtype))
        x = self.conv_in(x_t.to(dtype))
        skips = [x]
        for block, w_l in zip(self.down_blocks, maps):
            x = block(x, temb, context, w_l, skips)
        x = self.mid_block(x, temb, context, maps[-1])
        for block, w_l in zip(self.up_blocks, reversed(maps)):
            x = block(x, temb, context, w_l, skips)
        return self.conv_out(F.silu(self.conv_norm_out(x))).to(x_t.dtype)
