"""Sizes of Stable Diffusion's four parts: the defaults are SD 1.x, the constants at the end SD 2.x.

Every number comes from a published config.json. What can be derived from another number is a
property, never a second setting.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class UNetConfig:
    """unet/config.json. Levels are listed finest first; raises ValueError for impossible sizes."""

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    cross_attention: tuple[bool, ...] = (True, True, True, False)   # which levels have transformers
    layers_per_block: int = 2
    heads: tuple[int, ...] = (8, 8, 8, 8)   # "attention_head_dim" in the file, but it counts heads
    context_dim: int = 768                  # width of the CLIP ViT-L/14 text encoder
    latent_channels: int = 4
    norm_groups: int = 32
    sample_size: int = 64                   # side of the latents the model was trained on
    linear_projection: bool = False         # proj_in, proj_out: 1x1 convolutions, in SD 2.x Linear
    upcast_attention: bool = False          # logits in float32: those of SD 2.1 overflow float16

    def __post_init__(self) -> None:
        if not len(self.channels) == len(self.cross_attention) == len(self.heads):
            raise ValueError(
                f"U-Net: {len(self.channels)} widths, {len(self.cross_attention)} level types and "
                f"{len(self.heads)} head counts; expected one of each per level")
        for width, heads in zip(self.channels, self.heads):
            if width % heads or width % self.norm_groups:
                raise ValueError(f"U-Net: width {width} does not divide into {heads} heads "
                                 f"and {self.norm_groups} norm groups")

    @property
    def levels(self) -> int:
        """Number of resolutions; each is half the one before."""
        return len(self.channels)

    @property
    def time_dim(self) -> int:
        """Width of the time embedding after its MLP: four times the first level, as published."""
        return 4 * self.channels[0]


@dataclass(frozen=True)
class VAEConfig:
    """vae/config.json. Levels are listed finest first."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    scaling_factor: float = 0.18215   # absent from the published files; latent-diffusion's constant

    def __post_init__(self) -> None:
        bad = [c for c in self.channels if c % self.norm_groups]
        if bad:
            raise ValueError(f"VAE: widths {bad} do not divide into {self.norm_groups} norm groups")

    @property
    def factor(self) -> int:
        """Pixels a latent cell spans on each side: 8 for SD."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True)
class TextConfig:
    """text_encoder/config.json: OpenAI's CLIP ViT-L/14 (SD 1.x) or OpenCLIP's ViT-H/14 (SD 2.x)."""

    vocab_size: int = 49408
    width: int = 768
    layers: int = 12
    heads: int = 12
    mlp_width: int = 3072
    context_length: int = 77
    quick_gelu: bool = True     # OpenAI's activation; OpenCLIP has the exact GELU

    def __post_init__(self) -> None:
        if self.width % self.heads:
            raise ValueError(f"text encoder: width {self.width} does not divide "
                             f"into {self.heads} heads")

    @property
    def zero_padding(self) -> bool:
        """Prompts end in zeros, not in end tokens: open_clip's tokenizer pads so, not OpenAI's."""
        return not self.quick_gelu


@dataclass(frozen=True)
class ScheduleConfig:
    """scheduler/scheduler_config.json: the "scaled linear" noise schedule."""

    train_timesteps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    v_prediction: bool = False      # the U-Net predicts v instead of eps: SD 2.x at 768 px
    zero_snr: bool = False          # the last timestep is noise alone; v models only


# What SD 2.x changes. 23 of OpenCLIP's 24 layers: it reads the last but one ("penultimate").
SD2_UNET = UNetConfig(heads=(5, 10, 20, 20), context_dim=1024, linear_projection=True,
                      upcast_attention=True)
SD2_TEXT = TextConfig(width=1024, layers=23, heads=16, mlp_width=4096, quick_gelu=False)
