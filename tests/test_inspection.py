"""tools/evaluate.py inspect: what is learned from, what is tested, what is refused."""

import csv
import shutil
from html import escape
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from anomaly import reweight
from anomaly.files.names import slug
from anomaly.runs.run_folder import read_run
from benchmarks.random_models import save_checkpoint
from commands import call
from evaluation import detector, draws, parts, trials

RNG = np.random.default_rng(0)


def grain(height, width):
    return RNG.integers(60, 200, (height, width, 3), np.uint8)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """A run of two defects, two of six photographs of each, and three pairs of each."""
    root = tmp_path_factory.mktemp("inspected")
    weights, data = save_checkpoint(root / "weights"), root / "data/tile"
    for name in [f"test/{d}/{i}" for d in ("hole", "crack") for i in range(6)] + [
            f"{folder}/good/{i}" for folder in ("train", "test") for i in range(5)]:
        pixels, mask = grain(64, 64), np.zeros((64, 64), np.uint8)
        mask[10:30, 10:30] = 255
        for path, values in ((data / f"{name}.png", pixels),
                             (data / f"{name}_mask.png".replace("test", "ground_truth"), mask)):
            if "good" not in str(path) or "mask" not in path.name:
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    shutil.copy(data / "test/hole/0.png", data / "test/hole/4.png")       # learned, as another name
    assert call("train_embed", "--weights", weights, "--data", data, "--steps", 1, "--no-masks",
                "--out", root / "run") == 0
    assert call("sample", "--run", root / "run", "--masks", "train", "--n", 3, "--steps", 1,
                "--gate", "off", "--out", root / "pairs") == 0
    return root


@pytest.fixture
def quick(monkeypatch):
    for name, value in {"WINDOW": 16, "BATCH": 4, "CHANNELS": (8, 16)}.items():
        monkeypatch.setattr(detector, name, value)
    monkeypatch.setattr(parts, "SIDE", 64)


@pytest.fixture
def draws_tested(monkeypatch):
    """The draw of every test of a detector from now on."""
    seen_by, original = [], trials.tested
    monkeypatch.setattr(trials, "tested", lambda draw, *rest: (
        seen_by.append(draw), original(draw, *rest))[1])
    return seen_by


def inspect(root, *more):
    return call("evaluate", "inspect", "--data", root / "data/tile", "--detector-steps", 2,
                "--seeds", 1, *more)


def test_inspect_tests_what_neither_run_nor_pairs_have_seen(
        learned, quick, draws_tested, capsys, monkeypatch):
    out = learned / "proof"
    command = [learned, "--run", learned / "run", "--pairs", learned / "pairs", "--out", out]
    assert inspect(*command) == 0
    said = capsys.readouterr()
    last = said.out.splitlines()[-1]
    assert last.startswith("all defects: no verdict (it takes 2 draws"), said.out
    assert "here 1, 1 and 3)" in last
    assert "test/hole/0.png, test/hole/4.png show the same part" in said.err
    draw = draws_tested[0]
    names = {f"{p.defect}{p.path.stem}" for p in draw.tested}
    assert names == {"hole2", "hole3", "hole5", "crack2", "crack3", "crack4", "crack5"}
    into = {row["normal"] for row in csv.DictReader(open(learned / "pairs/_meta/manifest.csv"))}
    untouched, good = ({str(p.path) for p in some} for some in (draw.untouched, draw.good))
    assert untouched.isdisjoint(into | good) and into <= good
    assert sum("/test/good/" in path for path in untouched) == 5
    assert len(draw.real) == 4 and len(draw.pairs) == 6 and draw.photographs == 2
    rows = list(csv.DictReader(open(out / "results.csv")))
    assert len(rows) == 5 * 2 and {row["trained_on"] for row in rows} == set(trials.WAYS)
    page = (out / "report.html").read_text()
    assert escape(last) in page and "tile/hole" in page
    assert "<script" not in page and "http" not in page
    monkeypatch.setattr(trials, "trained", None)
    assert inspect(*command) == 0 and list(csv.DictReader(open(out / "results.csv"))) == rows


def test_inspect_learns_and_paints_each_number_of_photographs(
        learned, quick, draws_tested, capsys, monkeypatch):
    out = learned / "curve"
    command = [learned, "--photographs", "2,1", "--only", "tile/crack", "--n", 2, "--steps", 1,
               "--weights", learned / "weights", "--out", out]
    assert inspect(*command) == 0
    assert {p.name for p in out.iterdir()} == {".lock", "config.json", "1-0", "1-1", "2-0", "2-1",
                                               "normals", "trials", "results.csv", "report.html",
                                               "curve.png"}
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("tile/crack")]
    assert len(lines) == 2 and "with 1 photograph," in lines[0] and "2 photographs," in lines[1]
    trained_on = {name: {e.image for d in read_run(out / name / "run").defects for e in d.examples}
                  for name in ("1-0", "1-1", "2-0", "2-1")}
    assert trained_on["1-0"] < trained_on["2-0"] and not trained_on["1-0"] & trained_on["1-1"]
    by_name = {draw.name: draw for draw in draws_tested}
    for draw in by_name.values():
        taken = trained_on[f"2-{draw.name[-1]}"]        # all counts are tested on the same
        assert {p.path for p in draw.tested} == set(
            (learned / "data/tile/test/crack").iterdir()) - taken
        with open(out / draw.name / "pairs/_meta/manifest.csv") as file:
            into = {Path(row["normal"]).name for row in csv.DictReader(file)}
        assert into <= {p.path.name for p in draw.good}
        untouched = {p.path for p in draw.untouched}
        assert untouched and untouched.isdisjoint(p.path for p in draw.good)
        assert untouched.isdisjoint((learned / "data/tile/train/good") / name for name in into)
    assert len(by_name) == 4
    monkeypatch.setattr(trials, "trained", None)
    assert inspect(*command) == 0
    assert inspect(*command, "--n", 3) == 2
    assert "--n: 3, but" in capsys.readouterr().err


def test_one_part_of_the_method_is_off_at_a_time(learned, quick, capsys, monkeypatch):
    asked, original = [], draws.paint
    monkeypatch.setattr(draws, "paint", lambda *a, **k: (
        asked.append((k.get("guidance"), k.get("weigh"))), original(*a, **k))[1])
    out, own = learned / "ablation", ["masked-loss-off", "spatial-embedding-off"]
    assert inspect(learned, "--photographs", 1, "--only", "tile/crack", "--n", 2, "--steps", 1,
                   "--draws", 1, "--weights", learned / "weights", "--ablation", "--out", out) == 0
    runs = [out / "1-0/run", *(out / "1-0" / name / "run" for name in own)]
    full, unmasked, aspatial = (next(csv.DictReader(open(run / "loss.csv"))) for run in runs)
    assert full["loss"] != unmasked["loss"] and full["e_s"] == unmasked["e_s"] != ""
    assert aspatial["e_s"] == ""
    pairs = [out / "1-0/pairs", *(out / "1-0" / slug(part) / "pairs" for part in draws.ABLATIONS)]
    rows = [next(csv.DictReader(open(folder / "_meta/manifest.csv"))) for folder in pairs]
    assert [row["verdict"] == "" for row in rows] == [False] * 5 + [True] * 2
    assert asked == [*[(None, None)] * 3, (1, None), (1, reweight.adaptive), (None, None),
                     (0, None)]
    assert len({(folder / "tile/test/crack/00000.png").read_bytes() for folder in pairs[:3]}) == 3
    said = [line.split("learned from, ")[1] for line in capsys.readouterr().out.splitlines()
            if "learned from, " in line]
    assert [line.split(": ")[0] for line in said] == list(draws.ABLATIONS)
    page = (out / "report.html").read_text()
    assert "<h2>One part of the method off</h2>" in page
    assert all(f"<td>{part}</td>" in page for part in draws.ABLATIONS)
    ways = [row["trained_on"] for row in csv.DictReader(open(out / "results.csv"))]
    assert ways == [*trials.WAYS, *draws.ABLATIONS]
    pixels = {(folder / "tile/test/crack/00000.png").read_bytes() for folder in pairs}
    assert len(list((out / "trials").iterdir())) == 4 + len(pixels) > 4 + 3     # 4 other ways


def test_copies_of_what_was_learned_or_painted_into_are_not_tested(
        learned, quick, draws_tested, tmp_path):
    """The data set lies elsewhere, and what was painted into is in test/good there, too."""
    data, into = tmp_path / "tile", {
        Path(row["normal"]) for row in csv.DictReader(open(learned / "pairs/_meta/manifest.csv"))}
    shutil.copytree(learned / "data/tile", data)
    for path in sorted(into):
        shutil.copy(data / "train/good" / path.name, data / f"test/good/copy{path.name}")
    assert call("evaluate", "inspect", "--data", data, "--detector-steps", 1, "--seeds", 1, "--run",
                learned / "run", "--pairs", learned / "pairs", "--out", tmp_path / "out") == 0
    for draw in draws_tested:
        tested = {p.path.name for p in (*draw.untouched, *draw.tested)}
        assert not {f"copy{path.name}" for path in into} & tested
        assert {"0.png", "1.png"}.isdisjoint(p.path.name for p in draw.tested)


def test_pairs_of_another_run_are_refused(learned, quick, tmp_path, capsys):
    other = shutil.copytree(learned / "run", tmp_path / "run")
    with open(other / "spatial_encoder.safetensors", "ab") as file:
        file.write(b" ")
    assert inspect(learned, "--run", other, "--pairs", learned / "pairs", "--out",
                   tmp_path / "out") == 2
    assert "painted by another run than" in capsys.readouterr().err


@pytest.mark.parametrize("options, says", [
    (["--photographs", 6], "--photographs: 6, but tile/crack has 6, and"),
    (["--photographs", 5], "--photographs: 5, but the 6 photographs of tile/hole show 5 parts"),
    (["--run", "{root}/run", "--pairs", "{root}/data"], "no _meta/manifest.csv in it"),
    (["--run", "{root}/run", "--run", "{root}/run", "--pairs", "{root}/pairs"], "--run: 2, and 1"),
    (["--photographs", 1, "--vgg", "x"], "--vgg does not belong to inspect"),
    (["--steps", 1, "--run", "{root}/run", "--pairs", "{root}/pairs"], "--steps belongs to --ph"),
    (["--photographs", "1,x"], "--photographs: "), (["--photographs", 1, "--run", "x"], "leave"),
    (["--photographs", 1, "--parts", "("], "is no regular expression"),
    (["--photographs", 1, "--parts", "^Z"], "names the part of none of 22"),
    (["--photographs", 1, "--only", "tile/dent"], "--only: no defect 'tile/dent'"),
    (["--photographs", 1, "--out", "{root}"], "was there before and is never touched"),
    (["--run", "{root}", "--pairs", "{root}/pairs"], "not a training run"),
    (["--run", "{root}/run", "--pairs", "{root}/nothing"], "nothing: no such folder")])
def test_what_cannot_be_inspected_is_refused_in_a_line(learned, quick, capsys, options, says):
    options = [str(o).format(root=learned) for o in options]
    assert inspect(learned, "--out", learned / "never", *options) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("evaluate.py: ") and says in error, error
    assert not (learned / "never").exists()


@pytest.mark.parametrize("removed, says", [
    ("test/good", None), ("train/good", "of tile without a defect are left to learn"),
    ("test/crack", "--data: has no tile/crack, which"),
    ("test/crack/[2-5]*", "of tile/crack no photograph is left to test on"),
    ("ground_truth/hole/3_mask.png", "no mask of that name")])
def test_data_with_too_little_to_test_on_is_refused(
        learned, quick, tmp_path, capsys, removed, says):
    data = shutil.copytree(learned / "data/tile", tmp_path / "tile")
    for gone in (*data.glob(removed), *data.glob(removed.replace("test/c", "ground_truth/c"))):
        if gone.exists():
            shutil.rmtree(gone) if gone.is_dir() else gone.unlink()
    code = call("evaluate", "inspect", "--data", data, "--detector-steps", 1, "--seeds", 1, "--run",
                learned / "run", "--pairs", learned / "pairs", "--out", tmp_path / "out")
    assert code == (0 if says is None else 2)
    assert says is None or says in capsys.readouterr().err.splitlines()[-1]
