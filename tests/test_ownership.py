"""What is not ours is never touched, one process at a time writes, and what is gone is named."""

import json
import os
import shutil
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import load_file, save_file

from anomaly.files import holding
from anomaly.files.atomic_files import read_rows
from anomaly.files.holding import held
from anomaly.files.photographs import _largest
from anomaly.pairs.manifest import COLUMNS
from commands import call


def draw(folder, n=3, name="{}.png", mask=False):
    """n noisy photographs, or masks with one blob each."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for i in range(n):
        pixels = rng.integers(80, 140, (60, 80), dtype=np.uint8)
        if mask:
            pixels[:] = 0
            pixels[20 + i:40 + i, 30:52] = 255
        Image.fromarray(pixels).save(folder / name.format(i))
    return folder


@pytest.fixture
def photographs(tmp_path):
    """Photographs, masks and normals."""
    draw(tmp_path / "img"), draw(tmp_path / "msk", mask=True), draw(tmp_path / "good", 2)
    return tmp_path


def train(checkpoint, folder, *more, out="run"):
    return call("train_embed", "--weights", checkpoint, "--images", folder / "img", "--masks",
                folder / "msk", "--name", "tile/blowhole", "--steps", 1, "--out", folder / out,
                *more)


def sample(folder, *more, masks="train", out="out"):
    return call("sample", "--run", folder / "run", "--normals", folder / "good", "--masks", masks,
                "--steps", 2, "--n", 2, "--batch-size", 2, "--out", folder / out, *more)


@pytest.fixture
def run(photographs, checkpoint):
    assert train(checkpoint, photographs) == 0
    return photographs


def everything(folder):
    """path -> bytes of every file."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys, code, *words):
    error = capsys.readouterr().err.splitlines()[-1]
    assert code == 2 and all(word in error for word in words), error


# the pairs' folder

@pytest.mark.parametrize("file", [
    "tile/test/blowhole/00000.png", "tile/ground_truth/blowhole/00001_mask.png", "notes.txt",
    "photos/a.jpg", "_meta/manifest.csv", "_meta/mine.txt", "_meta/.lock"])
def test_a_folder_with_files_of_the_users_is_refused_and_stays(run, capsys, file):
    path = run / "out" / file
    path.parent.mkdir(parents=True)
    path.write_bytes(b"mine")
    before = everything(run)
    refused(capsys, sample(run), str(path), "never touched; choose a new or empty --out")
    assert everything(run) == before


@pytest.mark.parametrize("file", ["test/blowhole/00003.png", "ground_truth/blowhole/00003_mask.png",
                                  "test/blowhole/00002.png"])
def test_a_pair_that_no_row_knows_is_never_overwritten(run, capsys, file):
    assert sample(run) == 0
    path = run / "out/tile" / file
    path.write_bytes(b"mine")
    before = everything(run / "out")
    refused(capsys, sample(run, "--n", 4), str(path), "no row of", "never overwritten")
    assert holding.LOCK in {path.name for path in before}
    assert everything(run / "out") == before


def test_hidden_files_and_an_empty_folder_do_not_stop_it(run):
    (run / "out").mkdir()
    (run / "out/.DS_Store").write_bytes(b"x")
    assert sample(run) == 0 and (run / "out/.DS_Store").read_bytes() == b"x"


def test_inputs_are_never_opened_for_writing(run, checkpoint):
    for folder in ("img", "msk", "good"):
        for path in (run / folder).iterdir():
            path.chmod(0o444)
    before = {f: everything(run / f) for f in ("img", "msk", "good", "run")}
    assert sample(run) == 0 and sample(run, masks=run / "msk", out="b") == 0
    assert {f: everything(run / f) for f in before} == before
    for out in ("img", "good", "run"):
        assert sample(run, out=out) == 2
    assert train(checkpoint, run, out="good") == 2
    assert {f: everything(run / f) for f in before} == before


@pytest.mark.parametrize("lost", [["test"], ["test", "ground_truth"]])
def test_a_pair_that_a_kill_cut_short_is_known_by_its_row_and_made_again(run, lost):
    assert sample(run) == 0
    before = everything(run / "out")
    for part in lost:
        next((run / "out/tile" / part / "blowhole").glob("00001*")).unlink()
    assert sample(run) == 0 and everything(run / "out") == before


def test_what_a_kill_cut_short_and_nobody_asks_for_again_is_taken_away(run):
    assert sample(run) == 0
    (run / "out/tile/test/blowhole/00001.png").unlink()
    assert sample(run, "--n", 1) == 0
    assert [r["k"] for r in read_rows(run / "out/_meta/manifest.csv", COLUMNS)] == ["0"]
    assert not (run / "out/tile/ground_truth/blowhole/00001_mask.png").exists()


def test_a_folder_is_free_again_when_its_process_dies_or_fails(tmp_path):
    code = ("import sys, time; from pathlib import Path; from anomaly.files.holding import held\n"
            "with held(Path(sys.argv[1])): print('held', flush=True); time.sleep(60)")
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "a"], stdout=subprocess.PIPE,
                          text=True) as process:
        assert process.stdout.readline() == "held\n"
        with pytest.raises(FileExistsError, match=f"a: process {process.pid} is writing there"):
            with held(tmp_path / "a"):
                pass
        process.kill()
    for _ in range(2):
        with pytest.raises(KeyError), held(tmp_path / "b"):
            raise KeyError
        assert not (tmp_path / "b").exists()    # nothing was written
    with held(tmp_path / "b"):
        (tmp_path / "b/x").write_text("x")
    assert (tmp_path / "b/x").exists()


def test_a_drive_without_locks_is_said(tmp_path, monkeypatch, caplog):
    def no_locks(file):
        raise OSError(37, "No locks available")
    monkeypatch.setattr(holding, "_lock", no_locks)
    with caplog.at_level("INFO", "anomaly"), held(tmp_path / "a"):
        pass
    assert "a: cannot be locked (No locks available): let no second process" in caplog.text


# the run's folder

def test_a_lock_that_others_took_away_or_made_is_seen(tmp_path):
    with pytest.raises(FileExistsError, match="a: process .* is writing there"):
        with held(tmp_path / "a"):
            (tmp_path / "a/x").touch()
            (tmp_path / "a/.lock").rename(tmp_path / "old")
            with held(tmp_path / "a"):      # another lock; the first one's is gone
                with held(tmp_path / "a"):
                    pass
    assert (tmp_path / "a/x").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.lock").symlink_to(tmp_path / "old")
    with pytest.raises(OSError), held(tmp_path / "b"):
        pass
    assert (tmp_path / "old").read_text().isdigit()


def test_a_link_to_nothing_and_no_path_are_no_folders(run, capsys):
    (run / "link").symlink_to(run / "nowhere")
    refused(capsys, sample(run, out="link"), "link: a link to", "which is not there")
    assert call("sample", "--out", "") == 2 and call("train_embed", "--images", "") == 2
    assert "found '', expected a path" in capsys.readouterr().err


@pytest.mark.parametrize("change, words", [
    (lambda path: path.unlink(), "is gone, and the pairs that are there depend on it; bring it"),
    (lambda path: path.write_bytes(path.read_bytes() + b"x"), "when the pairs that are there were"),
    (lambda path: shutil.copy(path, path.with_name("9.bmp")), "9.bmp: has come since the pairs"),
    (lambda path: path.write_bytes(path.read_bytes()[:-80] + bytes(80)), "has changed since")])
def test_a_normal_that_came_went_or_changed_between_two_commands_is_named(
        run, capsys, change, words):
    """By its size, and where that is the same by its hash."""
    shutil.rmtree(run / "good")
    draw(run / "good", 2, "{}.bmp")
    assert sample(run, "--n", 4) == 0
    before = everything(run / "out")
    change(run / "good/0.bmp")
    refused(capsys, sample(run, "--n", 8), "good/", words)
    assert everything(run / "out") == before


def test_a_normal_that_changes_while_it_is_painted_into_is_named(run, capsys, monkeypatch):
    story = import_module("anomaly.pairs.paint")
    paint = story.paint_crops

    def painted(*arguments):
        draw(run / "good", 2, mask=True)
        return paint(*arguments)
    monkeypatch.setattr(story, "paint_crops", painted)
    refused(capsys, sample(run, "--gate", "off"), "has changed while it was painted into")
    assert not (run / "out").exists()


def test_white_stays_what_it_was_for_the_pairs_that_are_there(run, capsys):
    for i, largest in enumerate((900, 4000)):
        values = np.random.default_rng(i).integers(0, largest, (60, 80)).astype(np.uint16)
        values[0, 0] = largest
        Image.fromarray(values).save(run / f"good/{i}.png")
    assert sample(run) == 0
    (run / "good/1.png").rename(run / "away.png")
    _largest.cache_clear()
    refused(capsys, sample(run, "--n", 3), "--normals: white of the 16-bit photographs is 1023",
            "bring them back")
    (run / "away.png").rename(run / "good/1.png")
    _largest.cache_clear()
    assert sample(run, "--n", 3) == 0


@pytest.mark.parametrize("file", [
    "notes.txt", ".lock", "demo/mine.txt", "demo.part/x", "config.json", "preview.jpg",
    "state/image.bin", "embeddings/a.safetensors", "loss.csv"])
def test_training_into_a_folder_of_the_users_is_refused(photographs, checkpoint, capsys, file):
    path = photographs / "run" / file
    path.parent.mkdir(parents=True)
    path.write_text("{}")
    refused(capsys, train(checkpoint, photographs), str(path))
    assert everything(photographs / "run") == {path: b"{}"}


def test_an_object_is_not_called_like_the_folder_of_no_pair(photographs, checkpoint, capsys):
    refused(capsys, train(checkpoint, photographs, "--name", "_meta/x"), "_meta/x: _meta is the")


def test_the_state_of_a_run_whose_config_is_gone_is_not_learned_from(run, checkpoint, capsys):
    (run / "run/config.json").unlink()
    before = everything(run / "run")
    refused(capsys, train(checkpoint, run), str(run / "run"), "choose a new or empty --out")
    assert everything(run / "run") == before


def test_two_trainings_do_not_share_a_folder(photographs, checkpoint, capsys):
    with held(photographs / "run"):
        refused(capsys, train(checkpoint, photographs), f"process {os.getpid()} is writing there")
    assert train(checkpoint, photographs) == 0


@pytest.mark.parametrize("file", ["img/1.png", "msk/2.png"])
def test_a_picture_that_was_replaced_under_its_name_is_refused(run, checkpoint, capsys, file):
    pixels = np.asarray(Image.open(run / file))[::-1]
    Image.fromarray(pixels).save(run / file)
    refused(capsys, train(checkpoint, run, "--resume", "--steps", 2), str(run / file),
            "another picture than the one that the run")


def test_a_run_made_by_way_of_a_link_resumes_by_its_target(photographs, checkpoint):
    (photographs / "link").symlink_to(photographs)
    assert train(checkpoint, photographs / "link") == 0
    assert train(checkpoint, photographs, "--resume", "--steps", 2) == 0


def test_a_run_of_version_0_1_resumes_without_hashes(run, checkpoint):
    path = run / "run/config.json"
    config = json.loads(path.read_text())
    for row in config["defects"][0]["train"]:
        row["mask"] = row.pop("masks")[0]
        del row["sha256"]
    path.write_text(json.dumps(config))
    shutil.rmtree(run / "run/masks")
    assert sample(run) == 2
    assert train(checkpoint, run, "--resume", "--steps", 2) == 0 and sample(run) == 0


@pytest.mark.parametrize("metadata", [{}, {"weights_sha256": "ab" * 32}])
def test_an_embedding_of_another_checkpoint_is_refused(run, capsys, metadata):
    path = run / "run/embeddings/tile-blowhole.safetensors"
    save_file(load_file(path), path, {"steps": "1", "guidance": "1", **metadata})
    refused(capsys, sample(run), str(path), "learned on another model than the run")


# what is gone

def test_painting_needs_no_training_photograph(run, capsys, monkeypatch):
    assert sample(run) == 0
    for folder in ("img", "msk"):
        shutil.move(run / folder, run / f"old_{folder}")
    assert sample(run, out="again") == 0
    for path, content in everything(run / "out/tile").items():
        assert (run / "again/tile" / path.relative_to(run / "out/tile")).read_bytes() == content
    assert sample(run, "--n", 1, masks="learned", out="l") == 1     # the random model draws none
    assert "none of" in capsys.readouterr().err


def test_a_checkpoint_that_has_moved_is_named_with_the_remedy(photographs, folder, capsys):
    assert train(folder, photographs) == 0
    shutil.move(folder, folder.with_name("new"))
    refused(capsys, sample(photographs), f"{folder}: the checkpoint of", "--resume --weights NEW")
    assert train(folder.with_name("new"), photographs, "--resume") == 0 and sample(photographs) == 0


def test_a_size_beyond_the_models_is_refused(photographs, checkpoint, sd, capsys):
    refused(capsys, train(checkpoint, photographs, "--size", 4 * sd.native_size + 64), "--size",
            f"at most {4 * sd.native_size}")


@pytest.fixture
def disk(run):
    """Mounts a small disk at run / "out", an other file system than that of the run."""
    def mount(options):
        (run / "out").mkdir(exist_ok=True)
        if not shutil.which("mount") or subprocess.run(
                ["mount", "-t", "tmpfs", "-o", options, "tmpfs", run / "out"],
                capture_output=True).returncode:
            pytest.skip("no small disk can be made")
    yield mount
    subprocess.run(["umount", run / "out"], check=False)


def test_a_full_disk_names_file_space_and_remedy(run, disk, capsys):
    disk("size=24k")
    assert sample(run, "--n", 16) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert "not written" in error and "MB are needed" in error and "make room" in error
    assert not list((run / "out").rglob("*.part"))
    subprocess.run(["mount", "-o", "remount,size=10m", run / "out"], check=True)
    assert sample(run, "--n", 16) == 0
    assert len(list((run / "out").glob("tile/test/*/*.png"))) == 16


def test_a_read_only_folder_is_named(run, disk, capsys):
    disk("ro")
    refused(capsys, sample(run), f"{run / 'out/_meta'}: read-only file system; check the path")
