"""The frozen parts in float16 and bfloat16: outputs and gradients as in float32, no overflow.

On the CPU, where the kernels round as on a GPU but are slow; the models are small.
"""

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.functional import cosine_similarity

from anomaly import train
from anomaly.dataset import Defect
from anomaly.embedding import AnomalyEmbedding
from anomaly.train import Views, backward, gradients, masked_loss, predict, textual_inversion
from benchmarks import parity
from benchmarks.random_models import SMALL, small_vae
from ldm.attention import CrossAttention, FeedForward, SelfAttention
from ldm.blocks import Downsample, ResnetBlock, Upsample
from ldm.config import SD2_TEXT, TextConfig, VAEConfig
from ldm.text_encoder import EncoderLayer
from ldm.vae import VAE, VAEAttention
from weights import load

HALF = [torch.float16, torch.bfloat16]
NAMES = [family.name for family in SMALL]
DEFECT = Defect("screw", "crack", ())


@pytest.fixture(scope="module", autouse=True)
def fewer_cells():
    """A sixth of the benchmark's pictures: float16 is slow on a CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "GRID", (8, 16))
        yield


@pytest.fixture(scope="module")
def folders(written):
    return {name: written[name].parent / name for name in NAMES}


@pytest.fixture(scope="module")
def outputs(folders):
    """outputs(name, dtype): of every part, on the inputs of bench.py parity; each computed once."""
    @functools.cache
    def of(name, dtype):
        sd = load(folders[name], dtype=dtype)
        return parity.our_outputs(sd, sd.tokenizer(parity.PROMPTS))
    return of


def distance(found, expected):
    """Length of the difference over the length of what was expected."""
    return float((found.float() - expected).norm() / expected.norm())


def generator():
    return torch.Generator().manual_seed(3)


MODULES = {
    "cross-attention": (lambda: CrossAttention(32, 24, 4), [(2, 48, 32), (2, 7, 24), (2, 48)]),
    "cross-attention, float32 logits": (
        lambda: CrossAttention(32, 24, 4, upcast=True), [(2, 48, 32), (2, 7, 24), (2, 48)]),
    "self-attention": (lambda: SelfAttention(32, 4), [(2, 48, 32)]),
    "self-attention, float32 logits": (lambda: SelfAttention(32, 4, upcast=True), [(2, 48, 32)]),
    "feed-forward": (lambda: FeedForward(32), [(2, 48, 32)]),
    "resnet": (lambda: ResnetBlock(32, 64, 8, 1e-5, time_dim=16), [(2, 32, 8, 6), (2, 16)]),
    "downsample": (lambda: Downsample(32, symmetric=False), [(2, 32, 8, 6)]),
    "upsample": (lambda: Upsample(32), [(2, 32, 8, 6)]),
    "attention of the VAE": (lambda: VAEAttention(32, 8), [(2, 32, 8, 6)]),
    "layer of CLIP": (
        lambda: EncoderLayer(TextConfig(width=32, heads=4, mlp_width=64)), [(2, 7, 32)]),
    "layer of OpenCLIP": (
        lambda: EncoderLayer(TextConfig(width=32, heads=4, mlp_width=64, quick_gelu=False)),
        [(2, 7, 32)]),
}


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("kind", MODULES)
@torch.no_grad()
def test_every_module_is_within_a_hundredth_of_float32(kind, dtype):
    torch.manual_seed(0)
    make, shapes = MODULES[kind]
    module, inputs = make(), [torch.randn(shape, generator=generator()) for shape in shapes]
    expected = module(*inputs)
    found = module.to(dtype)(*(x.to(dtype) for x in inputs))
    assert found.dtype == dtype
    assert parity.largest(found.float(), expected) <= 1e-2


@pytest.mark.parametrize("name", NAMES)
def test_every_part_in_float16_is_within_a_hundredth_of_float32(outputs, name):
    expected = outputs(name, torch.float32)
    for part, found in outputs(name, torch.float16).items():
        assert distance(found, expected[part]) <= 1e-2, part


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", NAMES)
def test_ten_steps_of_sampling_end_within_a_hundredth_of_float32(outputs, name, dtype):
    column = f"DDIM {parity.STEPS}"
    found, expected = outputs(name, dtype)[column], outputs(name, torch.float32)[column]
    assert parity.largest(found.float(), expected) <= 1e-2


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_bfloat16_is_no_further_from_float32_than_diffusers_own(folders, outputs, name):
    """bfloat16 rounds to 1 in 256 a layer: forty layers of random weights are 1 to 6 % apart."""
    dtype = torch.bfloat16
    expected, found = outputs(name, torch.float32), outputs(name, dtype)
    unet, vae, text = (model.to(dtype).eval() for model in parity.read_folder(folders[name], None))
    ids, t = load(folders[name]).tokenizer(parity.PROMPTS), torch.tensor([981, 21])
    reference = {"text": text(ids).last_hidden_state}
    for kind, z in parity.pictures(4, *parity.GRID).items():
        reference[f"U-Net {kind}"] = unet(z.to(dtype), t, expected["text"].to(dtype)).sample
        reference[f"decode {kind}"] = vae.decode((z / 0.18215).to(dtype)).sample
    for part, theirs in reference.items():
        ours = distance(found[part], expected[part])
        assert ours <= 1.5 * distance(theirs, expected[part]), part


@pytest.mark.parametrize("dtype", HALF)
def test_weights_are_half_and_what_goes_in_comes_out_in_its_own_precision(folders, dtype):
    sd = load(folders["SD 1.5"], dtype=dtype)
    for part in (sd.unet, sd.vae, sd.text_encoder):
        assert {parameter.dtype for parameter in part.parameters()} == {dtype}
    assert sd.schedule.alphas_cumprod.dtype == torch.float32
    for given in (torch.float32, dtype):
        x, context = torch.zeros(1, 4, 8, 8, dtype=given), torch.zeros(1, 77, 16, dtype=given)
        assert sd.unet(x, torch.tensor([1]), context).dtype == given
        assert sd.text_encoder.encode(context).dtype == given
        assert sd.vae.decode(x).dtype == given
        encoded = sd.vae.encode(torch.zeros(1, 3, 64, 64, dtype=given))
        assert {part.dtype for part in encoded} == {given}


def test_the_logits_of_a_cross_attention_fit_float16_because_q_is_scaled_first():
    """q k = 90,000, beyond float16's 65,504; scaled by 1/sqrt(64) it is 11,250."""
    attention = CrossAttention(64, 64, 1)
    with torch.no_grad():
        attention.to_q.weight.copy_(torch.eye(64) * 37.5)
        attention.to_k.weight.copy_(torch.eye(64) * 37.5)
        expected = attention(torch.ones(1, 3, 64), torch.ones(1, 5, 64))
        found = attention.half()(torch.ones(1, 3, 64).half(), torch.ones(1, 5, 64).half())
    assert found.isfinite().all()
    assert parity.largest(found.float(), expected) <= 1e-2


@pytest.mark.parametrize("kind", [SelfAttention, CrossAttention])
@torch.no_grad()
def test_logits_beyond_float16_need_and_get_float32(kind):
    def make(upcast):
        attention = kind(64, 1, upcast) if kind is SelfAttention else kind(64, 64, 1, upcast)
        attention.to_q.weight.copy_(torch.eye(64) * 300)
        attention.to_k.weight.copy_(torch.eye(64) * 300)
        attention.to_v.weight.copy_(torch.eye(64))
        attention.to_out[0].weight.copy_(torch.eye(64))
        attention.to_out[0].bias.zero_()
        return attention

    x = torch.randn(1, 5, 64, generator=generator())
    inputs = (x,) if kind is SelfAttention else (x, x)
    expected = make(False).double()(*(i.double() for i in inputs))
    found = make(True).half()(*(i.half() for i in inputs))
    assert parity.largest(found.double(), expected) <= 1e-2
    if kind is CrossAttention:      # torch's kernel of self-attention may itself use float32
        assert not make(False).half()(*(i.half() for i in inputs)).isfinite().all()


@pytest.mark.parametrize("upcast, dtype", [(False, torch.float16), (True, torch.float32)])
@torch.no_grad()
def test_a_self_attention_asks_for_float32_where_the_configuration_does(monkeypatch, upcast, dtype):
    seen, own = [], F.scaled_dot_product_attention

    def record(q, k, v, **options):
        seen.append((q.dtype, k.dtype, v.dtype))
        return own(q, k, v, **options)
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    out = SelfAttention(8, 2, upcast).half()(torch.randn(1, 5, 8, generator=generator()).half())
    assert seen == [(dtype, dtype, dtype)] and out.dtype == torch.float16


@pytest.mark.parametrize("module, shape", [
    (lambda: SelfAttention(8, 2), (1, 5, 8)), (lambda: VAEAttention(8, 4), (1, 8, 3, 4)),
    (lambda: EncoderLayer(TextConfig(width=8, heads=2, mlp_width=16)), (1, 5, 8))])
def test_no_attention_may_take_cudnns_kernel_and_the_choice_ends_with_the_call(
        monkeypatch, module, shape):
    """Its backward returns NaN on an H200: flash, memory-efficient and plain kernels are left."""
    seen, own, flags = [], F.scaled_dot_product_attention, torch.backends.cuda

    def record(*args, **options):
        seen.append((flags.cudnn_sdp_enabled(), flags.flash_sdp_enabled(),
                     flags.mem_efficient_sdp_enabled(), flags.math_sdp_enabled()))
        return own(*args, **options)
    monkeypatch.setattr(F, "scaled_dot_product_attention", record)
    module()(torch.randn(shape))
    assert seen == [(False, True, True, True)] and flags.cudnn_sdp_enabled()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("dtype", HALF)
def test_sixty_steps_of_the_embedded_checkpoint_in_half_precision_on_cuda(dtype):
    sd, data = load("tiny", "cuda", dtype), small_views()
    data = Views(torch.randn(2, 4, 32, 32, generator=generator()), *(
        x.repeat_interleave(2, 1).repeat_interleave(2, 2) for x in (data.cells, data.cells)))
    learner = AnomalyEmbedding(sd, [DEFECT], 0)
    optimizer = torch.optim.Adam(learner.rates(sd))
    records = list(textual_inversion(
        sd, {DEFECT.stem: data}, learner, optimizer, 0, 60, batch_size=4, seed=0))
    assert len(records) == 60 and all(0 < record.loss < 10 for record in records)


def small_views(size=128):
    """Random latents; a mask of 16 cells in the first sample, of one cell in the second."""
    n = size // 8
    cells = torch.zeros(2, n, n, dtype=torch.bool)
    masks = torch.zeros(2, size, size, dtype=torch.bool)
    cells[0, 4:8, 4:8], masks[0, 32:64, 32:64] = True, True
    cells[1, 9, 3], masks[1, 72:80, 24:32] = True, True
    return Views(torch.randn(2, 4, n, n, generator=generator()), cells, masks)


def gradient(sd, learner, views):
    """Of every learned number, in one vector."""
    parameters = list(learner.parameters())
    gradients(sd, views, DEFECT.stem, learner, parameters, 2, 0, 0)
    assert {parameter.grad.dtype for parameter in parameters} == {torch.float32}
    return parameters[0].grad.flatten(), torch.cat([p.grad.flatten() for p in parameters[1:]])


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1-v"])
def test_gradients_of_embeddings_and_encoder_point_as_in_float32(folders, name, dtype):
    exact = load(folders[name])
    learner = AnomalyEmbedding(exact, [DEFECT], 0)
    expected = gradient(exact, learner, small_views())
    found = gradient(load(folders[name], dtype=dtype), learner, small_views())
    for g, e in zip(found, expected):
        assert cosine_similarity(g, e, dim=0) >= 0.98
        assert 0.9 <= g.norm() / e.norm() <= 1.1


def faint(sd, factor):
    """A U-Net whose last layer is this much smaller, so that the gradients behind it are, too."""
    with torch.no_grad():
        sd.unet.conv_out.weight.mul_(factor)
    return sd


def test_gradients_too_small_for_float16_arrive_because_they_are_scaled(folders):
    exact = faint(load(folders["SD 1.5"]), 1e-5)
    learner = AnomalyEmbedding(exact, [DEFECT], 0)
    expected = gradient(exact, learner, small_views())
    half = faint(load(folders["SD 1.5"], dtype=torch.float16), 1e-5)
    for g, e in zip(gradient(half, learner, small_views()), expected):
        assert cosine_similarity(g, e, dim=0) >= 0.98
    views = small_views()
    t, eps = torch.tensor([500, 100]), torch.randn(2, 4, 16, 16, generator=generator())
    out = predict(half, learner(DEFECT.stem, views.masks), views.latents, t, eps)
    plain, = torch.autograd.grad(masked_loss(out, eps, views.cells), learner.e_a[DEFECT.stem])
    assert float((plain == 0).float().mean()) > 0.5


def test_the_scale_changes_no_bit_of_a_float32_gradient(folders):
    sd, views = load(folders["SD 2.1-v"]), small_views()
    learner = AnomalyEmbedding(sd, [DEFECT], 0)
    t, eps = torch.tensor([500, 100]), torch.randn(2, 4, 16, 16, generator=generator())
    parameters = list(learner.parameters())

    def loss_of():
        out = predict(sd, learner(DEFECT.stem, views.masks), views.latents, t, eps)
        return masked_loss(out, sd.schedule.target(views.latents, t, eps), views.cells), out

    loss, out = loss_of()
    backward(loss, out, parameters, sd.dtype)
    found = [parameter.grad.clone() for parameter in parameters]
    expected = torch.autograd.grad(loss_of()[0], parameters)
    assert all(torch.equal(f, e) for f, e in zip(found, expected))


class Amplifier(nn.Module):
    """Passes on what it gets; its float16 gradient is this many times larger: it overflows."""

    def __init__(self, gain):
        super().__init__()
        self.vector, self.gain = nn.Parameter(torch.tensor([0.5, -0.25])), gain

    def out(self):
        x = self.vector.half()
        return ((x / self.gain) * self.gain).float()      # backwards: times gain, then divided


def test_a_gradient_that_overflows_is_sent_again_smaller():
    module = Amplifier(2.0 ** 10)
    out = module.out()
    backward((out - 1).square().mean(), out, [module.vector], torch.float16)
    torch.testing.assert_close(module.vector.grad, torch.tensor([-0.5, -1.25]), rtol=1e-3, atol=0)
    # The first scale overflows, 1 does not.
    assert 1.25 * module.gain < 65504 < train.INTO_UNET * module.gain


@pytest.mark.parametrize("slope, what", [(torch.inf, "overflow"), (torch.nan, "are NaN")])
@pytest.mark.parametrize("dtype, remedy", [
    (torch.float16, "use --dtype bf16 or fp32"), (torch.bfloat16, "use --dtype fp32"),
    (torch.float32, "float32 already")])
def test_a_gradient_that_no_scale_saves_is_refused_with_what_was_not_tried(
        slope, what, dtype, remedy):
    vector = nn.Parameter(torch.tensor([1.0]))
    inner = vector * 2
    inner.register_hook(lambda gradient: gradient * slope)
    out = inner * 2
    message = f"the gradients {what} at each of 4 scales, the loss is 9; .*{remedy}"
    with pytest.raises(RuntimeError, match=message):
        backward((out - 1).square().mean(), out, [vector], dtype)


@pytest.mark.parametrize("slope", [1e25, 0.0])
def test_a_gradient_that_is_large_or_nothing_is_finite(slope):
    vector = nn.Parameter(torch.tensor([1.0, 2.0]))
    out = vector * slope
    backward(out.sum(), out, [vector], torch.float32)
    torch.testing.assert_close(vector.grad, torch.full((2,), slope))
    out = vector * 2
    backward((out * 0).sum(), out, [vector], torch.float32)
    assert torch.equal(vector.grad, torch.zeros(2))


@pytest.mark.parametrize("factor, more", [(torch.inf, 0.0), (1.0, torch.inf)])
def test_a_loss_that_is_not_finite_is_refused_before_it_is_learned_from(factor, more):
    vector = nn.Parameter(torch.tensor([1.0]))
    out = vector * factor
    with pytest.raises(RuntimeError, match="the loss is inf; use --dtype bf16 or fp32"):
        backward(out.square().mean() + more, out, [vector], torch.float16)
    assert vector.grad is None


def overflowing_vae():
    """A VAE whose activations pass float16's 65504 in encoder and decoder and come back."""
    torch.manual_seed(0)
    reference = small_vae()
    vae = VAE(VAEConfig(channels=(16, 32, 32), layers_per_block=1, norm_groups=8))
    vae.load_state_dict(reference.state_dict())
    with torch.no_grad():
        for conv in (vae.encoder.conv_in, vae.decoder.conv_in):
            conv.weight.mul_(2e5)
    return vae


@torch.no_grad()
def test_a_vae_that_overflows_float16_is_run_again_in_float32_and_says_so_once(caplog):
    vae = overflowing_vae().eval()
    image = torch.rand(2, 3, 16, 24, generator=generator()) * 2 - 1
    latents = torch.randn(2, 4, 4, 6)
    half = overflowing_vae().eval().half()
    assert not half.encoder(image.half()).isfinite().all()
    assert not half.decoder(latents.half()).isfinite().all()
    for found, expected in zip((*half.encode(image), half.decode(latents)),
                               (*vae.encode(image), vae.decode(latents))):
        assert found.isfinite().all() and parity.largest(found, expected) <= 1e-2
    assert [r.getMessage()[:36] for r in caplog.records] == ["the VAE overflows in half precision;"]
    assert half.dtype == torch.float16
    assert {parameter.dtype for parameter in half.parameters()} == {torch.float16}


def test_the_published_text_encoders_pad_as_their_makers_do():
    assert SD2_TEXT.zero_padding and not TextConfig().zero_padding
