"""The stories as functions, and the tools round them: README's Python, defaults, help, progress."""

import errno
import importlib
import io
import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from display import Display
from PIL import Image

from anomaly import __version__
from anomaly.dataset import Defect, find_defects
from anomaly.drawn import demo
from anomaly.pairs import PairFolder, paint, training_masks
from anomaly.reweight import constant
from anomaly.runs import learn
from anomaly.runs.guidance import Strength
from anomaly.runs.learn import default_steps
from anomaly.runs.run_folder import read_run
from cli import run_tool, say
from commands import ROOT, call, start
from weights import load


@pytest.fixture(scope="module")
def grey_run(sd, tmp_path_factory):
    """A run on two grey photographs, and its folder."""
    folder = tmp_path_factory.mktemp("grey")
    mask = np.zeros((64, 64), np.uint8)
    mask[20:44, 20:44] = 255
    for name, pixels in (("test/crack/0", 255 - mask // 2), ("test/crack/1", mask // 2 + 20),
                         ("ground_truth/crack/0", mask), ("ground_truth/crack/1", mask),
                         ("train/good/0", np.full((64, 64), 90, np.uint8))):
        path = folder / "tile" / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    return learn(sd, find_defects(folder / "tile"), folder / "run",
                 steps=3, batch_size=2, mask_model=False)


def test_the_readmes_python_runs_as_it_stands(tmp_path, monkeypatch):
    for name, value in {"DEMO": (("wood", "burn"),), "DEFECTIVE": 2, "NORMALS": 1}.items():
        monkeypatch.setattr(demo, name, value)
    monkeypatch.setattr(importlib.import_module("anomaly.runs.learn"), "SMALL_STEPS", 2)
    monkeypatch.chdir(tmp_path)
    demo.demo_data(Path("runs/demo/demo"))
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert len(code.splitlines()) == 8
    found = {}
    exec(code, found)
    assert [pair.k for pair in found["pairs"]] == [0, 1, 2, 3] and found["run"].preview.is_file()
    for pair in found["pairs"]:
        assert Image.open(pair.image).size == Image.open(pair.mask).size == (256, 256)
        assert pair.change > 0


def test_steps_are_a_thousand_for_stable_diffusions_text_encoder(sd):
    assert default_steps(sd) == 100 and sd.text_encoder.config.width == 32
    assert default_steps(load("tiny")) == 100
    wide = type("", (), {"text_encoder": type("", (), {"config": type("", (), {"width": 768})})})
    assert default_steps(wide) == 1000


def test_a_run_is_resumed_with_its_own_steps(sd, grey_run):
    again = learn(sd, grey_run.defects, grey_run.folder,
                  batch_size=2, mask_model=False, resume=True)
    for run in (again, read_run(grey_run.folder)):
        assert run.config["options"]["steps"] == 3


def test_a_run_is_resumed_with_the_options_that_it_was_made_with(checkpoint, grey_run, tmp_path):
    made = ["train_embed", "--weights", checkpoint, "--data", grey_run.folder.parent / "tile",
            "--split", "all", "--no-masks", "--batch-size", 2, "--seed", 3, "--out", tmp_path]
    assert call(*made, "--steps", 1) == 0
    assert call("train_embed", "--out", tmp_path, "--resume", "--steps", 2) == 0
    options = read_run(tmp_path).config["options"]
    assert (options["steps"], options["batch_size"], options["seed"]) == (2, 2, 3)
    assert call("train_embed", "--out", tmp_path, "--resume", "--seed", 4) == 2
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == [
        "embeddings", "masks", "state"]


def test_resuming_in_python_keeps_what_the_tool_recorded(sd, grey_run, tmp_path):
    run = learn(sd, grey_run.defects, tmp_path, steps=1, batch_size=1, mask_model=False,
                options={"split": "all"})
    again = learn(sd, run.defects, tmp_path, batch_size=1, mask_model=False, resume=True)
    assert again.config["options"] == run.config["options"]
    assert again.config["options"]["split"] == "all"


@pytest.mark.parametrize("defects, words", [
    ([], "nothing to learn"), ([Defect("a", "b", ())], "nothing to learn"),
    ([Defect("a-b", "c", ()), Defect("a", "b-c", ())], "would both be written as a-b-c")])
def test_what_cannot_be_learned_is_refused_before_a_folder_is_made(sd, tmp_path, defects, words):
    with pytest.raises(ValueError, match=words):
        learn(sd, defects, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_defect_that_cannot_be_painted_stops_all_before_the_first_pair(sd, grey_run, tmp_path):
    learned, = grey_run.defects
    other = replace(learned, normals=None)
    with pytest.raises(ValueError, match="--normals: tile/crack was learned from data without"):
        next(paint(sd, grey_run, PairFolder(tmp_path), defects=[learned, other], steps=1,
                   masks=training_masks))
    assert not list(tmp_path.iterdir())


def test_the_preview_of_grey_photographs_is_grey(grey_run):
    pixels = np.asarray(Image.open(grey_run.preview)).astype(int)
    assert np.abs(pixels - pixels[:, :, :1]).max() <= 2        # as JPEG has it


@pytest.mark.parametrize("more, scale, said", [
    ({}, None, 0), ({"weigh": constant}, 1.0, 1), ({"weigh": constant, "guidance": 3.0}, 3.0, 0)])
def test_with_a_reweighting_the_guidance_found_without_it_is_left(
        sd, grey_run, tmp_path, monkeypatch, caplog, more, scale, said):
    module, seen = importlib.import_module("anomaly.pairs.paint"), []
    found = Strength(2.5, 1.0, ((0.0, 0.0), (2.5, 1.0)))
    monkeypatch.setattr(module.run_folder, "load_strength", lambda run, defect: found)
    original = module.paint_crops
    monkeypatch.setattr(module, "paint_crops", lambda *args: (
        seen.append(args[-1].guidance.scale), original(*args))[1])
    caplog.set_level("INFO", "anomaly")
    pairs = list(paint(sd, grey_run, PairFolder(tmp_path), n=1, masks=training_masks,
                       steps=2, batch_size=1, **more))
    assert seen == [scale or 2.5] and len(pairs) == 1
    assert sum("the guidance is 1" in r.getMessage() for r in caplog.records) == said


def test_the_record_of_a_folder_has_the_scale_that_a_reweighting_brings(sd, grey_run, tmp_path):
    command = ["sample", "--run", grey_run.folder, "--masks", "train", "--n", 1,
               "--batch-size", 1, "--steps", 2, "--reweight", "adaptive", "--out", tmp_path]
    assert call(*command) == 0
    record = json.loads((tmp_path / "_meta/config.json").read_text())
    assert (record["guidance"], record["reweight"]) == (1.0, "adaptive")
    assert record["version"] == __version__
    assert call(*command, "--guidance", 1) == 0 and call(*command, "--guidance", 2) == 2


@pytest.mark.parametrize("tool", ["train_embed", "sample", "bench", "pretrain_tiny"])
def test_help_is_short_has_a_unit_for_every_value_and_two_examples(tool):
    shown, errors = start(tool, "--help").communicate()
    assert errors == "" and len(shown.splitlines()) <= 60
    examples = shown.split("examples:")[1].splitlines()
    assert sum(f"python tools/{tool}.py" in line for line in examples) == 2
    options = re.findall(r"^  (--[\w-]+)(.*)$", shown, re.MULTILINE)
    for option, rest in options:
        takes_nothing = option in ("--version", "--no-masks", "--no-flip", "--resume",
                                   "--checkpointing")
        assert takes_nothing or re.match(r" ([A-Z]|\{)", rest), option
    assert start(tool, "--version").communicate()[0] == f"few-shot-defects {__version__}\n"


@pytest.mark.parametrize("error, code, words", [
    (MemoryError(), 1, "not enough memory; give a smaller --batch-size, --size or --resolution"),
    (RuntimeError("[enforce] DefaultCPUAllocator: can't allocate"), 1, "not enough memory"),
    (OSError(errno.ENOSPC, "No space left on device"), 1, "make room on the disk"),
    (PermissionError(13, "Permission denied", "/o/x"), 2, "/o/x: permission denied; check the"),
    (NotADirectoryError(20, "Not a directory", "/f/x"), 2, "/f/x: not a directory; check"),
    (ValueError("--size: 3"), 2, "--size: 3"),
    (KeyboardInterrupt(), 130, "interrupted; what is written is whole")])
def test_every_error_is_one_line_with_a_remedy_and_its_exit_code(capsys, error, code, words):
    def fail():
        raise error
    assert run_tool("x.py", fail) == code
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f"x.py: {words}") or words in line


def test_whoever_closes_stdout_does_not_stop_the_work(monkeypatch):
    class Closed(io.StringIO):
        def write(self, text):
            raise BrokenPipeError
    monkeypatch.setattr(sys, "stdout", Closed())
    say(Path("a"))
    say(Path("b"))


def test_progress_without_a_terminal_is_a_line_at_the_end_of_each_part(capsys):
    with Display() as report:
        for done in range(4):
            report("painting", done, 3, f"loss {done}")
        report("resting", 0, 2)
    assert re.fullmatch(r"painting: 3/3 loss 3 \(0 s\)\n", capsys.readouterr().err)


def test_masks_lie_on_the_object_that_auto_finds_unless_told_otherwise(
        grey_run, tmp_path, capsys):
    """The training mask is in the middle, the object of 40 x 40 at the bottom right."""
    normal, part = np.full((96, 96), 200, np.uint8), np.zeros((96, 96), np.uint8)
    normal[50:90, 50:90], part[4:40, 4:40] = 60, 255
    for folder, pixels in (("good", normal), ("parts", part)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "0.png")
    command = ["sample", "--run", grey_run.folder, "--masks", "train", "--n", 1, "--steps", 1,
               "--batch-size", 1, "--normals", tmp_path / "good"]
    masks = {}
    for kind in (None, "none", tmp_path / "parts"):
        out = tmp_path / str(len(masks))
        assert call(*command, *([] if kind is None else ["--foreground", kind]), "--out", out) == 0
        mask, = out.glob("*/ground_truth/*/*.png")
        masks[kind] = np.argwhere(np.asarray(Image.open(mask))).min(axis=0).tolist()
        record = json.loads((out / "_meta/config.json").read_text())
        assert record["foreground"] == str(kind or "auto")
        if kind is None:
            err = capsys.readouterr().err
            assert "good: --foreground auto: an object, which covers 17 % of a photograph" in err
            assert "looking for an object: 1/1" in err
    assert 20 < min(masks["none"]) and max(masks["none"]) < 48     # turned and moved a little
    assert sum(masks[tmp_path / "parts"]) <= 2 * 20
    assert 46 <= min(masks[None]) and max(masks[None]) <= 66
    assert call(*command, "--out", tmp_path / "1") == 2
    assert "--foreground: 'auto', but the pairs in" in capsys.readouterr().err


def test_a_folder_from_before_the_option_goes_on_without_a_foreground(grey_run, tmp_path):
    command = ["sample", "--run", grey_run.folder, "--masks", "train", "--steps", 1,
               "--batch-size", 1, "--out", tmp_path]
    assert call(*command, "--n", 1, "--foreground", "none") == 0
    path = tmp_path / "_meta/config.json"
    record = json.loads(path.read_text())
    del record["foreground"]
    path.write_text(json.dumps(record))
    assert call(*command, "--n", 2) == 2
    assert call(*command, "--n", 2, "--foreground", "none") == 0
    assert len(list(tmp_path.glob("*/test/*/*.png"))) == 2
