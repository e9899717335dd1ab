"""The folder of pairs as others take it: anomalib's rules, README's loop, and the card."""

import json
import re
import shlex
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from test_ownership import draw, train

from anomaly.dataset import Defect
from anomaly.files import remarks
from anomaly.files.photographs import Photograph
from anomaly.pairs.card import card, read_config, source_of
from anomaly.pairs.manifest import manifest_rows
from anomaly.pairs.pair_folder import PairFolder
from anomaly.runs.run_folder import read_run
from commands import ROOT, call


@pytest.fixture(scope="module")
def made(checkpoint, tmp_path_factory):
    """A run, its pairs, and these exported as mvtec with defect-free photographs of two formats."""
    folder = tmp_path_factory.mktemp("made")
    draw(folder / "img"), draw(folder / "msk", mask=True), draw(folder / "good", 2)
    draw(folder / "more", 4), draw(folder / "more", 3, name="j{}.jpg")
    assert train(checkpoint, folder) == 0
    assert call("sample", "--run", folder / "run", "--normals", folder / "good", "--masks", "train",
                "--steps", 2, "--n", 3, "--batch-size", 2, "--gate", "off", "--out",
                folder / "pairs") == 0
    assert call("export", "--pairs", folder / "pairs", "--format", "mvtec", "--normals",
                folder / "more", "--out", folder / "mvtec") == 0
    return folder


@pytest.fixture(params=["pairs", "mvtec"])
def category(made, request):
    """One as sample.py writes it, one as export.py does."""
    return made / request.param / "tile"


# conventions.md, 3b: what anomalib's loaders require, a test a rule

def test_numbers_have_one_width_so_that_both_sort_alike(category):
    images = sorted(path.name for path in category.glob("test/blowhole/*"))
    masks = sorted(path.name for path in category.glob("ground_truth/blowhole/*"))
    assert len(images) == 3 and {len(name) for name in images} == {len("00000.png")}
    assert [name.replace(".png", "_mask.png") for name in images] == masks


def test_nothing_else_lies_below_the_category(category):
    for path in category.rglob("*"):
        assert path.is_dir() or re.fullmatch(
            r"(train/good|test/\w+)/\d{5}\.png|ground_truth/blowhole/\d{5}_mask\.png",
            path.relative_to(category).as_posix())


def test_every_picture_is_png_whatever_the_photographs_were(made):
    good = [path.suffix for path in (made / "mvtec/tile").glob("t*/good/*")]
    assert good == [".png"] * 7


def test_no_folder_is_hidden_and_every_name_is_ascii(category):
    assert all(path.name.isascii() and not path.name.startswith(".")
               for path in category.rglob("*"))


def test_masks_are_grey_of_0_and_255_and_as_large_as_their_images(category):
    for path in category.glob("ground_truth/blowhole/*.png"):
        mask = Image.open(path)
        image = Image.open(category / "test/blowhole" / path.name.replace("_mask", ""))
        assert mask.mode == "L" and set(np.unique(mask)) == {0, 255} and mask.size == image.size


def test_what_anomalib_reads(category):
    """Where it can be imported, which needs torchvision."""
    data = pytest.importorskip("anomalib.data", exc_type=Exception)
    found = data.MVTecAD(root=category.parent, category="tile", num_workers=0)
    found.setup()
    samples = found.test_data.samples
    assert len(samples[samples.label == "blowhole"]) == 3
    assert len(found.train_data) == len(list(category.glob("train/good/*")))


def test_the_readmes_loop_trains_on_the_folder_as_it_stands(made, tmp_path, monkeypatch):
    (tmp_path / "generated").symlink_to(made / "pairs")
    monkeypatch.chdir(tmp_path)
    section = (ROOT / "README.md").read_text().split("## Train on it")[1].split("\n## ")[0]
    code, = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    found = {}
    torch.manual_seed(0)
    exec(code, found)
    assert found["logits"].shape == np.asarray(Image.open(found["mask"])).shape
    assert found["loss"] < 0.5      # a coin has 0.69


@pytest.mark.parametrize("form", ["mvtec", "yolo", "coco"])
def test_16_bit_grey_leaves_as_the_8_bits_that_others_read(tmp_path, form, capsys, monkeypatch):
    monkeypatch.setattr(remarks, "_said", set())
    pairs, good = PairFolder(tmp_path / "pairs", {"white": 1023}), tmp_path / "good"
    values, mask = np.full((60, 90), 341, np.uint16), np.eye(60, 90, dtype=bool)
    good.mkdir(), Image.fromarray(values * 8).save(good / "0.png")      # 12 bits: white is 4095
    with pairs.held(64):
        pairs.write(Defect("nut", "hole", ()), 0, {"normal": "/n.png", "change": 0.1},
                    Photograph(np.where(mask, 1023, values).astype(np.uint16), 1023), mask)
    for _ in range(2):
        assert call("export", "--pairs", tmp_path / "pairs", "--format", form, "--out",
                    tmp_path / "out", "--normals", good) == 0
    assert sorted(tuple(np.unique(cv2.imread(str(p), cv2.IMREAD_UNCHANGED))) for p in (
        tmp_path / "out").rglob("*.png") if "_mask" not in p.name) == [(85, 255), (170,)]
    assert capsys.readouterr().err.count("16-bit grey is written as 8 bits") == 1


# the card

def words_of(text):
    return shlex.split(re.search(r"^    python tools/sample.py (.*)$", text, re.MULTILINE)[1])


def test_the_card_has_the_command_that_makes_the_same_bytes(made, tmp_path):
    text = (made / "pairs/_meta/README.md").read_text()
    words = [{"RUN": made / "run", "OUT": tmp_path / "again"}.get(w, w) for w in words_of(text)]
    assert call("sample", *words) == 0
    before, after = ({p.relative_to(out): p.read_bytes() for p in out.rglob("*") if p.is_file()}
                     for out in (made / "pairs", tmp_path / "again"))
    assert before == after


def test_the_card_says_where_the_pairs_come_from(made, checkpoint):
    text = (made / "pairs/_meta/README.md").read_text()
    sha256 = json.loads((made / "run/config.json").read_text())["weights_sha256"]
    assert f"{checkpoint.name}, sha256 {sha256}. Licence: the checkpoint's own." in text
    assert f"learned from 3 photographs and masks in {made}/img, 1 steps" in text
    assert re.search(rf"Painted into [12] defect-free photographs in {made}/good", text)
    assert "| tile/blowhole | 3 | 0 | 0 | 3 | 0 |" in text and "(contact_sheet.jpg)" in text
    exported = (made / "mvtec/README.md").read_text()
    beside, words = "; manifest.csv names that of each pair", " ".join(exported.split())
    assert text.split("\n\n", 1)[1].replace(beside, "") in exported and beside in text
    assert "as mvtec, of the pairs below: the pairs that the gate passed or did not judge." in words
    assert f"Defect-free photographs: from {made}/more. Pictures may be hard links" in words
    assert re.search(r"\| tile-blowhole \| 0 \| 3 \|\n\| tile-good \| 5 \| 2 \|", exported)
    assert (made / "mvtec/contact_sheet.jpg").is_file()


@pytest.mark.parametrize("source, width, words", [
    ("tiny", 128, "MIT"), ("sd.safetensors", 768, "CreativeML Open RAIL-M, that"),
    ("sd", 1024, "CreativeML Open RAIL++-M, that"), ("sd", 512, "the checkpoint's own")])
def test_the_licence_is_that_of_the_family(made, source, width, words):
    sd = SimpleNamespace(source=source, text_encoder=SimpleNamespace(
        config=SimpleNamespace(width=width)))
    assert source_of(read_run(made / "run"), sd, 1)["licence"].startswith(words)


def test_the_card_counts_what_the_gate_said(made):
    row = manifest_rows(made / "pairs")[0]
    rows = [{**row, "verdict": verdict, "image": image, "k": "7"} for verdict, image in (
        ("pass", "a"), ("doubtful", "a"), ("doubtful", "a"), ("doubtful", "_meta/rejected/a"))]
    text = card(read_config(made / "pairs"), rows, picture=False)
    assert "| tile/blowhole | 3 | 1 (25%) | 2 | 0 | 1 |" in text
    assert words_of(text)[:4] == ["--run", "RUN", "--n", "8"] and "contact_sheet" not in text


def test_a_folder_of_an_older_version_has_a_card_that_says_what_it_does_not_know(made):
    config = {"masks": "train", "steps": 20, "guidance": "auto", "strength": 1.0, "seed": 0}
    text = card(config, manifest_rows(made / "pairs"), picture=True)
    assert "training photographs: not recorded" in text and "few-shot-defects 0.1 has" in text
    assert words_of(text)[-5:] == ["auto", "--seed", "0", "--out", "OUT"]
