"""The CLIP text encoder: token ids (b, L) -> context (b, L, d), in two steps.

`embed` looks the words up in the table; `encode` runs the transformer. Textual inversion puts
learned vectors in between: they are words that the table does not have.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.attention import attention
from ldm.config import TextConfig

NORM_EPS = 1e-5     # "layer_norm_eps" of both published encoders


class CausalSelfAttention(nn.Module):
    """A token sees itself and the tokens before it. (b, j, d) -> (b, j, d)."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(width, width)
        self.k_proj = nn.Linear(width, width)
        self.v_proj = nn.Linear(width, width)
        self.out_proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(proj(x), "b j (h d) -> b h j d", h=self.heads)
                   for proj in (self.q_proj, self.k_proj, self.v_proj))
        # No padding mask: SD was trained with the padding attended to, under the causal mask only.
        out = attention(q, k, v, causal=True)
        return self.out_proj(rearrange(out, "b h j d -> b j (h d)"))


class MLP(nn.Module):
    """(b, j, d) -> (b, j, d)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.width, config.mlp_width)
        self.fc2 = nn.Linear(config.mlp_width, config.width)
        self.quick_gelu = config.quick_gelu

    def forward(self, x: Tensor) -> Tensor:
        h = self.fc1(x)
        # "hidden_act": OpenAI's quick_gelu, or the exact (erf) GELU of OpenCLIP.
        return self.fc2(h * torch.sigmoid(1.702 * h) if self.quick_gelu else F.gelu(h))


class EncoderLayer(nn.Module):
    """Attention and MLP, each behind a LayerNorm and around a residual. (b, j, d) -> (b, j, d)."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.self_attn = CausalSelfAttention(config.width, config.heads)
        self.layer_norm1 = nn.LayerNorm(config.width, eps=NORM_EPS)
        self.mlp = MLP(config)
        self.layer_norm2 = nn.LayerNorm(config.width, eps=NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class TextEncoder(nn.Module):
    """CLIP's text transformer. The ModuleDicts below carry the published key segments."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.config = config
        self.embeddings = nn.ModuleDict({
            "token_embedding": nn.Embedding(config.vocab_size, config.width),
            "position_embedding": nn.Embedding(config.context_length, config.width)})
        self.encoder = nn.ModuleDict({
            "layers": nn.ModuleList(EncoderLayer(config) for _ in range(config.layers))})
        self.final_layer_norm = nn.LayerNorm(config.width, eps=NORM_EPS)

    @property
    def word_table(self) -> Tensor:
        """(vocab_size, d): one row a token; learned vectors live in the same space."""
        return self.get_parameter("embeddings.token_embedding.weight")

    def embed(self, token_ids: Tensor) -> Tensor:
        """token_ids (b, L) int64 -> words (b, L, d), without positions."""
        return self.embeddings["token_embedding"](token_ids)

    def encode(self, words: Tensor) -> Tensor:
        """words (b, L, d) -> context (b, L, d): all hidden states after the final LayerNorm.

        Computed in the dtype of the weights, returned in that of words.
        """
        positions = self.get_parameter("embeddings.position_embedding.weight")[:words.shape[1]]
        x = words.to(positions.dtype) + positions
        for layer in self.encoder["layers"].children():
            x = layer(x)
        return self.final_layer_norm(x).to(words.dtype)
