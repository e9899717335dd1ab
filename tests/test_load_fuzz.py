"""Headers and configurations damaged at random: one line each, in seconds, within a gigabyte."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from models_on_disk import write_small

HERE = Path(__file__).parent


def fuzz(folder, cases, seed):
    write_small(folder)
    paths = os.pathsep.join([str(HERE), str(HERE.parent / "tools"), str(HERE.parent)])
    done = subprocess.run([sys.executable, HERE / "fuzz_headers.py", folder, str(cases), str(seed)],
                          capture_output=True, text=True, env={**os.environ, "PYTHONPATH": paths})
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert found.pop("faults") == []
    assert sum(found.values()) == cases and found["refused"] > cases / 2
    return found


def test_a_hundred_damaged_headers_end_in_a_line_each(tmp_path):
    fuzz(tmp_path, 100, seed=1)


@pytest.mark.fuzz
def test_five_hundred_more(tmp_path):
    fuzz(tmp_path, 500, seed=2)
