"""The two commands with every kind of checkpoint and in half precision, on made-up photographs."""

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from anomaly.files.photographs import read_photograph
from cli import native_bf16
from commands import call


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Three photographs of a defect, dark on grey, and two normals, 128 px."""
    root = tmp_path_factory.mktemp("data") / "tile"
    rng = np.random.default_rng(0)
    for folder in ("test/crack", "ground_truth/crack", "train/good"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        image = rng.integers(90, 160, (128, 128), dtype=np.uint8)
        Image.fromarray(image).save(root / f"train/good/{i}.png")
        mask = np.zeros((128, 128), np.uint8)
        mask[30:90, 40:100] = 255
        image[mask > 0] //= 2
        Image.fromarray(image).save(root / f"test/crack/{i}.png")
        Image.fromarray(mask).save(root / f"ground_truth/crack/{i}_mask.png")
    return root


@pytest.fixture(scope="module")
def run(checkpoint, data, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "plain"
    assert train(checkpoint, data, out) == 0
    return out


def train(weights, data, out, *more):
    return call("train_embed", "--weights", weights, "--data", data, "--split", "all", "--out", out,
                "--size", 128, "--steps", 3, "--batch-size", 2, "--no-masks", *more)


def sample(run, out, *more):
    return call("sample", "--run", run, "--masks", "train", "--out", out,
                "--n", 2, "--batch-size", 2, "--steps", 2, *more)


def painted(out):
    """How far each pair's pixels moved, as its manifest has it."""
    with open(out / "_meta/manifest.csv", newline="") as file:
        return [float(row["change"]) for row in csv.DictReader(file)]


@pytest.mark.parametrize("name", ["SD 1.5", "SD 2.1-base", "SD 2.1-v"])
def test_a_single_file_and_its_folder_give_the_same_run_and_pairs(
        single_files, data, tmp_path, capsys, name):
    kind = "v" if name == "SD 2.1-v" else "eps"
    asked = ["--prediction-type", kind]
    images = {}
    for weights in (single_files[name], single_files[name].parent / name):
        run, out = tmp_path / weights.name, tmp_path / f"{weights.name} out"
        assert train(weights, data, run, *asked) == 0
        assert json.loads((run / "config.json").read_text())["prediction_type"] == kind
        assert f"prediction type {kind}: as given" in capsys.readouterr().err
        assert sample(run, out) == 0
        assert all(change > 0 for change in painted(out))
        images[weights] = [read_photograph(p) for p in sorted((out / "tile/test/crack").iterdir())]
    for a, b in zip(*images.values()):
        assert np.array_equal(a, b)


def test_the_rule_that_decided_is_printed(single_files, data, tmp_path, capsys):
    path = shutil.copy(single_files["SD 2.1-v"], tmp_path / "v2-1.safetensors")
    path.with_suffix(".yaml").write_text("model:\n  params:\n    parameterization: \"v\"\n")
    assert train(path, data, tmp_path / "run") == 0
    assert f"prediction type v: {path.with_suffix('.yaml')}" in capsys.readouterr().err
    assert json.loads((tmp_path / "run/config.json").read_text())["prediction_type"] == "v"


@pytest.mark.skipif(not native_bf16(), reason="minutes without instructions for bfloat16")
def test_training_and_sampling_in_bfloat16(checkpoint, data, tmp_path):
    assert train(checkpoint, data, tmp_path / "run", "--dtype", "bf16") == 0
    learned = load_file(tmp_path / "run/embeddings/tile-crack.safetensors")
    encoder = load_file(tmp_path / "run/spatial_encoder.safetensors")
    assert {t.dtype for t in (*learned.values(), *encoder.values())} == {torch.float32}
    assert sample(tmp_path / "run", tmp_path / "out", "--dtype", "bf16") == 0
    assert all(change > 0 for change in painted(tmp_path / "out"))


def test_float16_on_a_cpu_is_refused(checkpoint, run, data, tmp_path, capsys):
    line = "--dtype fp16: found a CPU, expected CUDA; use --dtype fp32 or bf16"
    assert train(checkpoint, data, tmp_path / "run", "--dtype", "fp16", "--device", "cpu") == 2
    assert line in capsys.readouterr().err and not (tmp_path / "run").exists()
    assert sample(run, tmp_path / "out", "--dtype", "fp16", "--device", "cpu") == 2
    assert line in capsys.readouterr().err and not (tmp_path / "out").exists()


@pytest.mark.parametrize("option, value", [("--dtype", "bf16"), ("--prediction-type", "v")])
def test_a_run_goes_on_as_it_began(checkpoint, run, data, capsys, option, value):
    assert train(checkpoint, data, run, "--resume", option, value) == 2
    assert f"{option}: {value}, but the run in" in capsys.readouterr().err


def test_sampling_goes_on_in_the_dtype_it_began_with(run, tmp_path, capsys):
    """Both folders record what auto was, because on another machine it is something else."""
    assert sample(run, tmp_path / "out", "--device", "cpu") == 0
    recorded = json.loads((run / "config.json").read_text())["options"]
    recorded_out = json.loads((tmp_path / "out/_meta/config.json").read_text())
    assert (recorded["dtype"], recorded_out["dtype"]) == ("fp32", "fp32")
    assert sample(run, tmp_path / "out", "--dtype", "bf16") == 2
    assert "--dtype: 'bf16'" in capsys.readouterr().err


def test_weights_that_give_no_finite_loss_end_in_a_line(checkpoint, data, tmp_path, capsys):
    folder = shutil.copytree(checkpoint, tmp_path / "broken")
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    found = load_file(path)
    save_file({**found, "conv_out.weight": 3e38 * found["conv_out.weight"].sign()}, path)
    assert train(folder, data, tmp_path / "run") == 1
    assert "the loss is nan; the model is in float32 already" in capsys.readouterr().err
