"""Attention against loops over heads in float64; the way of the weight maps through the U-Net."""

import pytest
import torch
from torch import nn

from benchmarks.random_models import make_prompt_matter, small_unet
from ldm.attention import CrossAttention, SelfAttention, SpatialTransformer
from ldm.config import UNetConfig
from ldm.unet import UNet

CONFIG = UNetConfig(channels=(8, 16, 24, 24), cross_attention=(True, False, True, False),
                    layers_per_block=2, heads=(2, 4, 3, 6), context_dim=10, norm_groups=4)
H, W = 16, 24


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def loop_over_heads(attn, x, context, weight_map=None):
    """softmax(Q K^T / sqrt(d)), times w_m, times V: row by row, head by head, query by query."""
    rows = []
    for n in range(len(x)):
        q, k, v = attn.to_q(x[n]), attn.to_k(context[n]), attn.to_v(context[n])
        d = q.shape[1] // attn.heads
        row = torch.zeros_like(q)
        for start in range(0, q.shape[1], d):       # head n owns the columns n d .. n d + d - 1
            columns = slice(start, start + d)
            for i in range(len(q)):
                p = torch.exp(k[:, columns] @ q[i, columns] / d ** 0.5)
                p = p / p.sum()
                if weight_map is not None:
                    p = p * weight_map[n, i]
                row[i, columns] = p @ v[:, columns]
        rows.append(attn.to_out[0](row))
    return torch.stack(rows)


def cross_attention():
    attn = CrossAttention(query_dim=12, context_dim=5, heads=3).double()
    return attn, 3 * torch.randn(2, 6, 12).double(), 3 * torch.randn(2, 7, 5).double()


def test_cross_attention_equals_a_loop_over_heads():
    attn, x, context = cross_attention()
    torch.testing.assert_close(attn(x, context), loop_over_heads(attn, x, context))


def test_self_attention_equals_a_loop_over_heads():
    attn, x = SelfAttention(width=12, heads=4).double(), 3 * torch.randn(2, 6, 12).double()
    torch.testing.assert_close(attn(x), loop_over_heads(attn, x, x))


def test_the_weight_map_multiplies_the_probabilities_after_the_softmax():
    attn, x, context = cross_attention()
    weight_map = torch.tensor([[0.0, 0.25, 1.0, 1.0, 2.0, 5.0],
                               [3.0, 1.0, 0.5, 1.0, 0.0, 1.0]]).double()
    found = attn(x, context, weight_map)
    torch.testing.assert_close(found, loop_over_heads(attn, x, context, weight_map))


def test_a_weight_map_of_ones_changes_nothing():
    attn, x, context = cross_attention()
    assert torch.equal(attn(x, context, torch.ones(2, 6).double()), attn(x, context))


def test_before_the_output_projection_the_weight_scales_what_was_read():
    attn, x, context = cross_attention()
    attn.to_out = nn.Identity()
    weight_map = 3 * torch.rand(2, 6).double()
    found = attn(x, context, weight_map)
    torch.testing.assert_close(found, weight_map[:, :, None] * attn(x, context))


def test_a_position_of_weight_zero_receives_the_bias_alone():
    attn, x, context = cross_attention()
    found = attn(x, context, torch.zeros(2, 6).double())
    torch.testing.assert_close(found, attn.to_out[0].bias.expand(2, 6, 12))


def test_a_weight_of_one_position_reaches_that_position_alone():
    transformer = SpatialTransformer(channels=8, context_dim=5, heads=2, norm_groups=4).double()
    x, context = torch.randn(2, 8, 3, 5).double(), torch.randn(2, 7, 5).double()
    weight_map = torch.ones(2, 3, 5).double()
    weight_map[1, 2, 1] = 4.0
    changed = (transformer(x, context, weight_map) - transformer(x, context)).abs().amax(dim=1)
    assert torch.nonzero(changed > 1e-9).tolist() == [[1, 2, 1]]


def random_maps(config, b):
    """One map of random weights a level, finest first."""
    return [1 + torch.rand(b, H >> level, W >> level) for level in range(config.levels)]


@pytest.mark.parametrize("b", [1, 2])
@torch.no_grad()
def test_each_cross_attention_gets_the_map_of_its_own_level(b):
    unet = UNet(CONFIG)
    received = {}
    for name, module in unet.named_modules():
        if isinstance(module, CrossAttention):
            module.register_forward_pre_hook(
                lambda _, args, name=name: received.update({name: args[2]}))
    maps = random_maps(CONFIG, b)
    unet(torch.randn(b, 4, H, W), torch.full((b,), 501), torch.randn(b, 7, 10), maps)
    suffix = "transformer_blocks.0.attn2"
    expected = {f"mid_block.attentions.0.{suffix}": 3}
    for level in (0, 2):                            # the levels that have transformers
        expected |= {f"down_blocks.{level}.attentions.{j}.{suffix}": level for j in range(2)}
        expected |= {f"up_blocks.{3 - level}.attentions.{j}.{suffix}": level for j in range(3)}
    assert received.keys() == expected.keys()
    for name, level in expected.items():
        assert torch.equal(received[name], maps[level].reshape(b, -1)), name


@torch.no_grad()
def test_maps_of_ones_leave_the_noise_prediction_as_it_is():
    unet = UNet(CONFIG)
    x_t, t, context = torch.randn(2, 4, H, W), torch.tensor([981, 21]), torch.randn(2, 7, 10)
    ones = [torch.ones_like(w_l) for w_l in random_maps(CONFIG, 2)]
    found, expected = unet(x_t, t, context, ones), unet(x_t, t, context)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("level", range(4))
def test_a_map_changes_the_noise_prediction_on_every_level_that_reads_the_context(level):
    unet = UNet(CONFIG)
    x_t, t, context = torch.randn(1, 4, H, W), torch.tensor([501]), torch.randn(1, 7, 10)
    maps = [torch.ones_like(w_l) for w_l in random_maps(CONFIG, 1)]
    before = unet(x_t, t, context, maps)
    maps[level] = maps[level] + 4.0
    change = (unet(x_t, t, context, maps) - before).abs().max()
    reads_context = level != 1                      # level 3 only in the middle block
    assert (change > 1e-5) if reads_context else (change == 0)


@torch.no_grad()
def test_the_noise_prediction_under_weight_maps_equals_diffusers_with_scaled_readings(sd):
    """m'_c V is w_m times m_c V: a hook scales what diffusers' attention hands to its to_out."""
    reference, maps = make_prompt_matter(small_unet()), random_maps(sd.unet.config, 2)
    for name, module in reference.named_modules():
        if name.endswith("attn2.to_out.0"):
            kind, level = name.split(".")[:2]
            level = {"down_blocks": level, "up_blocks": 2 - int(level) if level.isdigit() else 0,
                     "mid_block": 2}[kind]
            w_l = maps[int(level)].reshape(2, -1, 1)
            module.register_forward_pre_hook(lambda _, args, w_l=w_l: (args[0] * w_l,))
    x_t, t, context = torch.randn(2, 4, H, W), torch.tensor([981, 21]), torch.randn(2, 7, 32)
    expected = reference(x_t, t, context).sample
    found = sd.unet(x_t, t, context, maps)
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
