"""The learned words: e_a of each defect, e_s = E(mask) of one encoder for all, e_m of its masks.

All of them live in the word-embedding space of the text encoder, so their scale is that of its
table: the root mean square of a word's entries is 0.01 to 0.03, and a learning rate that ignores it
(the released 0.02) throws the vectors out of it within a few steps.
"""

from typing import Any
from zlib import crc32

import numpy as np
import torch
from torch import Tensor, nn

from anomaly.dataset import Defect
from anomaly.spatial_encoder import SpatialEncoder
from ldm.model import StableDiffusion

# k, n and k' of the paper.
# departs from the released code: its configuration has 4, 4 and 16.
E_A_VECTORS, E_S_VECTORS, E_M_VECTORS = 8, 4, 4
INITIAL_NOISE = 0.3                                 # in rms of the word table
# Adam's rates; a vector's is in rms of the word table, so that one number serves every checkpoint.
# departs from the released code: 0.02 for vectors and encoder alike (5e-3 times its batch of 4).
VECTOR_RATE = 0.1
ENCODER_RATE = 1e-3


def seed_of(*key: int) -> int:
    """A 32-bit seed, all that torch uses of one, from several numbers of any size."""
    return int(np.random.SeedSequence(key).generate_state(1)[0])


def word_rms(sd: StableDiffusion) -> float:
    """Root mean square of the entries of the word table."""
    return float(sd.text_encoder.word_table.float().square().mean().sqrt())


def initial_vectors(sd: StableDiffusion, word: str, count: int,
                    generator: torch.Generator) -> Tensor:
    """(count, d): the word's vector if it is one token, else the mean of all words, plus noise.

    departs from the released code: it starts all vectors at one and the same point, where they can
    only move together, and refuses a word of more than one token.
    """
    table = sd.text_encoder.word_table.float()
    tokens = sd.tokenizer.tokens(word.replace("_", " ").replace("-", " "))
    centre = table[tokens[0]] if len(tokens) == 1 else table.mean(dim=0)
    noise = torch.randn((count, table.shape[1]), generator=generator).to(table.device)
    return centre + INITIAL_NOISE * word_rms(sd) * noise


def _parameters(sd: StableDiffusion, defects: list[Defect], count: int, seed: int,
                first: str | None = None) -> nn.ParameterDict:
    """Vectors of each defect that start at its word, the first half of them at a first word."""
    vectors = nn.ParameterDict()
    for defect in defects:
        generator = torch.Generator().manual_seed(seed_of(seed, crc32(defect.key.encode()), count))
        start = initial_vectors(sd, defect.name, count, generator)
        if first is not None:
            start[:count // 2] = initial_vectors(sd, first, count // 2, generator)
        vectors[defect.stem] = nn.Parameter(start)
    return vectors


class AnomalyEmbedding(nn.Module):
    """{e_a, e_s}: everything that masked textual inversion trains; without spatial e_a alone."""

    def __init__(self, sd: StableDiffusion, defects: list[Defect], seed: int, spatial: bool = True):
        super().__init__()
        self.spatial = spatial
        self.e_a = _parameters(sd, defects, E_A_VECTORS, seed)
        width = sd.text_encoder.config.width
        with torch.random.fork_rng(devices=[]):     # initialisers only know the global generator
            torch.manual_seed(seed_of(seed))
            self.spatial_encoder = SpatialEncoder(width, E_S_VECTORS, word_rms(sd))
        self.to(sd.device)

    def forward(self, stem: str, masks: Tensor) -> dict[str, Tensor]:
        """masks (b, size, size) -> {"e_a": (b, 8, d), "e_s": (b, 4, d)}, in the prompt's order."""
        e_a = self.e_a[stem].expand(len(masks), -1, -1)
        if not self.spatial:
            return {"e_a": e_a}
        e_s = self.spatial_encoder(masks)
        return {"e_a": e_a, "e_s": e_s}

    def rates(self, sd: StableDiffusion) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer; of a frozen encoder nothing is in them."""
        return [{"params": list(self.e_a.values()), "lr": VECTOR_RATE * word_rms(sd)},
                {"params": [p for p in self.spatial_encoder.parameters() if p.requires_grad],
                 "lr": ENCODER_RATE}]


class MaskEmbedding(nn.Module):
    """{e_m}: four vectors a defect, learned from pictures of its masks."""

    def __init__(self, sd: StableDiffusion, defects: list[Defect], seed: int):
        super().__init__()
        self.e_m = _parameters(sd, defects, E_M_VECTORS, seed, "mask")  # "mask mask crack crack"
        self.to(sd.device)

    def forward(self, stem: str, masks: Tensor) -> dict[str, Tensor]:
        """masks (b, ...), of which only the batch counts -> {"e_m": (b, 4, d)}."""
        return {"e_m": self.e_m[stem].expand(len(masks), -1, -1)}

    def rates(self, sd: StableDiffusion) -> list[dict[str, Any]]:
        """Parameter groups for the optimizer."""
        return [{"params": list(self.e_m.values()), "lr": VECTOR_RATE * word_rms(sd)}]


Learner = AnomalyEmbedding | MaskEmbedding      # what textual inversion trains
VECTORS = "e_a.", "e_m."                        # what its vectors are called, before the stem


def defects_in(state: dict[str, Tensor]) -> int:
    """Of how many defects, at least 1, a state has the vectors, by the names of its tensors."""
    return max(1, sum(name.startswith(VECTORS) and "|" not in name for name in state))
