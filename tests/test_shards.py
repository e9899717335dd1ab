"""Workers that share a folder, and what ends them: the pairs are those of one left alone."""

import itertools
import os
import random
import signal
import time

import pytest
from test_ownership import draw, everything, refused, train

import cli
from anomaly.pairs.manifest import ALONE, COLUMNS, Manifest, Shard, manifest_rows, names_of
from anomaly.pairs.pair_folder import PairFolder
from commands import call, end_of, fork

PAIRS = 7       # of blocks of two: the last is filled up


@pytest.fixture(scope="module")
def trained(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    draw(folder / "img"), draw(folder / "msk", mask=True), draw(folder / "good", 2)
    assert train(checkpoint, folder) == 0
    return folder


def command(trained, out, *more, n=PAIRS):
    return ("sample", "--run", trained / "run", "--normals", trained / "good", "--masks", "train",
            "--steps", 2, "--n", n, "--batch-size", 2, "--out", out, *more)


@pytest.fixture(scope="module")
def unbroken(trained, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "out"
    assert call(*command(trained, out)) == 0
    return out


def bytes_of(out):
    return {path.relative_to(out): content for path, content in everything(out).items()
            if path.name != ".lock"}


@pytest.mark.parametrize("shards", [["0/1"], ["1/2", "0/2"], ["2/3", "0/3", "1/3"]])
def test_any_number_of_workers_in_any_order_gives_the_same_bytes(
        trained, unbroken, tmp_path, capsys, shards):
    for done, shard in enumerate(shards):
        assert not (tmp_path / "_meta/contact_sheet.jpg").exists() or done
        assert call(*command(trained, tmp_path, "--shard", shard)) == 0
    assert bytes_of(tmp_path) == bytes_of(unbroken)
    asked = {"0/1": 7, "1/2": 3, "0/2": 4, "2/3": 2, "0/3": 3, "1/3": 2}
    told = [line for line in capsys.readouterr().err.splitlines() if " asked, " in line]
    assert [int(line.split()[1]) for line in told] == [asked[shard] for shard in shards]


def test_workers_at_the_same_time_give_the_same_bytes(trained, unbroken, tmp_path):
    children = [fork(*command(trained, tmp_path, "--shard", f"{i}/3")) for i in range(3)]
    assert [end_of(child) for child in children] == [0, 0, 0]
    assert bytes_of(tmp_path) == bytes_of(unbroken)


def wait_for_pair(out):
    while not list(out.glob("tile/test/*/*.png")):
        time.sleep(0.01)


def test_a_worker_is_refused_beside_itself_or_another_number_of_workers(
        trained, unbroken, tmp_path, capsys):
    child = fork(*command(trained, tmp_path, "--shard", "0/2"))
    wait_for_pair(tmp_path)
    os.kill(child, signal.SIGSTOP)
    for more in (["--n", 8], ["--batch-size", 3]):
        refused(capsys, call(*command(trained, tmp_path, "--shard", "1/2", *more)),
                f"process {child} is writing there, with another --n, --only or --batch-size")
    for shard in ("0/2", "0/3", "0/1"):
        refused(capsys, call(*command(trained, tmp_path, "--shard", shard)),
                f"process {child} is writing there, as worker 0 of 2", "its own --shard I/2")
    assert call(*command(trained, tmp_path, "--shard", "1/2")) == 0
    assert (tmp_path / "_meta/parts/1-of-2.csv").exists()      # merged by the last one to end
    assert {row["k"] for row in manifest_rows(tmp_path)} >= {"2", "3", "6"}
    os.kill(child, signal.SIGKILL)
    assert end_of(child) == -signal.SIGKILL
    assert call(*command(trained, tmp_path, "--shard", "0/3")) == 0     # dead: by any number
    assert not (tmp_path / "_meta/parts").exists()
    for shard in ("1/3", "2/3"):
        assert call(*command(trained, tmp_path, "--shard", shard)) == 0
    there = bytes_of(tmp_path)
    pairs = {path: made for path, made in bytes_of(unbroken).items() if path.parts[0] == "tile"}
    assert {path: there[path] for path in pairs} == pairs


def test_more_pairs_are_added_and_what_is_there_is_not_touched(trained, unbroken, tmp_path):
    assert call(*command(trained, tmp_path, n=3)) == 0
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*_mask.png")}
    assert call(*command(trained, tmp_path)) == 0 and len(times) == 3
    assert {path: path.stat().st_mtime_ns for path in times} == times
    assert bytes_of(tmp_path) == bytes_of(unbroken)


def test_two_commands_that_begin_together_do_not_mix_their_options(tmp_path):
    first, second = (PairFolder(tmp_path / "out", {"seed": seed}, Shard(seed, 2))
                     for seed in range(2))
    with pytest.raises(ValueError, match="--seed: 1, but the pairs in .* were made with 0"):
        with first.held(64), second.held(64):
            first._start()
            second._start()


def test_a_torn_row_of_a_worker_that_died_is_dropped_before_the_next(tmp_path):
    manifest = Manifest(tmp_path, ALONE)
    rows = [{**dict(zip(("image", "mask"), names_of("a", "b", k))), "object": "a", "defect": "b",
             "k": k} for k in (0, 1)]
    with manifest.worker("x"):
        manifest.append(rows[0])
    part = tmp_path / "_meta/parts/0-of-1.csv"
    part.write_bytes(part.read_bytes() + b"a,b,c")
    with manifest.worker("x"):
        manifest.append(rows[1])
    assert [row["k"] for row in manifest_rows(tmp_path)] == ["0", "1"]
    assert part.read_text().count(",".join(COLUMNS)) == 1


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "3"}
SRUN = {"SLURM_PROCID": "2", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0"}


@pytest.mark.parametrize("variables, expected", [
    ({}, (0, 1)), (TORCHRUN, (1, 3)), (SRUN, (2, 4)), ({**SRUN, **TORCHRUN}, (1, 3)),
    ({name: SRUN[name] for name in ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_JOB_ID")}, (0, 1)),
    ({"SLURM_PROCID": "1", "SLURM_NTASKS": "2"}, (1, 2)),
    ({**SRUN, "SLURM_STEP_NUM_TASKS": "3"}, (2, 3)),
    ({**TORCHRUN, "RANK": "x"}, "RANK: found 'x', expected a whole number"),
    ({**TORCHRUN, "RANK": "3"}, "RANK: found 3, expected less than WORLD_SIZE, which is 3")])
def test_torchrun_and_srun_number_their_workers(monkeypatch, variables, expected):
    for name in (*TORCHRUN, *SRUN, "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    if isinstance(expected, tuple):
        assert cli.workers() == expected
    else:
        with pytest.raises(ValueError, match=expected):
            cli.workers()


def test_the_environment_shards_and_the_option_goes_before_it(
        trained, tmp_path, monkeypatch, capsys):
    for name, value in TORCHRUN.items():
        monkeypatch.setenv(name, value)
    assert call(*command(trained, tmp_path)) == 0
    assert [row["k"] for row in manifest_rows(tmp_path)] == ["2", "3"]
    assert "worker 1 of 3: paints one block in 3" in capsys.readouterr().err
    assert call(*command(trained, tmp_path, "--shard", "0/1")) == 0
    assert len(manifest_rows(tmp_path)) == PAIRS
    for wrong in ("2/2", "1", "1/-2", "a/b"):
        assert call(*command(trained, tmp_path, "--shard", wrong)) == 2
        assert f"found '{wrong}', expected I/N" in capsys.readouterr().err


# what ends a process

def test_sigterm_ends_after_the_block_and_the_same_command_goes_on(
        trained, unbroken, tmp_path, capfd):
    child = fork(*command(trained, tmp_path))
    wait_for_pair(tmp_path)
    os.kill(child, signal.SIGTERM)
    assert end_of(child) == 143 and "terminated; what is written is whole" in capfd.readouterr().err
    made = len(manifest_rows(tmp_path))
    assert made in (2, 4, 6) and not (tmp_path / "_meta/parts").exists()     # whole blocks, merged
    assert len(list(tmp_path.glob("tile/test/*/*.png"))) == made
    assert call(*command(trained, tmp_path)) == 0 and bytes_of(tmp_path) == bytes_of(unbroken)


@pytest.mark.parametrize("times, apart", [(1, 0), (2, 0), (2, 0.002), (2, 0.02), (3, 0.01)])
def test_ctrl_c_ends_at_once_and_twice_too(trained, unbroken, tmp_path, capfd, times, apart):
    child = fork(*command(trained, tmp_path))
    wait_for_pair(tmp_path)
    for _ in range(times):
        os.kill(child, signal.SIGINT)
        time.sleep(apart)
    error = (end_of(child), capfd.readouterr().err)
    assert error[0] == 130 and "interrupted" in error[1] and "Traceback" not in error[1], error
    assert call(*command(trained, tmp_path)) == 0 and bytes_of(tmp_path) == bytes_of(unbroken)


def killed(begin, folder, times, seconds):
    """Begin a child so many times, five in each of some folders, and kill it at a random moment."""
    for i in range(times):
        child = begin(folder / f"killed {i // 5}")
        time.sleep(random.Random(i).uniform(0, seconds / 2))
        os.kill(child, signal.SIGKILL)
        assert end_of(child) in (0, -signal.SIGKILL)


KILLS = [5, pytest.param(50, marks=pytest.mark.fuzz)]


@pytest.mark.parametrize("kills", KILLS)
def test_sampling_killed_at_any_moment_ends_as_an_unbroken_one(trained, unbroken, tmp_path, kills):
    """As one worker or as the first of two, in turn."""
    began, shards = time.monotonic(), itertools.cycle(["0/1", "0/2"])
    assert end_of(fork(*command(trained, tmp_path / "timed"))) == 0
    killed(lambda out: fork(*command(trained, out, "--shard", next(shards))), tmp_path, kills,
           time.monotonic() - began)
    for out in tmp_path.glob("killed*"):
        assert call(*command(trained, out)) == 0
        assert bytes_of(out) == bytes_of(unbroken)
