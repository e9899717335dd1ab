"""Hostile files: damaged at random, larger than they can be, of one pixel, or pickles."""

import json
import os
import pickle
import struct
import subprocess
import sys
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from fuzz_images import pictures, png
from PIL import Image

from anomaly.files.atomic_files import read_rows
from anomaly.files.mask_reading import read_mask
from anomaly.files.photographs import open_photograph, size_of
from anomaly.pairs.pair_folder import PairFolder
from anomaly.runs.run_folder import read_run
from anomaly.runs.run_tensors import read_tensors
from commands import call
from weights import load

HERE = Path(__file__).parent


@pytest.mark.parametrize("subject, cases, seed", [
    *((subject, 100, 7) for subject in ("weights", "images", "runs")),
    *(pytest.param(subject, cases, 2, marks=pytest.mark.fuzz) for subject, cases in (
        ("weights", 2000), ("images", 2000), ("runs", 1000)))])
def test_damaged_files_are_read_or_refused_in_a_line_each(tmp_path, subject, cases, seed):
    paths = os.pathsep.join(map(str, (HERE, HERE.parent / "tools", HERE.parent)))
    done = subprocess.run(
        [sys.executable, HERE / "fuzz.py", subject, tmp_path, str(cases), str(seed)],
        capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-2000:]
    print(done.stdout)
    found = json.loads(done.stdout)
    assert found["faults"] == [] and found["megabytes"] < 1024
    assert found["read"] + found["refused"] == cases and found["refused"] > cases / 2


@pytest.mark.parametrize("depth, colour, most", [(8, 2, 1032 / 3), (2, 0, 4 * 1032)])
def test_a_header_is_believed_as_far_as_the_file_can_hold_its_pixels(tmp_path, depth, colour, most):
    """Deflate makes at most 1,032 bytes of one."""
    path, side = tmp_path / "a.png", 20_000
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, depth, colour, 0, 0, 0)
    path.write_bytes(png(header, b"IDAT" + zlib.compress(bytes(1000)), b"IEND"))
    for way in (size_of, open_photograph, read_mask):
        with pytest.raises(ValueError, match="a.png: .*too few for 20000x20000 pixels"):
            way(path)
    path.write_bytes(png(header, b"IDAT" + bytes(int(side ** 2 / most)), b"IEND"))
    assert size_of(path) == (side, side)


def test_no_more_memory_is_asked_for_than_the_file_has(tmp_path):
    Image.new("L", (9, 8)).save(path := tmp_path / "a.png")
    start, end = path.read_bytes().split(b"IDAT")
    path.write_bytes(start[:-4] + b"\x7f\xff\xff\xffIDAT" + end)       # the chunk's length
    tracemalloc.start()
    assert open_photograph(path).values.max() == 0
    assert tracemalloc.get_traced_memory()[1] < 2 ** 22
    tracemalloc.stop()


def test_a_picture_of_one_pixel_is_read_in_every_format_and_mode(tmp_path):
    paths = pictures(tmp_path / "pictures", 1, 1)
    for path in paths:
        assert read_mask(path).tolist() == [[True]] and size_of(path) == (1, 1)
        if Image.open(path).mode != "F":        # a photograph has none
            assert open_photograph(path).values.shape[:2] == (1, 1)
    assert len(paths) > 90


def test_a_name_with_a_line_end_is_refused_in_one_line(tmp_path, checkpoint, capsys):
    for folder in "im":
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a\nb.png").write_bytes(b"x")
    assert call("train_embed", "--weights", checkpoint, "--images", tmp_path / "i", "--masks",
                tmp_path / "m", "--name", "o/d", "--out", tmp_path / "r") == 2
    assert "/a\\nb.png: cannot be read" in capsys.readouterr().err.splitlines()[-1]


class Trap:
    """What its pickle does when it is opened."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


READERS = {     # ending -> what reads such files
    **dict.fromkeys((".ckpt", ".bin", ".pt", ".pth", ".safetensors"), [load]),
    ".safetensors ": [read_tensors], ".csv": [lambda path: read_rows(path, ["step"])],
    **dict.fromkeys((".png", ".tif", ".jpg"), [open_photograph, read_mask, size_of]),
    ".json": [lambda path: read_run(path.parent), lambda path: PairFolder(path.parent.parent)]}


@pytest.mark.parametrize("ending", READERS)
@pytest.mark.parametrize("write", [
    lambda trap, path: path.write_bytes(pickle.dumps(trap, 0)),
    lambda trap, path: path.write_bytes(pickle.dumps(trap)),
    lambda trap, path: torch.save(trap, path),
    lambda trap, path: np.save(path.open("wb"), np.array([trap]))])
def test_no_pickle_is_opened(tmp_path, ending, write):
    path, trap = tmp_path / f"_meta/config{ending.strip()}", Trap(tmp_path / "opened")
    path.parent.mkdir()
    write(trap, path)
    for read in READERS[ending]:
        try:
            assert read(path) == []
        except ValueError as err:
            assert str(path) in str(err) and str(err).isprintable()
    assert not trap.path.exists()
    pickle.loads(pickle.dumps(trap))
    assert trap.path.exists()
