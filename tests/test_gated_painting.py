"""Painting with the gate: what fails is drawn again, the best is kept, marked or left out."""

import importlib
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from anomaly.dataset import Defect, find_defects
from anomaly.files.atomic_files import read_rows
from anomaly.pairs import PairFolder, paint, training_masks
from anomaly.pairs.manifest import COLUMNS
from anomaly.pairs.paint import Draft
from anomaly.pairs.plan import Plan
from anomaly.runs import learn
from anomaly.runs.guidance import Strength
from anomaly.scores.gate import Verdict
from anomaly.scores.lpips import expected_shapes
from commands import call

PASSES = 0.9        # of the first noise value: one try in five
story = importlib.import_module("anomaly.pairs.paint")      # anomaly.pairs.paint is the function


@pytest.fixture(scope="module")
def grey_run(sd, tmp_path_factory):
    folder = tmp_path_factory.mktemp("grey")
    rng, mask = np.random.default_rng(0), np.zeros((64, 64), np.uint8)
    mask[20:44, 20:44] = 255
    for i in range(3):
        ground = rng.integers(80, 120, (64, 64), dtype=np.uint8)
        for name, pixels in (("test/bent lead", np.where(mask > 0, ground + 90, ground)),
                             ("ground_truth/bent lead", mask), ("train/good", ground)):
            path = folder / "tile" / name / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
    return learn(sd, find_defects(folder / "tile"), folder / "run", steps=2, batch_size=2,
                 mask_model=False)


@pytest.fixture
def stand_in(monkeypatch):
    """A gate that passes a try by its first noise value: one in five passes."""
    judged = []

    def verdict(plan):
        value = float(plan.noise.flat[0])
        return Verdict({"alike": value, "visible": 1.0, "grain": 0.0, "copy": 0.0}, value > PASSES,
                       "" if value > PASSES else "alike too low")

    original = story.paint_block

    def paint_block(sd, learner, defect, plans, targets, settings, gate):
        judged.append([(plan.k, plan.attempt) for plan in plans])
        drafts = original(sd, learner, defect, plans, targets, settings, None)
        return [story.replace(d, verdict=None if gate is None else verdict(d.plan))
                for d in drafts]
    monkeypatch.setattr(story, "paint_block", paint_block)
    return judged


def rows_of(out):
    return read_rows(out / "_meta/manifest.csv", COLUMNS)


def run_paint(sd, run, out, n=8, **more):
    return list(paint(sd, run, PairFolder(out), n=n, masks=training_masks, steps=1, batch_size=4,
                      **more))


def test_what_fails_is_drawn_again_and_the_best_try_is_kept(sd, grey_run, tmp_path, stand_in):
    pairs = run_paint(sd, grey_run, tmp_path, tries=3)
    rows = rows_of(tmp_path)
    assert [pair.k for pair in pairs] == list(range(8)) and len(rows) == 8
    defect = Defect("tile", "bent lead", ())
    values = {(k, attempt): story.draw_plan(defect, k, 0, (1, 1, 1), 1, 1, attempt).noise.item()
              for k in range(8) for attempt in range(3)}
    for row in rows:
        k = int(row["k"])
        tries = [values[k, attempt] for attempt in range(3)]
        first = next((i for i, value in enumerate(tries) if value > PASSES), None)
        assert int(row["try"]) == (int(np.argmax(tries)) if first is None else first)
        assert row["verdict"] == ("doubtful" if first is None else "pass")
        assert bool(row["reason"]) == (first is None) and pairs[k].doubtful == (first is None)
    assert {row["verdict"] for row in rows} == {"pass", "doubtful"}
    assert {int(row["try"]) for row in rows} > {0}
    assert all(len(block) == 4 for block in stand_in)       # kernels see one shape


def test_a_pair_does_not_depend_on_which_others_failed(sd, grey_run, tmp_path, stand_in):
    run_paint(sd, grey_run, tmp_path / "a", n=8)
    run_paint(sd, grey_run, tmp_path / "b", n=3)
    run_paint(sd, grey_run, tmp_path / "b", n=8)
    for row in rows_of(tmp_path / "a"):
        for name in ("image", "mask"):
            a, b = ((tmp_path / out / row[name]).read_bytes() for out in "ab")
            assert a == b


def test_strict_leaves_out_what_stays_doubtful_and_repeats_nothing(
        sd, grey_run, tmp_path, stand_in, caplog):
    caplog.set_level("INFO", "anomaly")
    pairs = run_paint(sd, grey_run, tmp_path, gate="strict")
    rows = rows_of(tmp_path)
    left = [row for row in rows if row["verdict"] == "doubtful"]
    assert 0 < len(left) == len(rows) - len(pairs) < 8
    for row in left:
        assert row["image"].startswith("_meta/rejected/tile/test/bent-lead/")
        assert (tmp_path / row["image"]).is_file() and (tmp_path / row["mask"]).is_file()
    shown = {path.stem for path in (tmp_path / "tile/test/bent-lead").iterdir()}
    assert shown == {f"{pair.k:05d}" for pair in pairs}
    assert f"8 asked, {8 - len(left)} made, {len(left)} doubtful (alike {len(left)}), " \
           f"{len(left)} left out" in caplog.text
    before = len(stand_in)
    assert run_paint(sd, grey_run, tmp_path, gate="strict") == [] and len(stand_in) == before


def test_off_judges_nothing_and_draws_once(sd, grey_run, tmp_path, stand_in):
    run_paint(sd, grey_run, tmp_path, gate="off")
    assert [{attempt for _, attempt in block} for block in stand_in] == [{0}, {0}]
    assert {(row["verdict"], row["alike"], row["try"]) for row in rows_of(tmp_path)} == {
        ("", "", "0")}


def test_the_manifest_has_scores_scale_and_thinness(sd, grey_run, tmp_path, caplog):
    """With the real gate; the mask of the last normal is one pixel wide."""
    caplog.set_level("INFO", "anomaly")
    mask = np.zeros((500, 600), np.uint8)
    mask[100:400, 300] = 255
    for folder, pixels in (("good", np.full((500, 600), 100, np.uint8)), ("masks", mask)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "0.png")
    assert call("sample", "--run", grey_run.folder, "--normals", tmp_path / "good", "--masks",
                tmp_path / "masks", "--n", 1, "--batch-size", 1, "--steps", 1, "--tries", 1,
                "--out", tmp_path / "out") == 0
    row, = rows_of(tmp_path / "out")
    assert float(row["scale"]) == pytest.approx(375 / 64, rel=1e-3) and row["thin"] == "1"
    assert all(np.isfinite(float(row[name])) for name in ("visible", "alike", "grain", "copy"))
    assert row["verdict"] in ("pass", "doubtful")


def test_a_small_scratch_in_a_large_photograph_has_the_models_whole_resolution(
        grey_run, tmp_path):
    """20 pixels in 4000 x 3000: its crop is smaller than the model's picture."""
    rng, mask = np.random.default_rng(0), np.zeros((3000, 4000), np.uint8)
    mask[1500:1503, 2000:2020] = 255
    for folder, pixels in (("good", rng.integers(80, 120, (3000, 4000, 3), dtype=np.uint8)),
                           ("masks", mask)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "0.png", compress_level=1)
    assert call("sample", "--run", grey_run.folder, "--normals", tmp_path / "good", "--masks",
                tmp_path / "masks", "--n", 1, "--batch-size", 1, "--steps", 1, "--tries", 1,
                "--out", tmp_path / "out") == 0
    row, = rows_of(tmp_path / "out")
    assert float(row["scale"]) == pytest.approx(25 / 64, abs=1e-4) and row["thin"] == "0"
    before, after = (np.asarray(Image.open(path)) for path in (
        tmp_path / "good/0.png", tmp_path / "out" / row["image"]))
    assert np.array_equal(after[mask == 0], before[mask == 0])
    assert (after[mask > 0] != before[mask > 0]).any(axis=1).all()


def test_a_strength_out_of_reach_is_said(sd, grey_run, tmp_path, monkeypatch, caplog):
    caplog.set_level("INFO", "anomaly")
    found = Strength(1.5, 0.4, ((1.0, 0.3), (2.0, 0.5)))
    monkeypatch.setattr(story.run_folder, "load_strength", lambda run, defect: found)
    for strength, words in ((0.5, "asks for a contrast of 0.20, out of reach, the nearest is "
                                  "0.30; guidance 1"),
                            (3.0, "1.20, out of reach, the nearest is 0.90; guidance 4"),
                            (1.25, "asks for a contrast of 0.50; guidance 2")):
        run_paint(sd, grey_run, tmp_path / str(strength), n=1, strength=strength, gate="off")
        assert words in caplog.text
    with pytest.raises(ValueError, match="--strength: belongs to --guidance auto"):
        run_paint(sd, grey_run, tmp_path / "x", strength=2.0, guidance=3.0)


def test_of_two_tries_the_one_with_fewer_faults_is_better_then_the_more_alike():
    def draft(alike, reason):
        verdict = Verdict({"alike": alike}, not reason, reason)
        return Draft(Plan(0, None, 0, None, None), None, None, verdict, False)
    passed, one, near, two = (draft(0.1, ""), draft(0.2, "a"), draft(0.9, "a"), draft(0.99, "a; b"))
    assert passed.better_than(near) and near.better_than(one) and one.better_than(two)
    assert not two.better_than(one) and one.better_than(None)


def test_a_folder_of_pairs_is_judged_by_the_same_gate(sd, grey_run, tmp_path, capsys):
    out = tmp_path / "pairs"
    assert call("sample", "--run", grey_run.folder, "--masks", "train", "--n", 4, "--batch-size", 1,
                "--steps", 1, "--tries", 1, "--out", out) == 0
    table = tmp_path / "q.csv"
    command = ["evaluate", "quality", "--run", grey_run.folder, "--pairs", out]
    assert call(*command, "--csv", table) == 0
    said = capsys.readouterr().out
    assert "tile/bent-lead: " in said and "IC-LPIPS: n/a: give --vgg" in said
    from anomaly.pairs.quality import JUDGED
    by_image = {row["image"]: row for row in read_rows(table, JUDGED)}
    for row in rows_of(out):
        found = by_image[str(out.absolute() / row["image"])]
        for name in ("visible", "alike", "grain", "copy"):
            assert float(found[name]) == pytest.approx(float(row[name]), abs=2e-3)
        assert found["verdict"] == row["verdict"]
    assert call(*command, "--csv", table) == 2
    assert "never overwritten" in capsys.readouterr().err
    shutil.rmtree(out / "_meta")        # pairs of another tool: no normal photograph is known
    save_file({name: torch.randn(shape) * (2 / np.prod(shape[1:])) ** 0.5
               for name, shape in expected_shapes().items()}, tmp_path / "vgg.safetensors")
    assert call(*command, "--csv", tmp_path / "r.csv", "--vgg", tmp_path / "vgg.safetensors") == 0
    said = dict(line.strip().split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert said["copies of a training photograph"] == "0 of 4"
    assert float(said["IC-LPIPS, crops"]) > 0 and "real" in said["diversity (0 alike, 1 unrelated)"]
    assert said["IC-LPIPS, normals alone"] == "n/a: fewer than two pictures"
    assert said["IS, KID"].startswith("n/a: give --inception")
    assert {row["visible"] for row in read_rows(tmp_path / "r.csv", JUDGED)} == {""}
    (out / "tile").rename(out / "other")
    assert call(*command) == 2
    assert "--pairs: other/bent-lead, which" in capsys.readouterr().err
