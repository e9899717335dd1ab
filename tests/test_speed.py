"""Fast paths give what the plain ones give, and bfloat16 what float32 gives."""

import json
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

import cli
from anomaly.crop import Cropped, defect_crop, take
from anomaly.drawn.demo import demo_picture
from anomaly.painter import Settings, paint_crops
from anomaly.sampler import Guidance
from benchmarks import gpu, peers, rows, speed
from benchmarks.measuring import Bench
from commands import call
from ldm.blocks import Conv3x3
from ldm.unet import UNet
from weights import load


def refuse(*_, **__):
    raise AssertionError("the other way was to be taken")


@pytest.mark.parametrize("dtype, close", [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("batch, size, stride, pad, few", [
    (1, (4, 4), 1, 1, True), (2, (3, 5), 1, 1, True), (1, (5, 7), 2, 1, True),
    (2, (6, 4), 2, 0, True), (1, (4, 8), 1, 1, True), (1, (3, 11), 1, 1, False),
    (2, (4, 8), 1, 1, False)])
def test_a_convolution_of_few_cells_is_one_matrix_product(monkeypatch, batch, size, stride, pad,
                                                          few, dtype, close):
    torch.manual_seed(0)
    convolution = Conv3x3(48, 128, stride, pad).to(dtype)
    x = torch.randn(batch, 48, *size, dtype=dtype, requires_grad=True)
    expected = F.conv2d(x, convolution.weight, convolution.bias, stride, pad)
    back = torch.randn_like(expected)
    learned = (x, convolution.weight, convolution.bias)
    slopes = torch.autograd.grad(expected, learned, back)
    monkeypatch.setattr(*(nn.Conv2d, "forward") if few else (F, "unfold"), refuse)
    found = convolution(x)
    for a, b in zip((found, *torch.autograd.grad(found, learned, back)), (expected, *slopes)):
        torch.testing.assert_close(a, b, rtol=close, atol=close * float(b.detach().abs().max()))


def test_layers_computed_twice_keep_less_and_give_the_same_gradient(sd):
    """Of each layer its input is kept: nothing that a layer computes inside."""
    plain, lean = (UNet(sd.unet.config) for _ in range(2))
    for unet in (plain, lean):
        unet.load_state_dict(sd.unet.state_dict())
        unet.requires_grad_(False)
    lean.checkpoint_layers()
    x = torch.randn(2, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    found, kept = [], []
    for unet in (plain, lean):
        context = torch.linspace(-1, 1, 77 * sd.unet.config.context_dim).view(1, 77, -1)
        context = context.expand(2, -1, -1).clone().requires_grad_()
        def keep(tensor, unet=unet):
            kept.append(unet)
            return tensor
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            out = unet(x, torch.tensor([500, 20]), context)
        found.append((out, *torch.autograd.grad(out.square().sum(), context)))
    assert all(torch.equal(a, b) for a, b in zip(*found))
    assert 0 < sum(unet is lean for unet in kept) < sum(unet is plain for unet in kept) / 5


@pytest.mark.parametrize("able, device, dtype", [
    ({"avx512_bf16": True}, "cpu", "bf16"), ({"amx_bf16": True}, "cpu", "bf16"),
    ({"avx512_f": True, "avx512_bf16": False}, "cpu", "fp32"), ({}, "cpu", "fp32"),
    ({"avx512_bf16": True}, "cuda:1", "fp16")])
def test_auto_is_the_dtype_that_is_fast_on_the_device(monkeypatch, able, device, dtype):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able)
    assert cli.choose_dtype("auto", device) == dtype
    assert cli.choose_dtype("fp32", device) == "fp32"


def test_auto_is_float32_where_torch_cannot_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert cli.choose_dtype("auto", "cpu") == "fp32"


def test_the_option_computes_the_layers_again_and_learns_the_same(
        checkpoint, photographs, tmp_path, monkeypatch):
    asked, own = [], UNet.checkpoint_layers
    monkeypatch.setattr(UNet, "checkpoint_layers", lambda unet: asked.append(own(unet)))
    for more in ([], ["--checkpointing"]):
        assert call("train_embed", "--weights", checkpoint, "--data", photographs, "--only",
                    f"{photographs.name}/crack", "--steps", 2, "--no-masks", "--size", 64,
                    "--out", tmp_path / f"run{len(more)}", *more) == 0
    assert len(asked) == 1
    plain, lean = (load_file(next((tmp_path / name).glob("embeddings/*"))) for name in
                   ("run0", "run1"))
    assert all(torch.equal(plain[key], lean[key]) for key in plain)


def test_bfloat16_paints_what_float32_paints():
    """At least 35 dB inside the mask, on a surface that is noisy and on one that is nearly flat."""
    pictures = []
    for product, defect in (("leather", "glue"), ("metal", "scratch")):
        image, mask = demo_picture(product, defect, 3)
        pictures.append(take(image, mask, defect_crop(mask, 128), 128, 4))
    inside = torch.stack([picture.mask for picture in pictures])[:, None].expand(-1, 3, -1, -1)
    noise = torch.randn(2, 4, 32, 32, generator=torch.Generator().manual_seed(0))
    painted = []
    for dtype in (torch.float32, torch.bfloat16):
        sd = load("tiny", dtype=dtype)
        context = torch.cat([sd.context("a photo of leather with large glue"),
                             sd.context("a photo of metal with scratch")])
        settings = Settings(128, 5, Guidance(2.0, sd.context("")), torch.zeros(4, 3), None)
        painted.append(paint_crops(sd, pictures, context, noise, settings).float().clamp(-1, 1))
    error = (painted[0] - painted[1])[inside].square().mean()
    assert 10 * math.log10(4 / error) >= 35
    assert error > 0


@torch.no_grad()
def test_what_is_timed_beside_ours_computes_the_same():
    """float32; noise, and for the VAE a flat picture, too."""
    bench = Bench("cpu", gpu.REHEARSAL)
    sd = bench.model(torch.float32)
    ids = sd.tokenizer(["a photo of a screw", ""])
    x, t, context = bench.noise(2, 4, 6, 8), torch.tensor([981, 21]), sd.context("")
    context = context.expand(2, -1, -1)
    same = partial(torch.testing.assert_close, rtol=1e-4, atol=1e-4)
    same(sd.unet(x, t, context), peers.unet_of_diffusers(sd.unet)(x, t, context).sample)
    same(sd.text_encoder.encode(sd.text_encoder.embed(ids)),
         peers.text_of_transformers(sd.text_encoder)(ids).last_hidden_state)
    vae, factor = peers.vae_of_diffusers(sd.vae), sd.vae.config.scaling_factor
    for image in (bench.noise(2, 3, 16, 12), torch.full((1, 3, 8, 8), 0.3)):
        z = sd.vae.encode(image)[0]
        same(z, vae.encode(image).latent_dist.mean * factor)
        same(sd.vae.decode(z), vae.decode(z / factor).sample)
    crops = [Cropped(bench.noise(3, 16, 16), rows.square(16), rows.square(8))] * 2
    noise, to_rgb, painted = bench.noise(2, 4, 8, 8), torch.zeros(4, 3), []
    loud = 20 * bench.noise(2, 77, context.shape[-1])
    for scale in (1.0, 3.0):
        settings = Settings(16, 3, Guidance(scale, sd.context("")), to_rgb, None)
        painted.append(paint_crops(sd, crops, loud, noise, settings))
        same(painted[-1], peers.loop_of_diffusers(sd, crops, loud, noise, 3, scale)())
    assert (painted[0] - painted[1]).abs().max() > 1e-2
    # In bfloat16 not much further from float32 than ours.
    half = bench.model(torch.bfloat16)
    ours, theirs = ((some.float() - painted[1]).norm() for some in (
        paint_crops(half, crops, loud, noise, settings),
        peers.loop_of_diffusers(half, crops, loud, noise, 3, 3.0)()))
    assert 0 < theirs < 2 * ours


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_the_gpus_benchmark_is_rehearsed_on_a_cpu(tmp_path, monkeypatch):
    def in_this_process(command, **_):
        code = call(Path(command[1]).stem, *command[2:])
        assert code == 0, command
    monkeypatch.setattr("anomaly.drawn.demo.DEFECTIVE", 3)
    monkeypatch.setattr("anomaly.drawn.demo.NORMALS", 2)
    monkeypatch.setattr(rows.subprocess, "run", in_this_process)
    monkeypatch.chdir(tmp_path)
    assert call("bench", "gpu", "--device", "cpu") == 0
    found, page = json.loads((tmp_path / "gpu.json").read_text()), (tmp_path / "gpu.md").read_text()
    assert len(found) == len(rows.TABLES) + 2 and all(found.values())
    assert not [row for table in found.values() for row in table if "error" in row]
    assert all(f"## {title}\n" in page for title in found)
    assert "again: 2 of 2 pictures have the same bytes" in page
    last = [*found.values()][-1]
    assert [row["U-Net"] for row in last] == ["ours, compiled", "diffusers, compiled"]
    assert all(float(row["difference"]) == 0 for row in last)       # compiled by nothing here


def test_a_compiled_call_that_computes_something_else_shows(monkeypatch):
    monkeypatch.setattr(gpu, "unet_of_diffusers", lambda unet: None)
    monkeypatch.setattr(torch, "compile", lambda unet, backend: lambda *x: 3 * unet(*x))
    row, = gpu.compiled(Bench("cpu", gpu.REHEARSAL))
    assert float(row["difference"]) == pytest.approx(2, rel=0.05)


def test_a_table_that_fails_says_so_and_the_others_go_on(tmp_path, monkeypatch):
    def broken(bench):
        """What breaks."""
        yield {"a": "1"}
        raise RuntimeError("out of\nmemory")

    def whole(bench):
        """What does not."""
        yield {"b": "2"}

    def late(bench):
        """What comes last."""
        raise KeyError("a name")
        yield
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(gpu, "TABLES", (broken, whole))
    monkeypatch.setattr(gpu, "precision", whole)
    monkeypatch.setattr(gpu, "compiled", late)
    with pytest.raises(RuntimeError, match="^What breaks; What comes last: ended in an error, see"):
        gpu.main("cpu")
    assert json.loads((tmp_path / "gpu.json").read_text()) == {
        "What breaks": [{"a": "1"}, {"error": "out of memory"}], "What does not": [{"b": "2"}],
        "What comes last": [{"error": "'a name'"}]}
    monkeypatch.setattr(gpu, "MINUTES", 0)
    monkeypatch.setattr(gpu, "compiled", whole)
    with pytest.raises(RuntimeError, match="^What breaks; What does not: ended in an error"):
        gpu.main("cpu")
    over = [{"error": "0 minutes are over; what is missing was left out"}]
    assert json.loads((tmp_path / "gpu.json").read_text()) == {
        "What breaks": over, "What does not": over}


def test_the_cpus_benchmark_prints_a_table_of_each(monkeypatch, capsys):
    monkeypatch.setattr(speed, "TABLES", (rows.device, rows.unet))
    speed.main(gpu.REHEARSAL)
    page = capsys.readouterr().out
    assert "| dtype | px | batch | ms |" in page and "| diffusers / ours |" in page
    assert "| bfloat16 | 32 | 1 | " in page


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_the_gpus_benchmark_without_a_gpu_is_refused(capsys):
    assert call("bench", "gpu") == 2
    assert "gpu: found no CUDA device; run it on a machine that has one" in capsys.readouterr().err
    assert call("bench", "speed", "--device", "cpu") == 2
    assert "--device: belongs to gpu, not to speed" in capsys.readouterr().err
