"""Pairs as a data set: COCO's reader, sides, the gate and the review, one folder twice."""

import csv
import errno
import io
import json
import os
import sys
from contextlib import redirect_stdout

import numpy as np
import pytest
import yaml
from PIL import Image
from pycocotools.coco import COCO
from test_labels import HEIGHT, MASKS, RNG, WIDTH
from test_ownership import everything, refused

from anomaly.dataset import Defect
from anomaly.files import atomic_files
from anomaly.files.photographs import Photograph, read_photograph
from anomaly.pairs.exporting import INDEX, SHEET, export
from anomaly.pairs.manifest import manifest_rows
from anomaly.pairs.pair_folder import PairFolder
from anomaly.progress import Stopped
from commands import call


def write_pairs(folder, n=12, normals=6, defects=("hole", "line")):
    """Pairs of two defects in six photographs: every fourth doubtful, every sixth left out."""
    shas = [f"{i:02}" * 32 for i in range(normals)]
    pairs = PairFolder(folder / "pairs", {"seed": 0})
    with pairs.held(64):
        for defect in defects:
            for k in range(n):
                if pairs.done(Defect("nut", defect, ()), k):
                    continue
                mask = list(MASKS.values())[k % len(MASKS)]
                verdict = "doubtful" if k % 4 == 3 or k % 6 == 5 else "pass"
                said = {"normal": f"/n/{k % normals}.png", "normal_sha256": shas[k % normals],
                        "change": 0.1, "verdict": verdict}
                image = Photograph(np.where(mask, 250, 20 + k).astype(np.uint8), 255)
                pairs.write(Defect("nut", defect, ()), k, said, image, mask, k % 6 == 5)
    return folder / "pairs"


@pytest.fixture
def pairs(tmp_path):
    return write_pairs(tmp_path)


def draw_good(folder, n=5):
    """Defect-free photographs: the last a JPEG, that before a PNG, both lying on their side."""
    folder.mkdir(parents=True)
    for i in range(n):
        image, exif = Image.fromarray(RNG.integers(0, 99, (WIDTH, HEIGHT), np.uint8)), Image.Exif()
        exif[0x0112] = 6
        image.save(folder / f"{i}.{'jpg' if i == n - 1 else 'png'}",
                   **({"exif": exif} if i >= n - 2 else {}))
    return folder


def names(folder, ending="png"):
    return sorted(path.stem for path in folder.rglob(f"*.{ending}"))


def run(pairs, out, form, *more):
    return call("export", "--pairs", pairs, "--format", form, "--out", out, *more)


def test_coco_reads_the_file_and_its_masks_are_ours(pairs, tmp_path):
    assert run(pairs, tmp_path / "out", "coco", "--normals", draw_good(tmp_path / "good")) == 0
    per_side = []
    for suffix in ("", "_train", "_val"):
        with redirect_stdout(io.StringIO()):
            data = COCO(tmp_path / f"out/annotations{suffix}.json")
        assert {c["id"]: c["name"] for c in data.loadCats(data.getCatIds())} == {
            1: "nut-hole", 2: "nut-line"}
        for image in data.loadImgs(data.getImgIds()):
            kind, k = image["file_name"][:-4].rsplit("-", 1)
            found = data.loadAnns(data.getAnnIds(image["id"]))
            united = sum((data.annToMask(one).astype(int) for one in found),
                         np.zeros((image["height"], image["width"]), int))
            mask = list(MASKS.values())[int(k)] if kind != "nut-good" else np.zeros(united.shape)
            assert np.array_equal(united, mask)
            assert [one["area"] for one in found] == [data.annToMask(one).sum() for one in found]
            assert {one["category_id"] for one in found} <= {1 + (kind == "nut-line")}
        per_side.append(set(data.getImgIds()))
    assert per_side[0] == per_side[1] | per_side[2] and not per_side[1] & per_side[2]
    assert len(names(tmp_path / "out/images")) == len(per_side[0])


@pytest.mark.parametrize("form, split", [("yolo", 0.8), ("coco", 0.95)])
def test_pairs_of_one_photograph_lie_on_one_side_and_every_class_on_both(
        pairs, tmp_path, form, split):
    assert run(pairs, tmp_path / "out", form, "--all", "--split", split) == 0
    if form == "yolo":
        found = {side: names(tmp_path / f"out/images/{side}") for side in ("train", "val")}
        info = yaml.safe_load((tmp_path / "out/data.yaml").read_text())
        assert info == {"path": str(tmp_path / "out"), "train": "images/train",
                        "val": "images/val", "names": {0: "nut-hole", 1: "nut-line"}}
    else:
        found = {side: [i["file_name"][:-4] for i in json.loads(
            (tmp_path / f"out/annotations_{side}.json").read_text())["images"]]
            for side in ("train", "val")}
    shown = {side: {int(name[-5:]) % 6 for name in some} for side, some in found.items()}
    assert not shown["train"] & shown["val"] and len(shown["train"]) == 5
    for some in found.values():
        assert {name[:-6] for name in some} == {"nut-hole", "nut-line"}


def test_a_class_of_one_photograph_is_said_to_have_one_side(tmp_path, capsys):
    assert run(write_pairs(tmp_path, normals=1), tmp_path / "out", "yolo") == 0
    assert "nut-hole: all on the side of train; paint it into more" in capsys.readouterr().err


def decide(path, rows, **decisions):
    with open(path, "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "object", "defect", "k", "decision"])
        writer.writerows([row["image"], row["object"], row["defect"], row["k"],
                          decisions[f"{row['defect']}_{row['k']}"]] for row in rows
                         if f"{row['defect']}_{row['k']}" in decisions)
    return path


def test_the_gate_decides_and_the_review_goes_before_it(pairs, tmp_path, capsys):
    passed = [f"nut-{d}-{k:05}" for d in ("hole", "line") for k in (0, 1, 2, 4, 6, 8, 9, 10)]
    assert run(pairs, tmp_path / "a", "coco") == 0 and names(tmp_path / "a") == passed
    assert "16 of 24 pairs; 8 doubtful left out: --review or --all" in capsys.readouterr().err
    assert run(pairs, tmp_path / "b", "coco", "--all") == 0 and len(names(tmp_path / "b")) == 24
    review = decide(tmp_path / "r.csv", manifest_rows(pairs), hole_0="reject", hole_3="accept",
                    line_5="accept")        # 5 lies in _meta/rejected
    assert run(pairs, tmp_path / "c", "coco", "--review", review) == 0
    assert "17 of 24 pairs; 6 doubtful left out: --review or --all takes them; 1 rejected by" in (
        capsys.readouterr().err)
    assert "did not judge, but for those that a review" in (tmp_path / "c/README.md").read_text()
    assert set(names(tmp_path / "c")) == {*passed, "nut-hole-00003", "nut-line-00005"} - {
        "nut-hole-00000"}


def test_mvtec_trains_on_no_photograph_that_was_painted_into(pairs, tmp_path):
    good = draw_good(tmp_path / "good", 8)
    path, manifest = good / "3.png", pairs / "_meta/manifest.csv"
    manifest.write_text(manifest.read_text().replace("/n/1.png", str(path)))
    assert run(pairs, tmp_path / "out", "mvtec", "--normals", good) == 0
    train, test = (names(tmp_path / f"out/nut/{side}/good") for side in ("train", "test"))
    assert "00003" in test and sorted(train + test) == [f"{i:05}" for i in range(8)]
    assert len(train) == 6      # 0.8 of 8
    for name in ("6.png", "7.jpg"):     # upright
        turned = next((tmp_path / "out").rglob(f"good/0000{name[0]}.png"))
        assert np.array_equal(np.asarray(Image.open(turned)), read_photograph(good / name))
    for at in ("test/hole/00000.png", "ground_truth/line/00004_mask.png"):
        assert (tmp_path / "out/nut" / at).samefile(pairs / "nut" / at)


def test_a_class_of_doubtful_pairs_alone_and_missing_good_photographs_are_said(
        pairs, tmp_path, capsys):
    review = decide(tmp_path / "r.csv", manifest_rows(pairs),
                    **{f"hole_{k}": "reject" for k in range(12)})
    assert run(pairs, tmp_path / "out", "mvtec", "--review", review) == 0
    said = capsys.readouterr().err
    assert "nut/hole: none of its pairs" in said and "nut/line: none" not in said
    assert "no good photographs, which anomalib needs: --normals" in said


def test_what_a_doubtful_pair_or_one_since_then_is_painted_into_trains_nothing(
        tmp_path, capsys):
    good, pairs = draw_good(tmp_path / "good", 6), write_pairs(tmp_path, n=4, defects=["hole"])
    manifest = pairs / "_meta/manifest.csv"
    text = manifest.read_text()
    for k in range(6):      # pair 3 is doubtful
        manifest.write_text(text.replace("/n/3.png", str(next(good.glob(f"{k}.*")))))
        out = tmp_path / f"out{k}"
        assert run(pairs, out, "mvtec", "--normals", good) == 0
        assert f"0000{k}" in names(out / "nut/test/good")
    learned = names(out / "nut/train/good")[0]
    manifest.write_text(manifest.read_text().replace(
        "/n/2.png", str(good / f"{int(learned)}.png")))
    refused(capsys, run(pairs, out, "mvtec", "--normals", good), f"train/good/{learned}.png: ",
            "it has been painted into since, and may be nothing that", "choose a new --out")


def other_disk(source, path):
    raise OSError(errno.EXDEV, "another disk")


FORMS = [("mvtec",), ("yolo",), ("yolo", "--boxes"), ("coco",)]


def contents(out):
    return {str(p.relative_to(out)): b.replace(os.fsencode(out), b"OUT")
            for p, b in everything(out).items() if p.name != ".lock"}


@pytest.mark.parametrize("form", FORMS, ids=" ".join)
def test_added_or_interrupted_a_second_run_ends_as_one(tmp_path, form, monkeypatch):
    good = draw_good(tmp_path / "good")
    pairs = write_pairs(tmp_path, n=2, defects=["line"])
    assert run(pairs, tmp_path / "a", *form, "--normals", good) == 0
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "a").rglob("*.png")}
    write_pairs(tmp_path)
    with pytest.raises(Stopped):
        export(pairs, tmp_path / "a", form[0], boxes=len(form) > 1, normals=good, stop=lambda: True)
    stops = iter([False, False, True])
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(atomic_files.os, "link", other_disk)
        export(pairs, tmp_path / "b", form[0], boxes=len(form) > 1, normals=good,
               stop=lambda: next(stops))
    assert not [out for out in "ab" for n in INDEX[form[0]] if (tmp_path / out / n).exists()]
    for out in ("a", "b", "c"):
        assert run(pairs, tmp_path / out, *form, "--normals", good) == 0
    assert contents(tmp_path / "b") == contents(tmp_path / "c")
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert names(tmp_path / "a") == names(tmp_path / "c")


@pytest.mark.parametrize("more, words", [
    (["--format", "coco"], "--format: 'coco', but"), (["--boxes"], "--boxes: given, but"),
    (["--split", "0.5"], "--split: 0.5, but"), (["--all"], "--all: given, but"),
    (["--pairs", "other/pairs"], "--pairs: other pairs than those in"),
    (["--normals", "good"], "good', but out was made without it"),
    (["--review", "pairs/r.csv"], "--review: given, but out was made without it")])
def test_other_options_into_the_same_folder_are_refused_by_name(
        pairs, tmp_path, capsys, monkeypatch, more, words):
    monkeypatch.chdir(tmp_path)
    draw_good(tmp_path / "good")
    (tmp_path / "other").mkdir()
    config = write_pairs(tmp_path / "other") / "_meta/config.json"
    config.write_text(config.read_text().replace('"seed": 0', '"seed": 1'))
    decide(pairs / "r.csv", manifest_rows(pairs), hole_0="reject")
    assert run(pairs, "out", "yolo") == 0
    before = contents(tmp_path / "out")
    refused(capsys, run(pairs, "out", "yolo", *more), words, "choose another --out")
    assert contents(tmp_path / "out") == before


def test_a_forgotten_review_or_normals_and_a_damaged_record_are_one_line(pairs, tmp_path, capsys):
    review = decide(tmp_path / "r.csv", manifest_rows(pairs), hole_0="reject")
    more = ["--normals", draw_good(tmp_path / "good")]
    assert run(pairs, tmp_path / "out", "coco", "--review", review, *more) == 0
    refused(capsys, run(pairs, tmp_path / "out", "coco", *more),
            "--review: not given, but", "was made with it; do the same or choose another --out")
    refused(capsys, run(pairs, tmp_path / "out", "coco", "--review", review),
            "--normals: not given, but", f"was made with '{tmp_path / 'good'}'; do the same")
    (tmp_path / "out/export.json").write_text("[]")
    refused(capsys, run(pairs, tmp_path / "out", "coco"), "export.json: it is [], expected an obj")


def test_what_is_not_of_these_pairs_is_named_and_never_touched(pairs, tmp_path, capsys):
    out = tmp_path / "out"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/a.txt").write_text("mine")
    refused(capsys, run(pairs, tmp_path / "mine", "yolo"), "a.txt: was there before")
    undecodable = tmp_path / os.fsdecode(b"\xff")
    refused(capsys, run(pairs, undecodable, "yolo"), r"/\xff is not UTF-8")
    assert not undecodable.exists()
    refused(capsys, run(pairs, pairs / "out", "yolo"), "lies in the folder of the pairs")
    assert run(pairs, out, "yolo") == 0
    mine = [out / name for name in ("labels/train.cache", "annotations.json", SHEET)]
    for path in mine:       # Ultralytics', of no format or of another, no sheet of the pairs'
        path.write_text("mine")
    assert run(pairs, out, "yolo") == 0 and {path.read_text() for path in mine} == {"mine"}
    before = contents(out)
    for path, content in ((next(out.rglob("*.txt")), b"0 1 1 1 1\n"),
                          (next(out.rglob("*.png")), b"another"), (out / "x.JPG", b"mine")):
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        refused(capsys, run(pairs, out, "yolo"), path.name, "move it away")
        assert (out / "data.yaml").exists() and (out / "README.md").exists()
        assert path.read_bytes() == content
        path.unlink()
    assert run(pairs, out, "yolo") == 0 and contents(out) == before
    for name in ("a.png", "b.WebP"):
        (out / "images" / name).write_bytes(b"mine")
    refused(capsys, run(pairs, out, "yolo"), "a.png (and 1 more): not of these pairs: gone, cha")


def test_without_the_extra_a_line_says_what_to_install(pairs, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    refused(capsys, run(pairs, tmp_path / "out", "yolo"), "cv2 is not installed", '".[export]"')
    assert run(pairs, tmp_path / "mvtec", "mvtec") == 0


@pytest.mark.parametrize("argv, words", [
    (["--format", "coco", "--boxes"], "--boxes belongs to --format yolo"),
    (["--format", "yolo", "--split", "1"], "found 1, expected less than 1"),
    (["--format", "yolo", "--pairs", "none"], "none: no such folder; --pairs takes"),
    (["--format", "yolo", "--review", "none"], "none: no such file")])
def test_wrong_options_are_one_line(pairs, tmp_path, capsys, argv, words):
    refused(capsys, call("export", "--pairs", pairs, "--out", tmp_path / "out", *argv), words)
