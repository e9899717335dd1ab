"""--add: more defects on the frozen encoder of a finished run, by several jobs at once."""

import os
import shutil
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from test_end_to_end import differing, files_of, wait_for

from anomaly.dataset import find_defects, first_third
from anomaly.embedding import AnomalyEmbedding
from anomaly.files.atomic_files import read_rows, write_json, write_tensors
from anomaly.files.holding import held
from anomaly.runs import add, run_state
from anomaly.runs.run_folder import load_masks, read_run
from anomaly.runs.run_state import LOSS_COLUMNS
from anomaly.runs.run_tensors import read_tensors
from commands import call, start

adding = import_module("anomaly.runs.adding")


@pytest.fixture(scope="module")
def base(checkpoint, photographs, tmp_path_factory):
    """A run of one defect of three."""
    run = tmp_path_factory.mktemp("base") / "run"
    assert call("train_embed", "--weights", checkpoint, "--data", photographs, "--out", run,
                "--steps", 3, "--batch-size", 2, "--only", f"{photographs.name}/crack") == 0
    return run


def more(run, photographs, *names):
    return call("train_embed", "--out", run, "--add",
                ",".join(f"{photographs.name}/{name}" for name in names))


@pytest.fixture(scope="module")
def both(base, photographs, tmp_path_factory):
    """It, with the two others joined to it one after the other."""
    run = shutil.copytree(base, tmp_path_factory.mktemp("both") / "run")
    assert more(run, photographs, "break") == 0 and more(run, photographs, "blowhole") == 0
    return run


def test_added_defects_are_learned_and_what_was_there_stays_as_it_is(base, both, photographs):
    before, after = files_of(base), files_of(both)
    assert {name for name in before if before[name] != after[name]} == {
        "config.json", "loss.csv", "gate.json", "gate.safetensors",
        "state/image.safetensors", "state/mask.safetensors"}
    assert not [*both.glob("state/add/*")]
    run, old = read_run(both), read_run(base)
    assert [d.name for d in run.defects] == ["crack", "break", "blowhole"]
    assert run.config["defects"][0] == old.config["defects"][0]
    for defect in run.defects:
        assert len(load_masks(run, defect)) == len(first_third(next(
            d for d in find_defects(photographs) if d.key == defect.key))[0])
        assert (both / f"previews/{defect.stem}.jpg").is_file() == (defect.name != "crack")
    for kind, key in (("image", "e_a"), ("mask", "e_m")):
        state = load_file(both / f"state/{kind}.safetensors")
        was = load_file(base / f"state/{kind}.safetensors")
        assert all((state[name] == was[name]).all() for name in was)
        assert {name for name in state if name not in was} == {
            f"{key}.{d.stem}{part}" for d in run.defects[1:]
            for part in ("", "|step", "|exp_avg", "|exp_avg_sq")}
    rows = [(r["stage"], int(r["step"])) for r in read_rows(both / "loss.csv", LOSS_COLUMNS)]
    assert rows == [(stage, step) for stage in ("image", "mask") for step in range(1, 10)]


def test_what_was_added_is_painted_at_once(both, photographs, tmp_path):
    assert call("sample", "--run", both, "--only", f"{photographs.name}/blowhole", "--masks",
                "train", "--n", 1, "--steps", 1, "--batch-size", 1, "--out", tmp_path) == 0
    assert len([*tmp_path.glob("*/test/blowhole/*.png")]) == 1


def test_more_steps_extend_all_defects(both, photographs, tmp_path):
    run = shutil.copytree(both, tmp_path / "run")
    assert call("train_embed", "--out", run, "--resume", "--steps", 4) == 0
    rows = [r for r in read_rows(run / "loss.csv", LOSS_COLUMNS) if r["stage"] == "image"]
    assert [r["defect"].split("-")[-1] for r in rows[9:]] == ["crack", "break", "blowhole"]
    state = load_file(run / "state/image.safetensors")
    assert {float(v) for k, v in state.items() if k.startswith("e_a") and "|step" in k} == {4}
    assert not [*run.glob("previews/*")] and Image.open(run / "preview.jpg").height > 3 * 128
    assert [d.name for d in read_run(run).defects] == ["crack", "break", "blowhole"]


def test_jobs_run_at_once_and_their_order_changes_no_defect(
        base, both, photographs, checkpoint, tmp_path):
    """Both learn while the run is held, say so once, and join when it is free."""
    run = shutil.copytree(base, tmp_path / "run")
    names = [f"{photographs.name}-{name}" for name in ("blowhole", "break")]
    with held(run):
        jobs = [start("train_embed", "--out", run, "--add", name.replace("-", "/"))
                for name in names]
        for job, name in zip(jobs, names):
            wait_for(job, run / f"state/add/{name}/preview.jpg")
            for line in job.stderr:
                if "waiting: " in line and "is writing there" in line:
                    break
    assert [job.wait(60) for job in jobs] == [0, 0]
    for name in names:      # not the guidance: a process of its own paints in more steps
        for file in (f"embeddings/{name}.safetensors", f"mask_embeddings/{name}.safetensors"):
            found, expected = load_file(run / file), load_file(both / file)
            assert all((found[key] == expected[key]).all() for key in expected)
    assert {d.key for d in read_run(run).defects} == {d.key for d in read_run(both).defects}
    assert not [*run.glob("state/add/*")]


def test_killed_between_any_two_files_it_is_joined_by_the_same_command(
        base, both, sd, photographs, tmp_path, monkeypatch):
    data, unbroken, run = find_defects(photographs)[1:2], tmp_path / "unbroken", tmp_path / "run"
    data = [replace(data[0], examples=first_third(data[0])[0])]
    add(sd, data, Path(shutil.copytree(base, unbroken)))
    left, replacing = [], os.replace

    def dying(source, target):
        if left and left.pop() is None:
            raise KeyboardInterrupt
        replacing(source, target)
    monkeypatch.setattr(adding, "_join", lambda *_: left.append(None) or write_json(run / "x", {}))
    with pytest.raises(KeyboardInterrupt), monkeypatch.context() as patch:
        patch.setattr("anomaly.files.atomic_files.os.replace", dying)
        add(sd, data, Path(shutil.copytree(base, run)))         # all is learned, nothing joined
    monkeypatch.undo()
    job, = [read_run(folder) for folder in run.glob("state/add/*")]
    for n in range(100):
        left[:] = [None, *[0] * n]
        with monkeypatch.context() as patch, suppress(KeyboardInterrupt):
            patch.setattr("anomaly.files.atomic_files.os.replace", dying)
            adding._join(run, [job])
        if left == []:
            assert [d.name for d in read_run(run).defects] == ["crack"]
            adding._check(read_run(run), [])                    # and is what it was
            state = run_state.load_state(read_run(run), "image", AnomalyEmbedding(
                sd, read_run(run).defects, 0), torch.optim.Adam([torch.zeros(1)]))
            assert state == 3
        else:
            break
    assert n > 10 and job.folder.exists()
    add(sd, data, run)
    assert differing(run, unbroken) == []


def test_what_cannot_be_added_is_refused_by_its_name(
        base, photographs, sd, tmp_path, capsys, monkeypatch):
    run = shutil.copytree(base, tmp_path / "run")
    name = f"{photographs.name}/break"
    for words, command in {
            "--add: no defect 'tile/x'": [name.replace("break", "x")],
            "--seed: not with --add": [name, "--seed", 1], "--resume: not": [name, "--resume"],
            "--add: no defect 'tile/break'; known are a/b": [
                name, "--images", photographs / "test/break", "--masks",
                photographs / "ground_truth/break", "--name", "a/b"]}.items():
        assert call("train_embed", "--out", run, "--add", *command) == 2
        assert words.replace("tile", photographs.name) in capsys.readouterr().err.splitlines()[-1]
    assert more(run, photographs, "crack") == 0         # as a job does that is run again
    assert f"has {photographs.name}/crack already" in capsys.readouterr().err
    (run / "gate.json").unlink()
    assert more(run, photographs, "break") == 2
    assert "with --resume" in capsys.readouterr().err
    monkeypatch.setattr(adding.processes, "count", lambda: 2)
    with pytest.raises(ValueError, match="--add: found 2 processes that learn together"):
        add(sd, [], run)


def test_a_run_that_was_trained_on_meanwhile_is_learned_on_again(
        base, sd, photographs, tmp_path, monkeypatch):
    run, real = shutil.copytree(base, tmp_path / "run"), adding._join

    def trained_on(*args):
        path = run / "spatial_encoder.safetensors"
        tensors, metadata = read_tensors(path)
        write_tensors(path, {name: t + 1 for name, t in tensors.items()}, metadata)
        return real(*args)
    data = find_defects(photographs)[:1]
    with monkeypatch.context() as patch, pytest.raises(ValueError, match="run the same command"):
        patch.setattr(adding, "_join", trained_on)
        add(sd, data, run)
    assert [d.name for d in read_run(run).defects] == ["crack"]
    again = load_file(run / "state/add/" / data[0].stem / "state/image.safetensors")
    add(sd, data, run)
    name = f"e_a.{data[0].stem}"
    assert (load_file(run / "state/image.safetensors")[name] != again[name]).any()
