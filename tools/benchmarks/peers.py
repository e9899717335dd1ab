"""The same work as one would write it otherwise: with diffusers' parts, or without any trick."""

from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor, nn

from anomaly.crop import Cropped
from anomaly.train import masked_loss
from ldm.model import StableDiffusion
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from ldm.vae import VAE


def peers_are_there() -> bool:
    """True if diffusers and transformers are installed; a GPU machine need not have them."""
    return all(map(find_spec, ("diffusers", "transformers")))


def unet_of_diffusers(unet: UNet) -> nn.Module | None:
    """With the same weights; None without diffusers and transformers."""
    if not peers_are_there():
        return None
    from diffusers import UNet2DConditionModel
    config, weight = unet.config, unet.conv_in.weight
    down = [f"{'CrossAttn' if some else ''}DownBlock2D" for some in config.cross_attention]
    with torch.device(weight.device):
        peer = UNet2DConditionModel(
            sample_size=config.sample_size, block_out_channels=config.channels,
            layers_per_block=config.layers_per_block, cross_attention_dim=config.context_dim,
            attention_head_dim=config.heads, norm_num_groups=config.norm_groups,
            use_linear_projection=config.linear_projection, down_block_types=down,
            up_block_types=[name.replace("Down", "Up") for name in down[::-1]])
    peer.load_state_dict(unet.state_dict())
    return peer.to(weight.dtype).eval().requires_grad_(False)


def vae_of_diffusers(vae: VAE) -> nn.Module:
    """With the same weights."""
    from diffusers import AutoencoderKL
    config, weight, n = vae.config, vae.quant_conv.weight, len(vae.config.channels)
    with torch.device(weight.device):
        peer = AutoencoderKL(
            block_out_channels=config.channels, layers_per_block=config.layers_per_block,
            latent_channels=config.latent_channels, norm_num_groups=config.norm_groups,
            down_block_types=["DownEncoderBlock2D"] * n, up_block_types=["UpDecoderBlock2D"] * n)
    peer.load_state_dict(vae.state_dict())
    return peer.to(weight.dtype).eval().requires_grad_(False)


def text_of_transformers(text: TextEncoder) -> nn.Module:
    """With the same weights."""
    from transformers import CLIPTextConfig, CLIPTextModel
    config, weight = text.config, next(text.parameters())
    with torch.device(weight.device):
        peer = CLIPTextModel(CLIPTextConfig(
            vocab_size=config.vocab_size, hidden_size=config.width,
            intermediate_size=config.mlp_width, num_hidden_layers=config.layers,
            num_attention_heads=config.heads, max_position_embeddings=config.context_length,
            hidden_act="quick_gelu" if config.quick_gelu else "gelu"))
    peer.load_state_dict(text.state_dict())
    return peer.to(weight.dtype).eval().requires_grad_(False)


def loop_of_diffusers(sd: StableDiffusion, crops: list[Cropped], context: Tensor, noise: Tensor,
                      steps: int, scale: float) -> Callable[[], Tensor]:
    """Blended DDIM of the crops as one would write it with diffusers' parts, in sd's dtype."""
    from diffusers import DDIMScheduler
    unet, vae = unet_of_diffusers(sd.unet), vae_of_diffusers(sd.vae)
    factor = sd.vae.config.scaling_factor
    scheduler = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear",
                              clip_sample=False, steps_offset=1)
    scheduler.set_timesteps(steps)
    noise, context = noise.to(sd.dtype), context.to(sd.dtype)
    empty = sd.context("").expand(len(crops), -1, -1).to(sd.dtype)
    image = torch.stack([crop.image for crop in crops]).to(sd.device, sd.dtype)
    inside = torch.stack([crop.cells for crop in crops])[:, None].to(sd.device)

    @torch.no_grad()
    def paint() -> Tensor:
        """The crops, (b, 3, size, size) in [-1, 1], on the CPU."""
        y_0 = vae.encode(image).latent_dist.mean * factor
        times = scheduler.timesteps
        x = torch.where(inside, noise, scheduler.add_noise(y_0, noise, times[:1]))
        for t, t_prev in zip(times, [*times[1:], None]):
            if scale == 1:
                out = unet(x, t, context).sample
            else:
                both = unet(torch.cat([x, x]), t, torch.cat([empty, context])).sample
                out_u, out_c = both.chunk(2)
                out = out_u + scale * (out_c - out_u)
            x = scheduler.step(out, t, x).prev_sample
            known = y_0 if t_prev is None else scheduler.add_noise(y_0, noise, t_prev)
            x = torch.where(inside, x, known)
        return vae.decode(x / factor).sample.cpu()
    return paint


def plain_steps(sd: StableDiffusion, image: Tensor, cells: Tensor, n: int) -> Callable[[], None]:
    """The plain loop: VAE and text encoder in it, gradients for everything."""
    for part in (sd.unet, sd.vae.encoder, sd.text_encoder):
        part.requires_grad_(True)
    ids = sd.tokenizer(["a photo of a screw"] * len(image)).to(sd.device)

    def steps() -> None:
        """n steps, without the optimizer's."""
        for _ in range(n):
            z_0, _ = sd.vae.encode(image)
            eps = torch.randn_like(z_0)
            t = torch.randint(1000, (len(image),), device=sd.device)
            context = sd.text_encoder.encode(sd.text_encoder.embed(ids))
            out = sd.unet(sd.schedule.q_sample(z_0, t, eps), t, context)
            masked_loss(out, eps, cells.expand(len(image), -1, -1)).backward()
            for part in (sd.unet, sd.vae, sd.text_encoder):
                part.zero_grad()
    return steps
