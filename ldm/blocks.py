"""Convolutional parts that the U-Net and the VAE share: residual block, halving, doubling."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

# Cells to a channel from which on torch's own convolution is as fast: 1280 channels gain up to 64
# cells and are even at 256 (2 cores of an AMD EPYC, both dtypes).
CELLS_A_CHANNEL = 1 / 4


class Conv3x3(nn.Conv2d):
    """torch's convolution; on a CPU one matrix product, where cells are few and channels many.

    torch brings the weights into another order in every call, which takes longer than the sums
    where each weight meets few cells (docs/results.md, Speed).
    """

    bias: Tensor

    def __init__(self, c_in: int, c_out: int, stride: int = 1, padding: int = 1):
        super().__init__(c_in, c_out, 3, stride, padding)
        self.step, self.border = stride, padding

    def forward(self, x: Tensor) -> Tensor:
        """x (b, c_in, h, w) -> (b, c_out, h / stride, w / stride)."""
        h, w = ((side + 2 * self.border - 3) // self.step + 1 for side in x.shape[2:])
        if x.device.type != "cpu" or len(x) * h * w > CELLS_A_CHANNEL * self.out_channels:
            return super().forward(x)
        patches = F.unfold(x, 3, padding=self.border, stride=self.step)     # (b, 9 c_in, h w)
        out = torch.addmm(self.bias[:, None], self.weight.flatten(1),
                          rearrange(patches, "b patch n -> patch (b n)"))
        return rearrange(out, "c (b h w) -> b c h w", h=h, w=w)


class ResnetBlock(nn.Module):
    """Residual block. x (b, c_in, h, w), temb (b, time_dim) or None -> (b, c_out, h, w).

    With time_dim None (the VAE) there is no time embedding.
    """

    def __init__(self, c_in: int, c_out: int, norm_groups: int, eps: float,
                 time_dim: int | None = None):
        super().__init__()
        # Attribute names are the published key segments: loading renames nothing.
        self.norm1 = nn.GroupNorm(norm_groups, c_in, eps=eps)       # U-Net 1e-5, VAE 1e-6
        self.conv1 = Conv3x3(c_in, c_out)
        if time_dim is not None:
            self.time_emb_proj = nn.Linear(time_dim, c_out)
        self.norm2 = nn.GroupNorm(norm_groups, c_out, eps=eps)
        self.conv2 = Conv3x3(c_out, c_out)
        self.conv_shortcut = nn.Conv2d(c_in, c_out, 1) if c_in != c_out else None

    def forward(self, x: Tensor, temb: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if temb is not None:
            h = h + self.time_emb_proj(F.silu(temb))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Downsample(nn.Module):
    """Strided convolution. (b, c, h, w) -> (b, c, h/2, w/2)."""

    def __init__(self, channels: int, symmetric: bool):
        super().__init__()
        self.symmetric = symmetric
        self.conv = Conv3x3(channels, channels, stride=2, padding=1 if symmetric else 0)

    def forward(self, x: Tensor) -> Tensor:
        # The U-Net pads one pixel on every side; latent-diffusion's VAE only right and below.
        return self.conv(x if self.symmetric else F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a convolution. (b, c, h, w) -> (b, c, 2h, 2w)."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
