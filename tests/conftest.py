"""Shared fixtures: a small random checkpoint, and the photographs where there are any."""

import os
import shutil
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks.random_models import save_checkpoint
from models_on_disk import SMALL_FAMILIES, write_small
from weights import load

torch.set_num_threads(1)      # several test runs on one machine do not fight for its cores


@pytest.fixture(scope="session", autouse=True)
def quick_preview():
    """Training ends by painting, for guidance and preview: here in 2 steps, not 10."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("anomaly.runs.learn"), "STEPS", 2)
        yield


@pytest.fixture(scope="session", autouse=True)
def float32_on_every_cpu():
    """--dtype auto in this process is the same on all machines, and slow on none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cpu, "get_capabilities", dict)
        yield


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory) -> Path:
    """A diffusers folder with small random weights."""
    return save_checkpoint(tmp_path_factory.mktemp("checkpoint"))


@pytest.fixture
def folder(checkpoint, tmp_path) -> Path:
    """A copy of the checkpoint that a test may damage."""
    return shutil.copytree(checkpoint, tmp_path / "model")


@pytest.fixture(scope="session")
def written(tmp_path_factory) -> dict[str, Path]:
    """Small models of all families: name -> single file; the folder NAME lies beside it."""
    return write_small(tmp_path_factory.mktemp("families"))


@pytest.fixture
def single_files(written, monkeypatch) -> dict[str, Path]:
    """The same, with the loader's published sizes replaced by theirs."""
    monkeypatch.setattr("weights.checkpoint.FAMILIES", SMALL_FAMILIES)
    return written


@pytest.fixture(scope="session")
def sd(checkpoint):
    """It, loaded on the CPU."""
    return load(checkpoint)


def draw_tiles(folder: Path) -> Path:
    """18 grey photographs each of three defects on noise, a small one and two large; 8 normals."""
    rng, sides = np.random.default_rng(0), {"blowhole": 14, "break": 60, "crack": 50}
    places = [(kind, i) for kind in sides for i in range(18)]
    for kind, i in [*places, *(("good", i) for i in range(8))]:
        photograph = rng.integers(90, 140, (150, 200), np.uint8)
        mask = np.zeros(photograph.shape, np.uint8)
        if kind != "good":
            top, left = rng.integers(0, 150 - sides[kind], 2)
            mask[top:top + sides[kind], left:left + sides[kind]] = 255
            photograph[mask > 0] += 60 if kind == "break" else 176      # light, or dark by wrapping
            path = folder / f"ground_truth/{kind}/{i:03}_mask.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)
        path = folder / ("train/good" if kind == "good" else f"test/{kind}") / f"{i:03}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photograph).save(path)
    return folder


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> Path:
    """A category in MVTec AD layout: DEFECT_PHOTOS, the magnetic tiles, else drawn ones."""
    path = os.environ.get("DEFECT_PHOTOS")
    if not path:
        return draw_tiles(tmp_path_factory.mktemp("photographs") / "tile")
    assert (Path(path) / "ground_truth").is_dir(), f"DEFECT_PHOTOS={path} is not a data set"
    return Path(path)
