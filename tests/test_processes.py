"""Joint training under torchrun, and what ends, moves or changes a training."""

import json
import os
import shutil
import signal
import subprocess
import sys

import pytest
from PIL import Image
from safetensors.torch import load_file
from test_end_to_end import differing, wait_for

from anomaly.dataset import find_defects
from anomaly.drawn import demo
from anomaly.files.atomic_files import read_rows
from anomaly.progress import Stopped
from anomaly.runs import learn
from anomaly.runs.run_folder import read_run
from anomaly.runs.run_state import LOSS_COLUMNS
from commands import ROOT, call, start


def joint(*command):
    """Exit code and stderr of two processes that torchrun starts."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         ROOT / "tools/train_embed.py", *map(str, command)], capture_output=True, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"})
    return done.returncode, done.stdout, done.stderr


def test_two_processes_learn_as_one_with_twice_the_batch(checkpoint, photographs, tmp_path, capsys):
    data = ["--dtype", "fp32", "--weights", checkpoint, "--data", photographs, "--only",
            f"{photographs.name}/crack,{photographs.name}/break", "--steps", 10]
    code, out, err = joint(*data, "--batch-size", 2, "--out", tmp_path / "two")
    assert code == 0 and out == f"{tmp_path / 'two/preview.jpg'}\n", err
    assert err.count("catches") == 2        # the first process alone speaks
    assert call("train_embed", *data, "--batch-size", 4, "--out", tmp_path / "one") == 0
    one, two = (read_rows(tmp_path / name / "loss.csv", LOSS_COLUMNS) for name in ("one", "two"))
    assert len(one) == len(two) == 40
    for a, b in zip(one, two):
        assert a["defect"] == b["defect"]
        for column in ("loss", "e_a", "e_s", "e_m"):
            assert a[column] == b[column] or float(a[column]) == pytest.approx(
                float(b[column]), rel=1e-3), (a, b)
    for path in [*(tmp_path / "one").glob("*embeddings/*")]:
        other = load_file(tmp_path / "two" / path.relative_to(tmp_path / "one"))
        for key, value in load_file(path).items():
            assert (value - other[key]).abs().max() < 1e-3 * value.square().mean().sqrt()
    states = [load_file(tmp_path / name / "state/image.safetensors") for name in ("one", "two")]
    assert {k: float(v) for k, v in states[0].items() if k.endswith("|step")} == {
        k: float(v) for k, v in states[1].items() if k.endswith("|step")}
    options = [read_run(tmp_path / name).config["options"] for name in ("one", "two")]
    assert [o.get("processes") for o in options] == [None, 2] and options[1]["batch_size"] == 2

    resume = ["train_embed", "--out", tmp_path / "two", "--resume", "--steps", 11]
    assert call(*resume, "--batch-size", 2) == 2        # of one process: half of it
    assert "--batch-size: 2 views a step in all (processes: 1)" in capsys.readouterr().err
    assert call(*resume) == 0                           # one process takes the batch of two
    assert read_run(tmp_path / "two").config["options"] == {**options[1], "steps": 11}


@pytest.fixture
def one_defect(sd, photographs):
    return find_defects(photographs)[:1]


def test_a_training_that_is_told_to_stop_saves_its_step_and_goes_on(sd, one_defect, tmp_path):
    common = dict(steps=5, batch_size=2)
    learn(sd, one_defect, tmp_path / "unbroken", **common)
    learned, told = [], []
    with pytest.raises(Stopped):
        learn(sd, one_defect, tmp_path / "run", **common, stop=lambda: len(learned) > 3,
              report=lambda label, *rest: learned.append(rest) if "images" in label else None)
    assert len(read_rows(tmp_path / "run/loss.csv", LOSS_COLUMNS)) == 3
    for label in ("finding", "calibrating", "learning masks", "drawing"):   # and anywhere later
        told.clear()
        with pytest.raises(Stopped):
            learn(sd, one_defect, tmp_path / "run", **common, resume=True, stop=lambda: told != [],
                  report=lambda now, *_, at=label: told.append(1) if now.startswith(at) else None)
    learn(sd, one_defect, tmp_path / "run", **common, resume=True)
    assert differing(tmp_path / "run", tmp_path / "unbroken") == []


def test_sigterm_ends_training_with_143_and_a_state(checkpoint, photographs, tmp_path):
    process = start("train_embed", "--weights", checkpoint, "--data", photographs, "--only",
                    f"{photographs.name}/crack", "--out", tmp_path, "--steps", 9000)
    wait_for(process, tmp_path / "loss.csv")
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143 and "terminated" in errors
    assert (tmp_path / "state/image.safetensors").exists()


def test_a_run_that_has_moved_paints_resumes_and_takes_more(checkpoint, tmp_path, monkeypatch):
    for name, value in {"DEMO": (("wood", "burn"), ("metal", "scratch")), "DEFECTIVE": 3,
                        "NORMALS": 1}.items():
        monkeypatch.setattr(demo, name, value)
    run = tmp_path / "new/place"
    assert call("train_embed", "--weights", checkpoint, "--out", tmp_path / "old", "--steps", 1,
                "--only", "wood/burn") == 0
    shutil.move(tmp_path / "old", run)
    assert str(tmp_path) not in json.dumps(read_run(run).config["defects"])
    assert call("sample", "--run", run, "--masks", "train", "--n", 1, "--steps", 1, "--out",
                tmp_path / "out") == 0
    assert call("train_embed", "--out", run, "--resume", "--steps", 2) == 0
    assert call("train_embed", "--out", run, "--add", "metal/scratch") == 0
    config = json.loads((run / "config.json").read_text())
    for row in config["defects"]:       # as they were written before
        row["normals"] = str(run / row["normals"])
        for each in row["train"]:
            each["image"], each["masks"] = str(run / each["image"]), [
                str(run / mask) for mask in each["masks"]]
    (run / "config.json").write_text(json.dumps(config))
    assert call("train_embed", "--out", run, "--resume", "--steps", 3) == 0
    assert [d.key for d in read_run(run).defects] == ["wood/burn", "metal/scratch"]


@pytest.mark.parametrize("label", ["encoding tile", "learning images", "calibrating", "encoding m",
                                   "learning masks", "drawing"])
@pytest.mark.parametrize("gone", [False, True])
def test_a_photograph_that_changes_while_it_is_learned_is_refused(
        sd, photographs, one_defect, tmp_path, label, gone):
    data = shutil.copytree(photographs, tmp_path / "tile")
    defect, path = find_defects(data)[:1], data / "test/blowhole/002.jpg"

    def change(now, done, total, note):
        if now.startswith(label) and done == total and path.exists():
            size = Image.open(path).size
            path.unlink()
            if not gone:
                Image.new("L", size, 99).save(path)
    words = "no such" if gone and label == "encoding tile" else "gone" if gone else "changed"
    with pytest.raises((ValueError, FileNotFoundError), match=f"{path}: {words}"):
        learn(sd, defect, tmp_path / "run", steps=1, batch_size=1, report=change)
    assert not (tmp_path / "run/preview.jpg").exists()
    written = {"calibrating": "embeddings", "encoding m": "state/mask.safetensors",
               "encoding tile": "state"}
    assert label not in written or not (tmp_path / "run" / written[label]).exists()
