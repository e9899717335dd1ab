"""Attention of the U-Net, with AnomalyDiffusion's attention re-weighting in the cross-attention.

A spatial transformer reads a feature map (b, c, h, w) as i = h*w query positions. Self-attention
lets positions exchange what they hold; cross-attention lets each position read the context (b, j,
d), the hidden states of the text encoder. AnomalyDiffusion (section 3.3) multiplies the
cross-attention probabilities by a weight per query position:

    m_c = Softmax(Q K^T / sqrt(d)),   m'_c = m_c * w_m,   RW-Attn(Q, K, V) = m'_c V
"""

import torch.nn.functional as F
from einops import einsum, rearrange
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

# latent-diffusion's Normalize() in its attention.py; the resnets round a transformer have 1e-5.
NORM_EPS = 1e-6
# All of torch's kernels but cuDNN's, whose backward returns NaN in half precision: torch 2.11 on an
# H200, with the embedded checkpoint's 24 and 48 channels a head, after some tens of steps of finite
# gradients.
KERNELS = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


def attention(q: Tensor, k: Tensor, v: Tensor, causal: bool = False) -> Tensor:
    """softmax(Q K^T / sqrt(d)) V by KERNELS. q (b, heads, i, d), k, v (b, heads, j, d) -> as q."""
    with sdpa_kernel(KERNELS):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


class SelfAttention(nn.Module):
    """softmax(Q K^T / sqrt(d)) V of a sequence with itself. x (b, i, c) -> (b, i, c)."""

    def __init__(self, width: int, heads: int, upcast: bool = False):
        super().__init__()
        self.heads = heads
        self.upcast = upcast    # Q K^T in float32, whatever the weights are in
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(width, width, bias=False)
        self.to_v = nn.Linear(width, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width))    # "to_out.0" in the published keys

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (rearrange(to(x), "b i (h d) -> b h i d", h=self.heads)
                   for to in (self.to_q, self.to_k, self.to_v))
        if self.upcast:
            q, k, v = q.float(), k.float(), v.float()
        out = attention(q, k, v).to(x.dtype)
        return self.to_out(rearrange(out, "b h i d -> b i (h d)"))


class CrossAttention(nn.Module):
    """Each position of x reads the context; written out, because w_m acts between softmax and V."""

    def __init__(self, query_dim: int, context_dim: int, heads: int, upcast: bool = False):
        super().__init__()
        self.heads = heads
        self.upcast = upcast
        self.scale = (query_dim // heads) ** -0.5
        self.to_q = nn.Linear(query_dim, query_dim, bias=False)
        self.to_k = nn.Linear(context_dim, query_dim, bias=False)
        self.to_v = nn.Linear(context_dim, query_dim, bias=False)
        self.to_out = nn.Sequential(nn.Linear(query_dim, query_dim))

    def forward(self, x: Tensor, context: Tensor, weight_map: Tensor | None = None) -> Tensor:
        """x (b, i, c), context (b, j, d) -> (b, i, c). weight_map (b, i): w_m, neutral where 1."""
        # Scaled before Q K^T, not after: the product must stay in the range of float16.
        q = rearrange(self.to_q(x), "b i (h d) -> b h i d", h=self.heads) * self.scale
        k = rearrange(self.to_k(context), "b j (h d) -> b h j d", h=self.heads)
        v = rearrange(self.to_v(context), "b j (h d) -> b h j d", h=self.heads)
        if self.upcast:
            q, k = q.float(), k.float()
        m_c = einsum(q, k, "b h i d, b h j d -> b h i j").softmax(dim=-1)
        if weight_map is not None:
            # departs from the released code: it multiplies the logits Q K^T, where a negative logit
            # times a weight above 1 is attended less; the paper weights the probabilities.
            m_c = m_c * rearrange(weight_map.to(m_c.dtype), "b i -> b 1 i 1")   # m'_c = m_c * w_m
        out = einsum(m_c.to(v.dtype), v, "b h i j, b h j d -> b h i d")         # RW-Attn = m'_c V
        return self.to_out(rearrange(out, "b h i d -> b i (h d)"))


class GEGLU(nn.Module):
    """h * gelu(gate), both halves of one projection. (b, i, c_in) -> (b, i, c_out)."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__()
        self.proj = nn.Linear(c_in, 2 * c_out)

    def forward(self, x: Tensor) -> Tensor:
        h, gate = self.proj(x).chunk(2, dim=-1)
        return h * F.gelu(gate)     # the exact (erf) GELU, latent-diffusion's GEGLU


class FeedForward(nn.Module):
    """The transformer's MLP, four times as wide inside. (b, i, c) -> (b, i, c)."""

    def __init__(self, width: int):
        super().__init__()
        inside = 4 * width
        # The published keys are net.0.proj and net.2; net.1 is the dropout of training.
        self.net = nn.Sequential(GEGLU(width, inside), nn.Identity(), nn.Linear(inside, width))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class TransformerBlock(nn.Module):
    """Self-attention, cross-attention, MLP, each behind a LayerNorm and around a residual."""

    def __init__(self, width: int, context_dim: int, heads: int, upcast: bool = False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn1 = SelfAttention(width, heads, upcast)
        self.norm2 = nn.LayerNorm(width)
        self.attn2 = CrossAttention(width, context_dim, heads, upcast)
        self.norm3 = nn.LayerNorm(width)
        self.ff = FeedForward(width)

    def forward(self, x: Tensor, context: Tensor, weight_map: Tensor | None = None) -> Tensor:
        """x (b, i, c), context (b, j, d), weight_map (b, i) or None -> (b, i, c)."""
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context, weight_map)
        return x + self.ff(self.norm3(x))


def _projection(channels: int, linear: bool) -> nn.Module:
    """The same sum either way; only the published shape differs, [c, c] or [c, c, 1, 1]."""
    return nn.Linear(channels, channels) if linear else nn.Conv2d(channels, channels, 1)


class SpatialTransformer(nn.Module):
    """A transformer block on a feature map. x (b, c, h, w) -> (b, c, h, w)."""

    def __init__(self, channels: int, context_dim: int, heads: int, norm_groups: int,
                 linear: bool = False, upcast: bool = False):
        super().__init__()
        self.linear = linear
        self.norm = nn.GroupNorm(norm_groups, channels, eps=NORM_EPS)
        self.proj_in = _projection(channels, linear)
        self.transformer_blocks = nn.ModuleList(
            [TransformerBlock(channels, context_dim, heads, upcast)])
        self.proj_out = _projection(channels, linear)

    def forward(self, x: Tensor, context: Tensor, weight_map: Tensor | None = None) -> Tensor:
        """context (b, j, d); weight_map (b, h, w) or None: w_m on this level's grid."""
        height, h = x.shape[2], self.norm(x)
        if self.linear:
            h = self.proj_in(rearrange(h, "b c h w -> b (h w) c"))
        else:
            h = rearrange(self.proj_in(h), "b c h w -> b (h w) c")
        if weight_map is not None:
            weight_map = rearrange(weight_map, "b h w -> b (h w)")
        for block in self.transformer_blocks:
            h = block(h, context, weight_map)
        if self.linear:
            return x + rearrange(self.proj_out(h), "b (h w) c -> b c h w", h=height)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=height))
