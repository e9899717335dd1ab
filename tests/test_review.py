"""The page to judge pairs by, in a real browser, from the disk."""

import csv
import os
import shutil

import numpy as np
import pytest
from PIL import Image
from test_ownership import refused

from anomaly.crop import Crop
from anomaly.dataset import Defect
from anomaly.files.photographs import Photograph
from anomaly.pairs.manifest import manifest_rows
from anomaly.pairs.pair_folder import PairFolder
from anomaly.pairs.review import Look, identity, outline, write_pictures
from commands import call

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium is installed")
SCRIPT = '</script><script>document.title = "broken"</script>\u2028"'
DEFECTS = (Defect("tile", "crack", ()), Defect("tile", SCRIPT, ()))
ALIKE = [0.9, 0.5, 0.7, 0.95]     # of pairs 0 to 3 of a defect; 1 and 2 are doubtful, 2 rejected


def fill(out, n=4, seed=0, defects=DEFECTS):
    """n pairs of each defect: 200 where the normal photograph, grey of 12 bits, has 1000."""
    values, mask = np.full((60, 80), 1000, np.uint16), np.zeros((60, 80), bool)
    mask[20:30, 30:50], values[0, 0] = True, 4095
    Image.fromarray(values).save(out.parent / "normal.png")
    folder = PairFolder(out, {"seed": seed, "white": 4095})
    with folder.held(32):
        for defect in defects:
            for k in range(n):
                doubtful = k % 4 in (1, 2)
                folder.write(defect, k, {
                    "normal": out.parent / "normal.png", "change": 0.1, "seed": seed,
                    "alike": ALIKE[k % 4], "verdict": "doubtful" if doubtful else "pass",
                    "reason": "alike 0.5, at least 0.8: unlike" if doubtful else ""},
                    Photograph(np.where(mask, 200, values).astype(np.uint16), 4095), mask,
                    rejected=k % 4 == 2)
    return folder


@pytest.fixture(scope="module")
def browser():
    sync_api = pytest.importorskip("playwright.sync_api")
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


@pytest.fixture
def page(browser, tmp_path):
    context = browser.new_context(viewport={"width": 1280, "height": 720})
    faults, page = [], context.new_page()
    page.on("pageerror", lambda error: faults.append(error))
    page.on("console", lambda message: faults.append(message.text))
    page.on("request", lambda r: r.url.startswith(("file:", "blob:")) or faults.append(r.url))
    page.goto(fill(tmp_path / "out").review.as_uri())
    yield page
    context.close()
    assert faults == []


def text(page, name):
    return page.inner_text(f"#{name}")


@in_browser
def test_pairs_are_decided_by_keyboard_kept_over_a_reload_and_saved(page, tmp_path):
    assert text(page, "verdict") == "doubtful: alike 0.5, at least 0.8: unlike"
    for key in "aaru":
        page.keyboard.press(key)
    assert text(page, "told") == "2 of 8 pairs decided"
    assert text(page, "verdict").startswith("left out: alike") and text(page, "mark") == ""
    page.keyboard.press("r")
    page.keyboard.press("End")
    page.keyboard.press("a")
    page.reload()
    assert text(page, "told") == "4 of 8 pairs decided"
    assert (text(page, "accepted"), text(page, "rejected")) == ("✓ 3 accepted", "✕ 1 rejected")
    with page.expect_download() as saved:
        page.keyboard.press("s")
    assert saved.value.suggested_filename == "review.csv"
    saved.value.save_as(tmp_path / "review.csv")
    with open(tmp_path / "review.csv", newline="", encoding="utf-8") as file:
        found = list(csv.DictReader(file))
    decided = {(SCRIPT, "1"), ("crack", "1"), (SCRIPT, "2"), ("crack", "3")}
    assert found == [{**{name: row[name] for name in ("image", "object", "defect", "k")},
                      "decision": "reject" if row["k"] == "2" else "accept",
                      "id": identity(row)}
                     for row in manifest_rows(tmp_path / "out")
                     if (row["defect"], row["k"]) in decided]
    assert call("export", "--pairs", tmp_path / "out", "--review", tmp_path / "review.csv",
                "--format", "mvtec", "--out", tmp_path / "exported") == 0
    assert sorted(path.name for path in tmp_path.glob("exported/tile/test/*/*.png")) == [
        f"{k:05}.png" for k in (0, 0, 1, 1, 3, 3)]      # without 2, rejected or undecided
    page.goto(fill(tmp_path / "other", seed=1).review.as_uri())
    page.keyboard.press("a")
    assert text(page, "told") == "1 of 8 pairs decided"
    assert page.evaluate("localStorage.length") == 2        # a data set's decisions are its own
    page.goto(fill(tmp_path / "more", n=5).review.as_uri())      # a copy, with more pairs
    assert text(page, "told") == "4 of 10 pairs decided"


@pytest.mark.parametrize("text, words", [
    ("image,decision\nx,accept\n", ["columns are image, decision; expected image, object"]),
    ("image,object,defect,k,decision\ntile/test/crack/00099.png,,,,reject\n", ["99.png is not in"]),
    ("image,object,defect,k,decision\ntile/test/crack/00000.png,,,,maybe\n", ["'maybe'; expected"]),
    ("image,object,defect,k,decision,id\ntile/test/crack/00000.png,,,,accept,\n"
     "tile/test/crack/00001.png,,,,accept,0a\n", ["00001.png was another pair"]),
    ("", ["columns are none"])])
def test_a_review_of_something_else_is_refused(tmp_path, capsys, text, words):
    fill(tmp_path / "pairs", defects=DEFECTS[:1])
    (tmp_path / "r.csv").write_text(text)
    refused(capsys, call("export", "--pairs", tmp_path / "pairs", "--format", "mvtec", "--out",
                         tmp_path / "out", "--review", tmp_path / "r.csv"), *words)
    assert not (tmp_path / "out").exists()


@in_browser
def test_a_defect_called_script_is_text_and_can_be_filtered(page, tmp_path):
    page.keyboard.press("f")
    page.select_option("#by-defect", label=f"tile/{SCRIPT}")
    page.select_option("#by-verdict", "left out")
    page.keyboard.press("Escape")
    assert page.locator(".item").count() == 1
    assert page.text_content("#pair") == f"tile/{SCRIPT} 00002"
    assert page.title() == "Review of out"
    page.goto(fill(tmp_path / os.fsdecode(b"b\xff")).review.as_uri())
    assert page.title() == "Review of b%FF" and page.locator(".item").count() == 8


@in_browser
def test_a_held_key_shows_the_crop_before_and_a_missing_normal_is_said(page, tmp_path):
    def level():        # of the middle of the mask, on the screen
        page.wait_for_function("document.getElementById('now').style.visibility === ''")
        page.locator("#crop").screenshot(path=tmp_path / "shot.png")
        shot = np.asarray(Image.open(tmp_path / "shot.png").convert("L"))
        return shot[len(shot) // 2, len(shot) // 2]
    assert abs(int(level()) - 200 * 255 / 4095) < 4
    page.keyboard.down(" ")
    assert text(page, "when") == "before" and abs(int(level()) - 1000 * 255 / 4095) < 4
    page.keyboard.up(" ")
    assert text(page, "when") == "after" and level() < 20
    shutil.rmtree(tmp_path / "out/_meta/review")
    os.remove(tmp_path / "normal.png")
    with PairFolder(tmp_path / "out").held(32):
        pass
    page.reload()
    assert level() < 20
    page.keyboard.down("b")
    assert text(page, "gone") == "There is no before: the normal photograph is gone."


@in_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_the_list_has_the_items_in_sight_alone_and_nothing_is_cut_off(page, tmp_path, width):
    page.set_viewport_size({"width": width, "height": 720})
    page.goto(fill(tmp_path / "many", n=40).review.as_uri())
    page.keyboard.press("End")
    page.wait_for_selector("#item-79[aria-selected=true]")
    assert page.locator(".item").count() < 30
    assert page.evaluate("document.documentElement.scrollWidth") == width
    names = page.eval_on_selector_all("button, [role=listbox], select", """all => all.map(
        e => e.getAttribute("aria-label") || (e.labels?.[0] ?? e).textContent)""")
    assert all(name.strip() for name in names)


def test_pictures_that_are_there_are_kept_and_a_missing_one_is_made_again(tmp_path):
    folder = fill(tmp_path / "out")
    made = {path: (path.read_bytes(), path.stat().st_mtime_ns)
            for path in folder.review.with_suffix("").rglob("*.*g")}
    assert len(made) == 16
    lost = sorted(made)[0]
    lost.unlink()
    with PairFolder(tmp_path / "out").held(32):
        pass
    assert lost.read_bytes() == made[lost][0]
    again = {path for path in made if path.stat().st_mtime_ns != made[path][1]}
    assert again == {lost, lost.with_suffix(".svg")}


def test_an_outline_has_every_side_between_a_cell_of_the_mask_and_one_that_is_none(tmp_path):
    cells = np.array([[1, 1, 0], [0, 1, 0], [1, 0, 0]], bool)
    assert sorted(outline(cells).split("M")[1:]) == sorted([
        "0 0h2", "0 1h1", "0 2h2", "0 3h1", "0 0v1", "2 0v2", "1 1v2", "0 2v1"])
    write_pictures(tmp_path / "a", Look(None, np.zeros((9, 9), np.uint8), cells, Crop(0, 0, 3)))
    assert Image.open(tmp_path / "a.jpg").size == (2 * 512, 512)
