"""What keeps the project readable: imports point one way, the core is small, departures are listed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RUN_TIME = {"torch", "safetensors", "numpy", "PIL", "einops", "tokenizers", "tqdm"}
REFERENCES = {"diffusers", "transformers", "scipy", "sklearn"}    # what the extra `test` installs
MAY_IMPORT = {      # folder -> the project's own packages it may use
    "ldm": {"ldm"},
    "weights": {"weights", "ldm"},
    "anomaly": {"anomaly", "ldm"},
    "anomaly/output": {"anomaly", "ldm"},
    "anomaly/output/synthetic": {"anomaly"},
    "tools": {"anomaly", "ldm", "weights", "benchmarks", "pretraining"},
    "tools/pretraining": {"anomaly", "ldm", "pretraining"},
    "tools/benchmarks": {"anomaly", "ldm", "weights", "benchmarks", "pretraining", *REFERENCES},
}


def imports(path):
    """Dotted names of the modules a file imports, `from a import b` as a.b."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_point_one_way_and_need_only_the_run_time_packages(folder):
    files = sorted((ROOT / folder).glob("*.py"))
    assert files
    for path in files:
        for name in imports(path):
            top = name.split(".")[0]
            allowed = MAY_IMPORT[folder] | RUN_TIME | set(sys.stdlib_module_names)
            assert top in allowed, f"{path}: {name}"
            if folder == "anomaly":
                assert not name.startswith("anomaly.output"), f"{path}: the core imports {name}"


def test_both_rings_stay_within_their_lines():
    """Lines that are not blank: code, comments, docstrings, tables.

    What makes the embedded checkpoint and what measures are in neither ring: no user's command runs
    them.
    """
    def lines(*patterns):
        return sum(bool(line.strip()) for pattern in patterns for p in ROOT.glob(pattern)
                   for line in p.read_text().splitlines())
    assert lines("ldm/*.py", "weights/*.py", "anomaly/*.py") <= 2500
    assert lines("anomaly/output/**/*.py", "tools/*.py") <= 2500


def test_every_file_that_departs_is_in_the_readmes_table():
    departures = (ROOT / "README.md").read_text().split("## Departures")[1].split("\n## ")[0]
    files = [p for folder in MAY_IMPORT for p in (ROOT / folder).glob("*.py")
             if "departs from" in p.read_text()]
    assert len(files) > 8
    assert [str(p.relative_to(ROOT)) for p in files if str(p.relative_to(ROOT)) not in departures] == []


def test_importing_the_packages_has_no_effects(tmp_path):
    """No files, no threads, no output, no seeding."""
    code = ("import torch, threading; torch.manual_seed(1); a = torch.get_rng_state();"
            "import ldm.model, weights, anomaly.train, anomaly.mask_model, anomaly.pairs.pair_folder;"
            "assert torch.equal(a, torch.get_rng_state()) and threading.active_count() == 1")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not list(tmp_path.iterdir())
