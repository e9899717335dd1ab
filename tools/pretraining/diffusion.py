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

UNET = UNetConfig(channels=(64, 96, 192), cross_attention=(False, True, True), layers_per_block=1,
                  heads=(4, 4, 4), context_dim=128, norm_groups=16, sample_size=32)
# With Stable Diffusion's betas, up to 0.012, pictures of 32 x 32 latents show through all noise: at
# t = 951, where 20 steps start, the mean of a channel has 5.6 times the noise's variance. The model
# then reads colour, size and place from x_t and not from the words, and sampling, which starts from
# noise alone, shows it a picture of no colour and vague shapes (Lin et al., "Common Diffusion Noise
# Schedules and Sample Steps are Flawed"). Up to 0.025 it is 0.08.
SCHEDULE = ScheduleConfig(beta_end=0.025, v_prediction=True)
RATE, AVERAGE, BATCH = 6e-4, 0.9995, 8
TEXT_GUIDANCE, STEPS = 4.0, 20      # where whole pictures are made from captions
# So many of a batch are pictures of shapes alone. A scratch's has STROKE_TURNS turns: straight
# lines are what a small network is slowest to learn.
SHAPES, STROKE_TURNS = 2, 5
# Share of the photographs whose latents are the clean photograph's outside the defect's cells, as
# blended sampling leaves them.
BLENDED = 0.5
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
    """latents, clean and shapes (n, 4, h, w) float16, as in Picture; ids, shape_ids (n, L).

    cells (n, h, w): share of each that is defect; turns (k,): the numbers of the pictures whose
    shapes have a caption, as often as each is to be drawn.
    """

    latents: Tensor
    clean: Tensor
    shapes: Tensor
    cells: Tensor
    ids: Tensor
    shape_ids: Tensor
    turns: Tensor


def turns(shape_captions: list[str]) -> Tensor:
    """Each shape's number once, a scratch's STROKE_TURNS times, a normal's never."""
    counts = [STROKE_TURNS if caption.endswith("scratch") else 1 if caption else 0
              for caption in shape_captions]
    return torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))


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


def batch(data: Encoded, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x_0 (BATCH, 4, h, w), cells (BATCH, 1, h, w), ids (BATCH, L) and t (BATCH,) of a step.

    Photographs first, shapes behind them. The timesteps are stratified: one from each of BATCH
    equal parts. Those of shapes lean to the noisy end, where a line's course is decided.
    """
    photographs = BATCH - SHAPES
    i = torch.randint(len(data.latents), (photographs,), generator=rng)
    j = data.turns[torch.randint(len(data.turns), (SHAPES,), generator=rng)]
    cells = data.cells[i].float()[:, None]
    blended = torch.rand((photographs, 1, 1, 1), generator=rng) < BLENDED
    x_0 = torch.where(blended & (cells == 0), data.clean[i], data.latents[i])
    parts = (torch.randperm(BATCH, generator=rng) + torch.rand(BATCH, generator=rng)) / BATCH
    parts[photographs:] = parts[photographs:].sqrt()
    return (torch.cat([x_0, data.shapes[j]]).float(),
            torch.cat([cells, torch.zeros_like(cells[:1]).expand(SHAPES, -1, -1, -1)]),
            torch.cat([data.ids[i], data.shape_ids[j]]),
            (parts * SCHEDULE.train_timesteps).long())


def train_step(unet: UNet, text_encoder: TextEncoder, stage: Stage, data: Encoded,
               seed: int, steps: int, device: str) -> float:
    """One step of the optimizer -> its loss, the weighted mean square of v - v_hat."""
    schedule = Schedule(SCHEDULE)
    rng = torch.Generator().manual_seed(seed_of(seed, 2, stage.step))
    x_0, cells, ids, t = batch(data, rng)
    eps = torch.randn(x_0.shape, generator=rng)
    x_t, v = schedule.q_sample(x_0, t, eps), schedule.target(x_0, t, eps)
    weight = weights(cells, schedule.alphas_cumprod[t])
    x_t, v, t, weight, ids = (x.to(device) for x in (x_t, v, t, weight, ids))
    with torch.no_grad():
        context = text_encoder.encode(text_encoder.embed(ids))
    with half_precision(device):
        out = unet(x_t, t, context)
    loss = (weight * F.mse_loss(out.float(), v, reduction="none")).mean()
    stage.update(loss, steps)
    return float(loss.detach())
