"""docs/walkthrough.py writes its page from a run; the page in docs/ quotes the code as it is."""

import re
from runpy import run_path

import pytest
from PIL import Image

from anomaly.dataset import find_defects
from anomaly.drawn.demo import demo_data
from anomaly.runs import learn
from commands import ROOT
from weights import load

QUOTE = re.compile(r"\[(\S+):(\d+)\]\(\.\./(\S+)#L(\d+)\)\n\n```python\n(.*?)\n```")
walkthrough = run_path(str(ROOT / "docs" / "walkthrough.py"))["main"]


def check_quotes_and_pictures(page):
    text = page.read_text()
    quotes, pictures = QUOTE.findall(text), re.findall(r"!\[.+?\]\((.+?)\)", text)
    assert len(quotes) == text.count("```python") > 10 and len(pictures) == 5
    for *link, file, n, code in quotes:
        said = (ROOT / file).read_text().splitlines()[int(n) - 1].strip()
        assert (link, code) == ([file, n], said), "the code has moved: run docs/walkthrough.py"
    assert all(min(Image.open(page.parent / each).size) > 100 for each in pictures)


def test_the_page_is_written_with_its_pictures(tmp_path, monkeypatch):
    monkeypatch.setattr("anomaly.drawn.demo.DEFECTIVE", 3)
    monkeypatch.setattr("anomaly.drawn.demo.NORMALS", 2)
    defects, run = find_defects(demo_data(tmp_path / "demo")), tmp_path / "run"
    learn(load("tiny"), defects, run, steps=1, size=64, mask_model=False)
    walkthrough(["--run", str(run), "--steps", "4", "--out", str(tmp_path)])
    check_quotes_and_pictures(tmp_path / "walkthrough.md")


def test_a_missing_run_is_named_with_the_command_that_makes_it(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        walkthrough(["--run", str(tmp_path / "none")])
    assert re.fullmatch(f".*{tmp_path}/none: .*train_embed.py --out .*\n", capsys.readouterr().err)


def test_the_page_in_docs_quotes_the_code_as_it_is():
    check_quotes_and_pictures(ROOT / "docs" / "walkthrough.md")
