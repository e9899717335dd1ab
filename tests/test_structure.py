"""What keeps every folder readable: imports point one way, sizes have limits, names are unique.

    python -m pytest -s tests/test_structure.py     prints the table of sizes
"""

import ast
import subprocess
import sys
import tokenize
from itertools import chain

import pytest

from commands import ROOT

RUN_TIME = {"torch", "safetensors", "numpy", "PIL", "einops", "tokenizers", "tqdm"}
REFERENCES = {"diffusers", "transformers", "scipy", "sklearn"}    # what the extra `test` installs
FILES = {"anomaly.files"}
CORE = {f"anomaly.{path.stem}" for path in (ROOT / "anomaly").glob("*.py")} - {"anomaly.__init__"}
CORE |= FILES
SCORES = CORE | {"anomaly.scores"}
RUNS = SCORES | {"anomaly.runs"}
PAIRS = RUNS | {"anomaly.pairs"}
EVERYTHING = PAIRS | {"anomaly.drawn", "weights", "ldm"}
LIMITS = {      # folder -> code lines at most, and what of the project its files may import
    "ldm": (625, {"ldm"}),
    "weights": (795, {"weights", "ldm"}),
    "anomaly/files": (690, FILES),
    "anomaly": (850, CORE | {"ldm"}),
    "anomaly/scores": (450, SCORES | {"ldm"}),
    "anomaly/runs": (760, RUNS | {"ldm"}),
    "anomaly/pairs": (1680, PAIRS | {"ldm", "anomaly.__version__"}),
    "anomaly/drawn": (430, CORE | {"anomaly.drawn"}),
    "tools": (925, EVERYTHING | {"cli", "display", "benchmarks", "evaluation", "pretraining",
                                 "anomaly.__version__"}),
    "tools/evaluation": (1175, EVERYTHING | {"evaluation"}),
    "tools/benchmarks": (1065, EVERYTHING | {"benchmarks", "pretraining"} | REFERENCES),
    "tools/pretraining": (350, EVERYTHING | {"pretraining"}),
    "docs": (155, EVERYTHING),
}
TOOLS = ("train_embed", "sample", "export", "evaluate", "bench", "pretrain_tiny")
# file -> what the extras `export` and `eval` bring it
EXTRA = {"contours": {"cv2", "pycocotools"}, "detection": {"scipy", "sklearn"},
         "pasting": {"scipy"}, "report": {"matplotlib"}, "sets": {"torch_fidelity"},
         "proof_folder": {"matplotlib", "scipy", "sklearn"}}
NO_CODE = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
           tokenize.ENCODING, tokenize.ENDMARKER)


def files(folder):
    return sorted((ROOT / folder).glob("*.py"))


def every_file():
    return list(chain.from_iterable(map(files, [*LIMITS, "tests"])))


def documented(tree):
    """Nodes that can have a docstring."""
    return [node for node in ast.walk(tree)
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef))]


def code_lines(path):
    """Lines that are neither blank nor comment nor docstring."""
    with open(path, "rb") as file:
        lines = {n for token in tokenize.tokenize(file.readline) if token.type not in NO_CODE
                 for n in range(token.start[0], token.end[0] + 1)}
    for node in documented(ast.parse(path.read_text())):
        if ast.get_docstring(node, clean=False) is not None:
            lines -= set(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(lines)


def total(folder):
    return sum(map(code_lines, files(folder)))


def imports(path):
    """Dotted names of the modules a file imports, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_folder_with_code_has_a_limit():
    folders = {str(path.parent.relative_to(ROOT)) for path in ROOT.rglob("*.py")
               if not any(part.startswith(".") for part in path.relative_to(ROOT).parts)}
    assert folders == {*LIMITS, "tests"}


@pytest.mark.parametrize("folder", LIMITS)
def test_imports_point_one_way_and_need_only_the_run_time_packages(folder):
    allowed = LIMITS[folder][1] | RUN_TIME | set(sys.stdlib_module_names)
    for path in files(folder):
        for name in imports(path):
            parents = {".".join(name.split(".")[:n]) for n in range(1, name.count(".") + 2)}
            assert parents & (allowed | EXTRA.get(path.stem, set())), f"{path}: {name}"


def test_no_file_imports_a_tool():
    found = {(str(path), name) for path in every_file() for name in imports(path)
             if name.split(".")[0] in TOOLS}
    assert found == set()


def test_sizes_stay_within_their_limits():
    sizes = {folder: total(folder) for folder in [*LIMITS, "tests"]}
    product = sum(sizes[folder] for folder in LIMITS)
    limits = {**{folder: limit for folder, (limit, _) in LIMITS.items()}, "tests": product}
    print("\n\ncode lines", *(f"{f:20}{sizes[f]:6} of {limits[f]}" for f in sizes), sep="\n")
    assert {folder: sizes[folder] for folder in LIMITS if sizes[folder] > LIMITS[folder][0]} == {}
    assert sizes["tests"] < product
    long = {path.stem for path in every_file() if len(path.read_text().splitlines()) > 300}
    assert long <= {"test_half_precision", "test_load_refusals", "test_output", "test_ownership",
                    "test_gate"}


def test_no_two_files_and_no_two_classes_share_a_name():
    product = [path for folder in LIMITS for path in files(folder)]
    names = [path.name for path in product if path.name != "__init__.py"]
    names += [node.name for path in product for node in ast.walk(ast.parse(path.read_text()))
              if isinstance(node, ast.ClassDef)]
    assert {name for name in names if names.count(name) > 1} == set()


def test_lines_end_at_column_100():
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    long = [f"{path}:{n}" for path in every_file() + pages
            for n, line in enumerate(path.read_text().splitlines(), 1)
            if len(line) > 100 and not (path.suffix == ".md" and line.startswith("|"))]
    assert long == []


def test_pages_stay_short():
    most = {"README.md": 170, "CONTRIBUTING.md": 50, "docs/results.md": 410, "docs/files.md": 60,
            "weights/tiny/README.md": 50}
    lines = {name: len((ROOT / name).read_text().splitlines()) for name in most}
    assert {name: n for name, n in lines.items() if n > most[name]} == {}


@pytest.mark.parametrize("from_what, section", [
    ("departs from the paper", "## Departures from the paper"),
    ("departs from the released code", "## Where the authors' code differs from their paper")])
def test_every_file_that_departs_is_in_a_table(from_what, section):
    table = (ROOT / "docs/departures.md").read_text().split(section, 1)[-1].split("\n## ")[0]
    departing = [path for folder in LIMITS for path in files(folder)
                 if from_what in path.read_text()]
    assert len(departing) > 3
    assert [str(path) for path in departing if f"`{path.relative_to(ROOT)}`" not in table
            and f"`{path.parent.relative_to(ROOT)}/`" not in table] == []


def test_importing_the_packages_has_no_effects(tmp_path):
    """No files, no threads, no output, no seeding."""
    code = ("import torch, threading; torch.manual_seed(1); a = torch.get_rng_state();"
            "import ldm.model, weights, anomaly.runs, anomaly.pairs, anomaly.drawn.demo;"
            "assert torch.equal(a, torch.get_rng_state()) and threading.active_count() == 1")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True,
                          capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not list(tmp_path.iterdir())
