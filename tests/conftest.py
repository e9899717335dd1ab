"""Shared fixtures: a small random checkpoint, and the photographs where there are any."""

import os
import shutil
from importlib import import_module
from pathlib import Path

import pytest
import torch

from benchmarks.random_models import save_checkpoint
from models_on_disk import SMALL_FAMILIES, write_small
from weights import load

torch.set_num_threads(1)      # several test runs on one machine do not fight for its cores


@pytest.fixture(scope="session", autouse=True)
def quick_preview():
    """Training ends by painting, for guidance and preview: here in 2 steps, not 20."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("anomaly.runs.learn"), "STEPS", 2)
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


@pytest.fixture(scope="session")
def photographs() -> Path:
    """The magnetic-tile photographs: DEFECT_PHOTOS is a category in MVTec AD layout."""
    path = os.environ.get("DEFECT_PHOTOS")
    if not path:
        pytest.skip("DEFECT_PHOTOS is not set: no real photographs to test with")
    assert (Path(path) / "ground_truth").is_dir(), f"DEFECT_PHOTOS={path} is not a data set"
    return Path(path)
