"""Every write fails once: what is complete stays valid, and the same command makes the rest.

Writes are counted and failed where Python does them: a file opened for writing, its content, its
renaming, a folder made, and the files that safetensors writes.
"""

import builtins
import errno
import io
import os
import time
from importlib import import_module

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from test_shards import KILLS, bytes_of, command, killed, trained  # noqa: F401

from anomaly.files.atomic_files import write_tensors
from anomaly.files.mask_reading import read_mask
from anomaly.files.photographs import read_photograph
from anomaly.pairs.manifest import manifest_rows
from anomaly.runs.gating import load_gate
from anomaly.runs.run_folder import load_strength, read_run
from commands import TOOLS, call, end_of, fork


class FullDisk:
    """Counts the writes below a folder and fails one of them, as the system would."""

    def __init__(self, folder, number=None, code=errno.ENOSPC):
        self.folder, self.number, self.code, self.writes = str(folder), number, code, 0

    def write(self, path, *named):
        if str(path).startswith(self.folder):
            self.writes += 1
            if self.writes == self.number:
                raise OSError(self.code, os.strerror(self.code), *named)

    def install(self, patch):
        opened, real = io.open, {}

        class Slow(io.FileIO):
            """A file that asks before each write, so that half of a picture may be there."""

            def write(inner, data):
                self.write(inner.name)
                return super().write(data)

        def open_(file, mode="r", *more, **named):
            if isinstance(file, int) or not set(mode) & set("wax+"):
                return opened(file, mode, *more, **named)
            self.write(file, file)
            if "b" not in mode:
                return opened(file, mode, *more, **named)
            buffer = io.BufferedRandom if "+" in mode else io.BufferedWriter
            return buffer(Slow(file, mode.replace("b", "")), 4096)

        for owner, name in ((os, "replace"), (os, "mkdir"), (os, "unlink")):
            real[name] = getattr(owner, name)
            patch.setattr(os, name, lambda path, *more, _real=real[name], **named: (
                self.write(path, path), _real(path, *more, **named))[1])
        patch.setattr(builtins, "open", open_), patch.setattr(io, "open", open_)
        return self


def test_no_library_writes_tensors_to_the_disk(tmp_path, monkeypatch):
    """safetensors has a temporary file of its own, of any name, which stays after a kill."""
    def refuse(*_, **__):
        raise AssertionError("writes by itself")
    monkeypatch.setattr("safetensors.torch.serialize_file", refuse)
    write_tensors(tmp_path / "a", {"b": torch.ones(2)}, {"step": "1"})
    assert load_file(tmp_path / "a")["b"].tolist() == [1, 1]


def faulty(folder, number, code, *argv):
    """The tool with one write failed: exit code, how many writes there were."""
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(folder, number, code).install(patch)
        return call(*argv), disk.writes


def check_pairs(out):
    """What the manifest knows is whole, and nothing else lies there."""
    rows = manifest_rows(out)
    images = {row["image"] for row in rows if (out / row["image"]).exists()}
    assert {str(path.relative_to(out)) for path in out.glob("*/test/*/*.png")} == images
    for row in rows:
        if row["image"] in images:
            mask = read_mask(out / row["mask"])
            assert read_photograph(out / row["image"]).shape[:2] == mask.shape and mask.any()


def survived(folder, codes, capsys, begin, again, expected, check):
    """Fail every write of begin once; again makes the rest; returns how many there were."""
    _, writes = faulty(folder / "all", None, 0, *begin(folder / "all"))
    for number in range(1, writes + 1):
        for code in (errno.ENOSPC, errno.EIO)[number % 2:][:codes]:
            out = folder / f"{number} {code}"
            end, _ = faulty(out, number, code, *begin(out))
            error = capsys.readouterr().err.splitlines()[-1]
            told = str(out) in error and ("make room on" in error or code == errno.EIO)
            assert end == 0 or end == 1 and told, (number, error)
            check(out)
            assert call(*again(out)) == 0
            assert bytes_of(out) == expected, number
    print(f"{codes * writes} faults in {writes} writes")
    return writes


CODES = [1, pytest.param(2, marks=pytest.mark.fuzz)]     # the two errors in turn, or both


@pytest.mark.parametrize("codes", CODES)
def test_every_write_of_sampling_may_fail(
        trained, sd, tmp_path, capsys, monkeypatch, codes):  # noqa: F811
    monkeypatch.setattr(TOOLS["sample"], "load", lambda *_: sd)

    def begin(out):
        return command(trained, out, "--gate", "off", "--steps", 1, n=3)
    assert call(*begin(tmp_path / "unbroken")) == 0
    assert survived(tmp_path, codes, capsys, begin, begin, bytes_of(tmp_path / "unbroken"),
                    check_pairs) > 60


@pytest.fixture
def training(trained, sd, monkeypatch):  # noqa: F811
    """Begins a training of two steps in each stage; what takes long is done once for all."""
    story, run = import_module("anomaly.runs.learn"), read_run(trained / "run")
    defect, = run.defects
    found = {"strength_of": load_strength(run, defect), "gate_of": load_gate(run, defect),
             "preview_row": ("x", [np.zeros((8, 8), np.uint8)]),
             "random_views": story.random_views(sd, defect, 64, True, 0, story.silent)}
    for name, value in found.items():
        monkeypatch.setattr(story, name, lambda *_, value=value: value)
    monkeypatch.setattr(story.run_state, "SAVE_EVERY", 1)
    monkeypatch.setattr(TOOLS["train_embed"], "load", lambda *_: sd)

    def begin(out):
        """As it is told to the user: with --resume once something was learned."""
        learned = (out / "state").exists() or (out / "embeddings").exists()
        return ("train_embed", "--weights", sd.source, "--images", trained / "img", "--masks",
                trained / "msk", "--name", defect.key, "--steps", 2, "--batch-size", 1, "--out",
                out, *(["--resume"] if learned else []))
    return begin


def check_run(out):
    """What is there can be read, and a run that is not finished is not painted with."""
    for path in out.rglob("*.safetensors"):
        load_file(path)
    if (out / "config.json").exists():
        read_run(out)
    if not (out / "embeddings").exists():
        assert call("sample", "--run", out, "--out", out.with_name(f"{out.name} pairs")) == 2


@pytest.mark.parametrize("codes", CODES)
def test_every_write_of_training_may_fail(training, tmp_path, capsys, codes):
    assert call(*training(tmp_path / "unbroken")) == 0
    assert survived(tmp_path, codes, capsys, training, training, bytes_of(tmp_path / "unbroken"),
                    check_run) > 40


@pytest.mark.parametrize("kills", KILLS)
def test_training_killed_at_any_moment_ends_as_an_unbroken_one(training, tmp_path, kills):
    began = time.monotonic()
    assert end_of(fork(*training(tmp_path / "unbroken"))) == 0
    killed(lambda out: fork(*training(out)), tmp_path, kills, time.monotonic() - began)
    for out in tmp_path.glob("killed*"):
        check_run(out)
        assert call(*training(out)) == 0
        assert bytes_of(out) == bytes_of(tmp_path / "unbroken")
