"""Stage 1: the VAE, 128 px to 32 x 32 latents of 4 channels.

It is short of steps, not of pictures a step: small crops first, whole pictures at the end. A
network with GroupNorm learns global colour last, hence the loss on colours of small versions.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from anomaly.embedding import seed_of
from ldm.config import VAEConfig
from ldm.vae import VAE
from pretraining.picture_set import PictureSet
from pretraining.state import Stage, half_precision

CONFIG = VAEConfig(channels=(32, 48, 64), layers_per_block=1, norm_groups=8, scaling_factor=1.0)
RATE, AVERAGE = 1.5e-3, 0.999
CROP, CROPS, WHOLE = 64, 8, 4       # side and number of a step's crops; number of whole pictures
CROP_SHARE = 0.7                    # of the steps


def to_float(images: np.ndarray) -> Tensor:
    """(b, h, w, 3) uint8 -> (b, 3, h, w) in [-1, 1]."""
    return torch.tensor(images).permute(0, 3, 1, 2).float() / 127.5 - 1


def batch(pictures: PictureSet, seed: int, step: int, steps: int) -> tuple[Tensor, Tensor]:
    """Images and masks (b, 1, h, w) of a step, mirrored and transposed at random."""
    rng = np.random.default_rng([seed, 1, step])
    crops, size = step < CROP_SHARE * steps, pictures.images.shape[1]
    side = CROP if crops else size
    images, masks = [], []
    for i in rng.integers(len(pictures.captions), size=CROPS if crops else WHOLE):
        y, x = rng.integers(0, size - side + 1, 2)
        image, mask = (a[i, y:y + side, x:x + side] for a in (pictures.images, pictures.masks))
        flips = [axis for axis in (0, 1) if rng.uniform() < 0.5]
        image, mask = np.flip(image, flips), np.flip(mask, flips)
        if rng.uniform() < 0.5:
            image, mask = image.swapaxes(0, 1), mask.swapaxes(0, 1)
        images.append(image)
        masks.append(mask)
    return to_float(np.stack(images)), torch.from_numpy(np.stack(masks))[:, None].float()


def reconstruction_loss(out: Tensor, image: Tensor, mask: Tensor) -> Tensor:
    """Absolute differences of pixels, slopes, small versions and their colours, and squared ones.

    Absolute ones of pixels count twice in a defect.
    """
    difference = out - image
    loss = (difference.abs() * (1 + mask)).mean()
    for axis in (2, 3):
        loss = loss + 0.25 * difference.diff(dim=axis).abs().mean()
    for factor in (2, 4):
        loss = loss + 0.25 * F.avg_pool2d(difference, factor).abs().mean()
    for factor in (4, 16):
        small = F.avg_pool2d(difference, factor)
        loss = loss + 0.35 * (small[:, :2] - small[:, 1:]).abs().mean()
    return loss + 2.0 * difference.square().mean()


def train_step(vae: VAE, stage: Stage, pictures: PictureSet, seed: int, steps: int,
               device: str) -> float:
    """One step of the optimizer -> its loss."""
    image, mask = (x.to(device) for x in batch(pictures, seed, stage.step, steps))
    noise = torch.Generator().manual_seed(seed_of(seed, 1, stage.step))
    with half_precision(device):
        mean, std = vae.encode(image)
        z = mean + std * torch.randn(mean.shape, generator=noise).to(device)
        out = vae.decode(z)
    mean, std = mean.float(), std.float()
    kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
    loss = reconstruction_loss(out.float(), image, mask) + 1e-4 * kl
    stage.update(loss, steps)
    return float(loss.detach())


@torch.no_grad()
def encode_all(vae: VAE, images: np.ndarray, device: str, size: int = 16) -> Tensor:
    """The means of the latents, (n, 4, h, w) float16 on the CPU."""
    parts = [vae.encode(to_float(images[i:i + size]).to(device))[0].half().cpu()
             for i in range(0, len(images), size)]
    return torch.cat(parts)


@torch.no_grad()
def fold(vae: VAE, latents: Tensor) -> None:
    """Make every channel of the latents standard: the same autoencoder, with scaling factor 1.

    latents: pictures' (n, 4, h, w). quant_conv gets (z - mu) / sigma, post_quant_conv its inverse.
    """
    z = latents.float()
    mu, sigma = (f(z, dim=(0, 2, 3)).to(vae.quant_conv.weight) for f in (torch.mean, torch.std))
    channels = len(mu)
    vae.quant_conv.weight[:channels] /= sigma[:, None, None, None]
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mu) / sigma
    vae.quant_conv.bias[channels:] -= 2 * sigma.log()       # the rest are log variances
    weight = vae.post_quant_conv.weight
    vae.post_quant_conv.bias += weight[:, :, 0, 0] @ mu
    weight *= sigma[None, :, None, None]
