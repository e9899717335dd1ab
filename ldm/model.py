"""Stable Diffusion as one object: tokenizer, text encoder, U-Net, VAE and schedule, all frozen.

    ids     = sd.tokenizer(["a photo of a screw"])      # (b, L)
    words   = sd.text_encoder.embed(ids)                # (b, L, d): learned vectors go in here
    context = sd.text_encoder.encode(words)             # (b, L, d)
    eps_hat = sd.unet(x_t, t, context)                  # (b, 4, h, w)
    image   = sd.vae.decode(latents)                    # (b, 3, f*h, f*w) in [-1, 1]
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.schedule import Schedule
from ldm.text_encoder import TextEncoder
from ldm.tokenizer import Tokenizer
from ldm.unet import UNet
from ldm.vae import VAE


@dataclass(frozen=True)
class StableDiffusion:
    """The parts share one device and one dtype. Gradients flow through them, never into them.

    Every part takes float tensors of any precision and returns the precision it was given.
    """

    tokenizer: Tokenizer
    text_encoder: TextEncoder
    unet: UNet
    vae: VAE
    schedule: Schedule
    remarks: tuple[str, ...] = ()   # what the loader had to decide, a line each
    source: str = ""                # what was loaded, for the record
    fingerprint: Callable[[], str] = str    # of the weights' files: reads all; "" if there are none

    def __post_init__(self) -> None:
        for part in (self.text_encoder, self.unet, self.vae):
            part.requires_grad_(False).eval()

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.unet.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the weights are in."""
        return self.unet.conv_in.weight.dtype

    @property
    def native_size(self) -> int:
        """Side in pixels of the model's training images: 512, or 768 for the v models of SD 2.x."""
        return self.unet.config.sample_size * self.vae.config.factor

    @property
    def size_multiple(self) -> int:
        """Image sides must divide by this: VAE factor times the U-Net's halvings, 64 for SD."""
        return self.vae.config.factor * 2 ** (self.unet.config.levels - 1)

    def context(self, text: str) -> Tensor:
        """The context of one prompt, (1, L, d)."""
        ids = self.tokenizer([text]).to(self.device)
        return self.text_encoder.encode(self.text_encoder.embed(ids))
