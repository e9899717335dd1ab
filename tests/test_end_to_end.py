"""The two commands with a small random checkpoint, on real photographs where there are any.

It paints noise: what is tested is everything that must hold whatever a checkpoint can paint.
"""

import csv
import json
import shutil
import signal
import time
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from anomaly.files.mask_reading import read_mask
from anomaly.files.photographs import read_photograph
from anomaly.mask_model import mask_picture
from anomaly.pairs import masks as mask_sources
from anomaly.runs.guidance import LARGEST
from commands import call, start


def files_of(folder):
    """Every file below a folder with its bytes."""
    return {str(p.relative_to(folder)): p.read_bytes()
            for p in sorted(folder.rglob("*")) if p.is_file()}


def differing(a, b):
    """Names of the files that differ; both folders must have the same ones."""
    a, b = files_of(a), files_of(b)
    assert a.keys() == b.keys()
    return [name for name in a if a[name] != b[name]]


@pytest.fixture(scope="module")
def trained(checkpoint, photographs, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "mt"
    assert call("train_embed", "--weights", checkpoint, "--data", photographs, "--out", run,
                "--steps", 4, "--batch-size", 2) == 0
    return run


@pytest.fixture(scope="module")
def generated(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("out") / "generated"
    assert call("sample", "--run", trained, "--masks", "train", "--out", out,
                "--n", 6, "--steps", 3, "--batch-size", 4) == 0
    return out


def rows_of(out):
    with open(out / "_meta/manifest.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_the_run_folder_holds_vectors_losses_and_a_preview(trained, photographs):
    config = json.loads((trained / "config.json").read_text())
    assert [d["defect"] for d in config["defects"]] == ["blowhole", "break", "crack"]
    assert all(len(d["train"]) == 6 for d in config["defects"])     # floor(18 / 3)
    assert config["defects"][0]["train"][-1]["image"].endswith("blowhole/005.jpg")
    rows = list(csv.DictReader((trained / "loss.csv").open()))
    assert len(rows) == 2 * 3 * 4
    norms = [float(r[e]) for r in rows for e in ("e_a", "e_s", "e_m") if r[e]]
    assert len(norms) == 3 * 12 and all(0.15 < n < 4 for n in norms)
    crack = f"{photographs.name}-crack"
    tensors = load_file(trained / f"embeddings/{crack}.safetensors")
    assert {k: tuple(v.shape) for k, v in tensors.items()} == {f"<{crack}>": (8, 32)}
    masks = load_file(trained / f"mask_embeddings/{crack}.safetensors")
    assert {k: tuple(v.shape) for k, v in masks.items()} == {f"<{crack}-mask>": (4, 32)}
    assert Image.open(trained / "preview.jpg").width > 500


def test_every_pair_keeps_its_photograph_outside_a_binary_mask(generated):
    rows = rows_of(generated)
    assert len(rows) == 18
    for row in rows:
        before = read_photograph(Path(row["normal"]))
        after = read_photograph(generated / row["image"])
        assert Image.open(generated / row["image"]).mode == Image.open(row["normal"]).mode
        stored = Image.open(generated / row["mask"])
        assert stored.mode == "L" and set(np.unique(stored)) == {0, 255}
        mask = read_mask(generated / row["mask"])
        assert after.shape == before.shape and mask.shape == before.shape[:2]
        assert np.array_equal(after[~mask], before[~mask])
        changed = np.abs(after[mask].astype(int) - before[mask]).mean() / 255
        assert changed > 0 and changed == pytest.approx(float(row["change"]), rel=1e-4)


def test_the_folder_obeys_anomalibs_loaders(generated, photographs):
    """Numbers of one width, four or more; one mask an image; no other PNG."""
    category = generated / photographs.name
    assert sorted(p.name for p in category.iterdir()) == ["ground_truth", "test"]
    for defect in ("blowhole", "break", "crack"):
        images = sorted((category / "test" / defect).iterdir())
        masks = sorted((category / "ground_truth" / defect).iterdir())
        assert [p.name for p in images] == [f"{k:05d}.png" for k in range(6)]
        assert [p.name for p in masks] == [f"{k:05d}_mask.png" for k in range(6)]
    assert not [p for p in generated.rglob("*.png") if p.parts[-3] not in ("test", "ground_truth")]
    assert sorted(p.name for p in (generated / "_meta").iterdir()) == [
        ".lock", "README.md", "config.json", "contact_sheet.jpg", "manifest.csv", "normals.csv",
        "review", "review.html"]


def test_the_same_command_gives_the_same_bytes(
        trained, generated, checkpoint, photographs, tmp_path):
    assert call("train_embed", "--weights", checkpoint, "--data", photographs,
                "--out", tmp_path / "run", "--steps", 4, "--batch-size", 2) == 0
    assert differing(trained, tmp_path / "run") == []
    assert call("sample", "--run", tmp_path / "run", "--masks", "train", "--out", tmp_path / "out",
                "--n", 6, "--steps", 3, "--batch-size", 4) == 0
    assert differing(generated, tmp_path / "out") == []


def test_without_an_option_each_defect_has_the_guidance_that_training_found(
        trained, photographs, tmp_path):
    run = shutil.copytree(trained, tmp_path / "run")
    common = ["--run", run, "--masks", "train", "--n", 1, "--steps", 3, "--batch-size", 4]
    scales = {"blowhole": "1.75", "crack": "3.5"}
    for name, scale in scales.items():
        path = run / f"embeddings/{photographs.name}-{name}.safetensors"
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            tensors = {key: file.get_tensor(key) for key in file.keys()}
        assert 1 <= float(metadata["guidance"]) <= LARGEST
        save_file(tensors, path, {**metadata, "guidance": scale})
    only = ",".join(f"{photographs.name}/{name}" for name in scales)
    assert call("sample", *common, "--out", tmp_path / "auto", "--only", only) == 0
    pictures = {}
    for name, scale in scales.items():
        image = f"{photographs.name}/test/{name}/00000.png"
        for g in scales.values():
            out = tmp_path / f"{name} {g}"
            assert call("sample", *common, "--out", out, "--guidance", g,
                        "--only", f"{photographs.name}/{name}") == 0
            pictures[g] = (out / image).read_bytes()
        assert (tmp_path / "auto" / image).read_bytes() == pictures[scale]
        assert len(set(pictures.values())) == 2


def test_a_pair_does_not_depend_on_n_or_the_other_defects_and_n_can_grow(
        trained, generated, photographs, tmp_path):
    command = ["--run", trained, "--masks", "train", "--out", tmp_path, "--steps", 3,
               "--batch-size", 4, "--only", f"{photographs.name}/crack"]
    assert call("sample", *command, "--n", 1) == 0
    image = f"{photographs.name}/test/crack/00000.png"
    assert (tmp_path / image).read_bytes() == (generated / image).read_bytes()
    assert call("sample", *command, "--n", 5) == 0
    for k in range(5):
        image = f"{photographs.name}/test/crack/{k:05d}.png"
        assert (tmp_path / image).read_bytes() == (generated / image).read_bytes()
    assert len(rows_of(tmp_path)) == 5


def test_every_block_is_full_so_that_kernels_see_one_shape(
        trained, photographs, tmp_path, monkeypatch):
    story = import_module("anomaly.pairs.paint")       # anomaly.pairs.paint is the function
    sizes, paint = [], story.paint_block
    monkeypatch.setattr(story, "paint_block", lambda sd, learner, defect, plans, *rest: (
        sizes.append(len(plans)), paint(sd, learner, defect, plans, *rest))[1])
    assert call("sample", "--run", trained, "--masks", "train", "--out", tmp_path, "--steps", 1,
                "--n", 4, "--batch-size", 3, "--only", f"{photographs.name}/crack",
                "--gate", "off") == 0
    assert sizes == [3, 3] and len(rows_of(tmp_path)) == 4


def test_learned_masks_of_a_random_checkpoint_end_in_one_line(trained, tmp_path, capsys):
    assert call("sample", "--run", trained, "--masks", "learned", "--out", tmp_path / "out",
                "--n", 2, "--steps", 2, "--batch-size", 8) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "none of 64 masks was accepted; use --masks train" in error
    assert not (tmp_path / "out").exists()


def test_learned_masks_that_look_real_are_placed_and_painted(
        trained, photographs, tmp_path, monkeypatch):
    """A stand-in for a trained mask model: one draw in four is a training mask, chosen by noise."""
    folder = photographs / "ground_truth/blowhole"
    real = torch.stack([mask_picture(read_mask(folder / f"00{i}_mask.png"), 64, 4).mask
                        for i in range(6)])

    def stand_in(sd, e_m, noise, steps):
        chosen = real[(noise[:, 1, 0, 0].abs() * 1000).long() % 6]
        return torch.where(noise[:, :1, 0, 0, None] > 0.7, chosen, False)
    monkeypatch.setattr(mask_sources, "sample_masks", stand_in)
    command = ["sample", "--run", trained, "--only", f"{photographs.name}/blowhole", "--steps", 2]
    assert call(*command, "--out", tmp_path / "a", "--n", 4, "--batch-size", 4) == 0
    rows = rows_of(tmp_path / "a")
    assert [r["mask_source"] for r in rows] == ["learned"] * 4
    areas = [read_mask(tmp_path / "a" / r["mask"]).sum() for r in rows]
    assert all(20 < area < 400 for area in areas)       # at the training masks' size in pixels
    assert call(*command, "--out", tmp_path / "b", "--n", 4, "--batch-size", 2) == 0
    for row in rows:    # a pair's mask does not depend on who shares its batch
        a, b = (tmp_path / out / row["mask"] for out in ("a", "b"))
        assert a.read_bytes() == b.read_bytes()


def test_one_photograph_and_one_mask_make_one_pair(trained, photographs, tmp_path):
    mask = photographs / "ground_truth/crack/007_mask.png"
    photograph = photographs / "test/crack/007.jpg"
    assert call("sample", "--run", trained, "--only", f"{photographs.name}/crack",
                "--normals", photograph, "--masks", mask, "--out", tmp_path,
                "--steps", 2, "--batch-size", 1) == 0
    row, = rows_of(tmp_path)
    assert np.array_equal(read_mask(tmp_path / row["mask"]), read_mask(mask))
    assert row["normal"] == str(photograph.absolute())      # a link keeps its own name
    assert row["mask_source"] == str(mask.absolute())


def test_every_reweighting_paints_and_paints_differently(trained, photographs, tmp_path):
    images, masks = set(), set()
    for mode in ("off", "adaptive", "paper", "released", "constant"):
        assert call("sample", "--run", trained, "--masks", "train", "--out", tmp_path / mode,
                    "--n", 1, "--steps", 3, "--batch-size", 1, "--reweight", mode, "--gate", "off",
                    "--only", f"{photographs.name}/break") == 0
        folder = tmp_path / mode / photographs.name
        images.add((folder / "test/break/00000.png").read_bytes())
        masks.add((folder / "ground_truth/break/00000_mask.png").read_bytes())
    assert len(images) == 5 and len(masks) == 1


def wait_for(process, path, seconds=120):
    """Until the file is there; the process must still be running then."""
    end = time.monotonic() + seconds
    while not path.exists():
        assert process.poll() is None and time.monotonic() < end, process.communicate()
        time.sleep(0.05)


@pytest.fixture(scope="module")
def plain_pair(photographs):
    """--images and --masks: two folders of the same names, a third way in."""
    return ["--images", photographs / "test/crack", "--masks", photographs / "ground_truth/crack",
            "--name", "tile/crack", "--split", "third", "--batch-size", 2]


def test_more_steps_extend_a_run_to_what_a_longer_run_gives(checkpoint, plain_pair, tmp_path):
    for steps, out, more in ((3, "run", []), (6, "run", ["--resume"]), (6, "long", [])):
        assert call("train_embed", "--weights", checkpoint, *plain_pair, "--steps", steps,
                    "--out", tmp_path / out, *more) == 0
    assert differing(tmp_path / "run", tmp_path / "long") == []


def test_an_interrupted_command_says_so_and_exits_130(checkpoint, plain_pair, tmp_path):
    process = start("train_embed", "--weights", checkpoint, *plain_pair, "--steps", 5000,
                    "--out", tmp_path / "r")
    wait_for(process, tmp_path / "r/latent_to_rgb.safetensors")
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in errors and "Traceback" not in errors
