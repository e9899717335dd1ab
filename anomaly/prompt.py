"""Learned vectors in a prompt: "a photo of *" with e at the place of the star.

departs from the paper: there e replaces the whole text condition. Inside a prompt the vectors pass
through the frozen text encoder, which gives them positions and the ends of a sentence, as textual
inversion does. They take 12 of its 77 positions, 8 for e_a and 4 for e_s; a mask's e_m takes 4.
departs from the released code: it draws one of 78 templates a step; one prompt is enough.
"""

import torch
from torch import Tensor

from ldm.model import StableDiffusion

PROMPT = "a photo of *"


def learned_context(sd: StableDiffusion, vectors: Tensor) -> Tensor:
    """vectors (b, k, d) in word-embedding space -> context (b, L, d).

    Raises ValueError if the k vectors and the end token do not fit the text encoder's context.
    """
    ids = sd.tokenizer([PROMPT]).to(sd.device)
    star = sd.tokenizer.tokens("*")
    length, count = ids.shape[1], vectors.shape[1]
    place = ids[0].tolist().index(star[0])
    if place + count + 1 > length:
        raise ValueError(f"{count} learned vectors do not fit a context of {length} tokens after "
                         f"{place} of {PROMPT!r}; use a checkpoint with a longer context")
    words = sd.text_encoder.embed(ids).to(vectors.dtype).expand(len(vectors), -1, -1)
    words = torch.cat([words[:, :place], vectors, words[:, place + 1:]], dim=1)
    return sd.text_encoder.encode(words[:, :length])
