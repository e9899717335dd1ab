"""Every fault of the input: exit 2, a line that names thing and remedy, nothing half-written."""

import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from anomaly.runs.run_folder import read_run
from commands import call


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A small category in MVTec AD layout, and normals."""
    root = tmp_path_factory.mktemp("data") / "tile"
    rng = np.random.default_rng(0)
    mask = np.zeros((48, 40), np.uint8)
    mask[10:20, 12:30] = 255

    def photograph():
        return Image.fromarray(rng.integers(0, 255, (48, 40), dtype=np.uint8))

    for folder in ("test/crack", "test/hole", "ground_truth/crack", "ground_truth/hole",
                   "train/good"):
        (root / folder).mkdir(parents=True)
    for i in range(3):
        for defect in ("crack", "hole"):
            photograph().save(root / f"test/{defect}/{i}.png")
            Image.fromarray(mask).save(root / f"ground_truth/{defect}/{i}_mask.png")
        photograph().save(root / f"train/good/{i}.png")
    return root


@pytest.fixture
def data(good, tmp_path):
    return shutil.copytree(good, tmp_path / "tile")


@pytest.fixture(scope="module")
def run(good, checkpoint, tmp_path_factory):
    out = tmp_path_factory.mktemp("run") / "r"
    assert call("train_embed", "--weights", checkpoint, "--data", good, "--out", out, "--steps", 1,
                "--no-masks") == 0
    return out


def refused(capsys, tool, *argv, code=2):
    """The one line of the refusal."""
    capsys.readouterr()
    assert call(tool, *argv) == code
    errors = capsys.readouterr().err.splitlines()
    lines = [line for line in errors if line.startswith(f"{tool}.py: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize("spoil, words", [
    (lambda d: shutil.rmtree(d), ["tile", "no such folder", "MVTec AD"]),
    (lambda d: shutil.rmtree(d / "test"), ["no defects", "test/DEFECT"]),
    (lambda d: [p.unlink() for p in (d / "test/crack").iterdir()],
     ["test/crack", "no image files", "nothing"]),
    (lambda d: (d / "ground_truth/crack/1_mask.png").unlink(),
     ["test/crack/1.png", "no mask", "1_mask.png"]),
    (lambda d: (d / "test/crack/1.png").unlink(), ["1_mask.png", "no image"]),
    (lambda d: shutil.rmtree(d / "ground_truth/hole"), ["ground_truth/hole", "no such folder"]),
    (lambda d: Image.new("L", (40, 47), 255).save(d / "ground_truth/crack/0_mask.png"),
     ["0_mask.png", "40x47", "40x48", "same size"]),
    (lambda d: Image.new("L", (40, 48), 0).save(d / "ground_truth/crack/0_mask.png"),
     ["0_mask.png", "no defect in it", "draw the mask"]),
    (lambda d: (d / "test/crack/0.png").write_bytes((d / "test/crack/0.png").read_bytes()[:900]),
     ["crack/0.png", "cannot be read", "replace"]),
    (lambda d: (d / "test/crack/0.png").write_bytes(b""), ["crack/0.png", "0 bytes"]),
    (lambda d: (d / "test/crack/0.png").write_text("text"), ["crack/0.png", "cannot be read"]),
    (lambda d: (d / "ground_truth/crack/0_mask.png").write_text("text"),
     ["0_mask.png", "cannot be read as a mask"]),
])
def test_faulty_training_data(capsys, checkpoint, data, tmp_path, spoil, words):
    spoil(data)
    line = refused(capsys, "train_embed", "--weights", checkpoint, "--data", data,
                   "--out", tmp_path / "r", "--split", "all")
    assert all(word in line for word in words), line
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize("argv, words", [
    (["--steps", "0"], ["--steps", "found 0", "at least 1"]),
    (["--batch-size", "0"], ["--batch-size", "at least 1"]),
    (["--size", "-64"], ["--size", "at least 1"]),
    (["--size", "72"], ["--size", "72", "multiples of 16"]),
    (["--seed", "-1"], ["--seed", "at least 0"]),
    (["--steps", "many"], ["--steps", "'many'", "whole number"]),
    (["--frobnicate"], ["unknown option", "--frobnicate", "--help"]),
    (["--device", "cuda"], ["--device cuda", "no CUDA device", "--device cpu"]),
    (["--only", "tile/crak"], ["--only", "tile/crak", "tile/crack, tile/hole"]),
    (["--resume"], ["not a training run", "without --resume"]),
    (["--weights", "/nowhere"], ["/nowhere", "no such file or folder", "Stable Diffusion"]),
    (["--images", "x"], ["--data", "--images"]),
])
def test_faulty_training_options(capsys, checkpoint, good, tmp_path, argv, words):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    line = refused(capsys, "train_embed", "--weights", checkpoint, "--data", good,
                   "--out", tmp_path / "r", *argv)
    assert all(word in line for word in words), line
    assert not (tmp_path / "r").exists()


def test_missing_weight_files_and_names(capsys, checkpoint, good, tmp_path):
    folder = shutil.copytree(checkpoint, tmp_path / "ckpt")
    (folder / "unet/diffusion_pytorch_model.safetensors").unlink()
    line = refused(capsys, "train_embed", "--weights", folder, "--data", good,
                   "--out", tmp_path / "r")
    assert "unet/diffusion_pytorch_model.safetensors: not found" in line
    assert not (tmp_path / "r").exists()
    for name in ("crack", "a/b/c", "/crack"):
        line = refused(capsys, "train_embed", "--weights", checkpoint,
                       "--images", good / "test/crack", "--masks", good / "ground_truth/crack",
                       "--name", name, "--out", tmp_path / "r")
        assert "--name" in line and "OBJECT/DEFECT" in line


def test_a_run_that_exists_is_not_trained_into(capsys, checkpoint, good, run):
    before = (run / "config.json").read_bytes()
    line = refused(capsys, "train_embed", "--weights", checkpoint, "--data", good, "--out", run)
    assert "holds a training run already" in line and "--resume" in line
    line = refused(capsys, "train_embed", "--weights", checkpoint, "--data", good, "--out", run,
                   "--resume", "--steps", 1, "--no-masks", "--seed", 5)
    assert "--seed: 5" in line and (run / "config.json").read_bytes() == before


@pytest.fixture
def other_checkpoint(checkpoint, tmp_path):
    """The same sizes, other numbers."""
    folder = shutil.copytree(checkpoint, tmp_path / "other")
    path = folder / "unet/diffusion_pytorch_model.safetensors"
    tensors = load_file(path)
    tensors["conv_in.bias"] += 1
    save_file(tensors, path)
    return folder


def test_a_run_made_with_another_model(capsys, checkpoint, other_checkpoint, good, run, tmp_path):
    line = refused(capsys, "train_embed", "--weights", other_checkpoint, "--data", good,
                   "--out", run, "--resume", "--steps", 1, "--no-masks")
    assert "made with another model" in line
    copy = shutil.copytree(run, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    config["options"]["weights"] = str(other_checkpoint)
    (copy / "config.json").write_text(json.dumps(config))
    line = refused(capsys, "sample", "--run", copy, "--masks", "train", "--out", tmp_path / "out")
    assert "made with another model" in line and not (tmp_path / "out").exists()


@pytest.mark.parametrize("argv, words", [
    (["--n", "0"], ["--n", "at least 1"]),
    (["--steps", "0"], ["--steps", "1 to 500"]),
    (["--steps", "501"], ["--steps", "501", "1 to 500"]),
    (["--batch-size", "-3"], ["--batch-size", "at least 1"]),
    (["--seed", "-1"], ["--seed", "at least 0"]),
    (["--guidance", "0"], ["--guidance", "above 0"]),
    (["--guidance", "nan"], ["--guidance", "above 0"]),
    (["--guidance", "high"], ["--guidance", "high", "a number or auto"]),
    (["--reweight", "strong"], ["--reweight", "strong", "adaptive"]),
    (["--reweight", "off", "--reweight-gain", "2"], ["--reweight-gain", "adaptive and constant"]),
    (["--unknown", "1"], ["unknown option", "--unknown"]),
    (["--device", "cuda"], ["--device cuda", "no CUDA device"]),
    (["--only", "tile/rust"], ["--only", "tile/rust", "tile/crack, tile/hole"]),
    (["--run", "/nowhere"], ["/nowhere", "not a training run", "train_embed.py"]),
    (["--normals", "/nowhere"], ["/nowhere", "--normals"]),
    (["--masks", "/nowhere"], ["/nowhere", "--masks"]),
    (["--masks", "learned"], ["mask_embeddings", "--no-masks", "--masks train"]),
])
def test_faulty_sampling_options(capsys, run, tmp_path, argv, words):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("a CUDA device is here")
    line = refused(capsys, "sample", "--run", run, "--masks", "train",
                   "--out", tmp_path / "out", *argv)
    assert all(word in line for word in words), line
    assert not (tmp_path / "out").exists()


def test_embeddings_without_a_guidance_scale(capsys, run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "r")
    path = copy / "embeddings/tile-crack.safetensors"
    save_file(load_file(path), path, {
        "steps": "1", "weights_sha256": read_run(run).config["weights_sha256"]})
    line = refused(capsys, "sample", "--run", copy, "--masks", "train", "--out", tmp_path / "out")
    assert "tile-crack.safetensors" in line and "--guidance" in line
    assert not (tmp_path / "out").exists()


def test_an_output_that_is_a_file(capsys, run, tmp_path):
    (tmp_path / "file").write_text("mine")
    line = refused(capsys, "sample", "--run", run, "--masks", "train", "--out", tmp_path / "file")
    assert "is a file; --out takes a folder" in line and (tmp_path / "file").read_text() == "mine"


def test_an_empty_run_folder(capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    line = refused(capsys, "sample", "--run", tmp_path / "empty", "--out", tmp_path / "out")
    assert "no config.json" in line and not (tmp_path / "out").exists()


def test_normals_and_masks_that_do_not_go_together(capsys, run, good, tmp_path):
    Image.new("L", (10, 10), 100).save(tmp_path / "small.png")
    line = refused(capsys, "sample", "--run", run, "--masks", "train",
                   "--normals", tmp_path / "small.png", "--out", tmp_path / "out")
    assert "no training mask of tile/crack fits" in line
    line = refused(capsys, "sample", "--run", run, "--masks", good / "ground_truth/crack",
                   "--normals", tmp_path / "small.png", "--out", tmp_path / "out")
    assert "0_mask.png: 40x48 pixels" in line and "10x10" in line
    Image.new("L", (40, 48), 0).save(tmp_path / "black.png")
    line = refused(capsys, "sample", "--run", run, "--masks", tmp_path / "black.png",
                   "--out", tmp_path / "out")
    assert "black.png: no defect in it" in line and not (tmp_path / "out").exists()


def test_a_truncated_normal_photograph_stops_with_whole_pairs_only(capsys, run, good, tmp_path):
    normals = shutil.copytree(good / "train/good", tmp_path / "normals")
    (normals / "1.png").write_bytes((normals / "1.png").read_bytes()[:900])
    line = refused(capsys, "sample", "--run", run, "--masks", "train", "--normals", normals,
                   "--n", 8, "--batch-size", 1, "--steps", 1, "--out", tmp_path / "out")
    assert "1.png: cannot be read" in line
    images = sorted(p.stem for p in (tmp_path / "out").rglob("test/*/*.png"))
    masks = sorted(p.stem[:5] for p in (tmp_path / "out").rglob("*_mask.png"))
    assert images == masks and not list((tmp_path / "out").rglob("*.part"))


def test_data_without_good_photographs_needs_normals(capsys, checkpoint, good, tmp_path):
    assert call("train_embed", "--weights", checkpoint, "--images", good / "test/crack",
                "--masks", good / "ground_truth/crack", "--name", "tile/crack",
                "--out", tmp_path / "r", "--steps", 1, "--no-masks") == 0
    line = refused(capsys, "sample", "--run", tmp_path / "r", "--masks", "train",
                   "--out", tmp_path / "out")
    assert "--normals" in line and "tile/crack" in line


def test_sampling_again_with_another_option_names_it(capsys, run, tmp_path):
    command = ["--run", run, "--masks", "train", "--n", 1, "--steps", 1, "--batch-size", 1,
               "--out", tmp_path / "out"]
    assert call("sample", *command) == 0
    line = refused(capsys, "sample", *command, "--guidance", 2)
    assert "--guidance: 2.0" in line and "'auto'" in line
    assert call("sample", *command, "--only", "tile/crack", "--n", 2, "--batch-size", 2) == 0
