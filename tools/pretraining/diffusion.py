"""Stage 2: the U-Net, on the encoded pictures and their captions.

The text encoder keeps its initial weights, as Stable Diffusion's is not trained with its U-Net
either. Trained together, it soon gave each sentence one of a few contexts and forgot what mattered
least so far: "top left" and "bottom right" were the same to three digits, and no training of the
U-Net could bring the place back.

v prediction: at the noisy end of the schedule, where a picture's colours and shapes are decided, an
error of eps grows 15-fold on its way to x_0, one of v hardly: a small model learns them early.
"""

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from anomaly.embedding import seed_of
from ldm.config import ScheduleConfig, TextConfig, UNetConfig
from ldm.schedule import Schedule
from ldm.text_encoder import TextEncoder
from ldm.unet import UNet
from pretraining.state import Stage, half_precision

UNET = UNetConfig(channels=(48, 96, 192), cross_attention=(False, True, True), layers_per_block=1,
                  heads=(4, 4, 4), context_dim=128, norm_groups=16, sample_size=32)
# With Stable Diffusion's betas, up to 0.012, pictures of 32 x 32 latents show through all noise: at
# t = 951, where 20 steps start, the mean of a channel has 5.6 times the noise's variance. The model
# then reads colour, size and place from x_t and not from the words, and sampling, which starts from
# noise alone, shows it a picture of no colour and vague shapes (Lin et al., "Common Diffusion Noise
# Schedules and Sample Steps are Flawed"). Up to 0.025 it is 0.08.
SCHEDULE = ScheduleConfig(beta_end=0.025, v_prediction=True)
RATE, AVERAGE, BATCH = 6e-4, 0.9995, 8
TEXT_GUIDANCE, STEPS = 4.0, 20      # where whole pictures are made from captions
# Shapes are learned from pictures of masks alone. The blobs of five kinds teach one another; a
# scratch, the only straight stroke, is one in seven of them.
MASK_TURNS, STROKE_TURNS = 2, 12
# Extra weight of a defect's cells: together they count as this share of a picture, each up to MOST.
DEFECT_SHARE, MOST = 0.35, 6.0


def text_config(vocab_size: int) -> TextConfig:
    """Two layers over the captions' own vocabulary."""
    return TextConfig(vocab_size=vocab_size, width=UNET.context_dim, layers=2, heads=4,
                      mlp_width=4 * UNET.context_dim)


@torch.no_grad()
def initialise_text(text_encoder: TextEncoder) -> None:
    """Random words, and a first layer that gives every token the mean of the words up to it.

    So an end token, and 65 of 77 tokens are, is what the sentence says, and a word's own token is
    that word. The second layer adds nothing.
    """
    for name, parameter in text_encoder.named_parameters():
        if ".out_proj." in name or ".fc2." in name:
            parameter.zero_()
        elif "_embedding." in name:
            nn.init.normal_(parameter, std=0.1 if "token" in name else 0.03)
    attention = text_encoder.encoder.layers[0].self_attn
    for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
        nn.init.zeros_(projection.weight)
        nn.init.zeros_(projection.bias)
    for projection in (attention.k_proj, attention.v_proj, attention.out_proj):
        nn.init.eye_(projection.weight)
    # Tokens look away from end tokens, at all others alike: these are made orthogonal in each head.
    config = text_encoder.config
    table = text_encoder.word_table.view(config.vocab_size, config.heads, -1)
    end = F.normalize(table[-1], dim=-1)
    table[:-1] -= (table[:-1] * end).sum(dim=-1, keepdim=True) * end
    attention.q_proj.bias.copy_(-F.layer_norm(table[-1].flatten(), table[-1].flatten().shape))


@torch.no_grad()
def initialise(unet: UNet) -> None:
    """Every block starts as the identity (latent-diffusion's zero_module)."""
    for name, parameter in unet.named_parameters():
        if any(part in name for part in (".conv2.", ".proj_out.", "conv_out.")):
            parameter.zero_()


@dataclass(frozen=True)
class Encoded:
    """latents (n, 4, h, w) float16, cells (n, h, w): share of each that is defect, ids (n, L).

    turns (k,): the numbers of the pictures, as often as each is to be drawn.
    """

    latents: Tensor
    cells: Tensor
    ids: Tensor
    turns: Tensor


def turns(captions: list[str]) -> Tensor:
    """Each picture once, captioned masks MASK_TURNS times, a scratch's mask STROKE_TURNS times."""
    counts = [1 if "mask" not in words else STROKE_TURNS if "scratch" in words else MASK_TURNS
              for words in map(str.split, captions)]
    return torch.arange(len(captions)).repeat_interleave(torch.tensor(counts))


def shares(masks: np.ndarray, cells: int) -> Tensor:
    """(n, p, p) bool -> (n, cells, cells) float16: share of a latent cell that is masked."""
    n, pixels = masks.shape[:2]
    parts = masks.reshape(n, cells, pixels // cells, cells, pixels // cells)
    return torch.from_numpy(parts.mean(axis=(2, 4), dtype=np.float32)).half()


def weights(cells: Tensor, signal: Tensor) -> Tensor:
    """The share of each cell that is defect -> the weight of each in the loss, both (b, 1, h, w).

    signal (b,) is alphas_cumprod at the picture's t. Where noise hides the picture the model
    answers with a mean over all that it may be, and a weight on the defect's cells would make it a
    mean over more and larger defects.
    """
    area = cells.mean(dim=(1, 2, 3), keepdim=True)
    gain = (DEFECT_SHARE / area.clamp_min(1e-6)).clamp_max(MOST)
    return 1 + signal[:, None, None, None] * cells * gain


def train_step(unet: UNet, text_encoder: TextEncoder, stage: Stage, data: Encoded,
               seed: int, steps: int, device: str) -> float:
    """One step of the optimizer -> its loss, the weighted mean square of v - v_hat."""
    schedule = Schedule(SCHEDULE)
    rng = torch.Generator().manual_seed(seed_of(seed, 2, stage.step))
    i = data.turns[torch.randint(len(data.turns), (BATCH,), generator=rng)]
    x_0 = data.latents[i].float()
    # Stratified: one timestep from each of BATCH equal parts.
    parts = (torch.arange(BATCH) + torch.rand(BATCH, generator=rng)) / BATCH
    t = (parts * SCHEDULE.train_timesteps).long()
    eps = torch.randn(x_0.shape, generator=rng)
    x_t, v = schedule.q_sample(x_0, t, eps), schedule.target(x_0, t, eps)
    weight = weights(data.cells[i].float()[:, None], schedule.alphas_cumprod[t])
    x_t, v, t, weight, ids = (x.to(device) for x in (x_t, v, t, weight, data.ids[i]))
    with torch.no_grad():
        context = text_encoder.encode(text_encoder.embed(ids))
    with half_precision(device):
        out = unet(x_t, t, context)
    loss = (weight * F.mse_loss(out.float(), v, reduction="none")).mean()
    stage.update(loss, steps)
    return float(loss.detach())
