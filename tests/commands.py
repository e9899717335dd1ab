"""Run the tools: in this process, where a tool's imports are paid once, or as a user does."""

import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from cli import run_tool

ROOT = Path(__file__).parent.parent


def _module(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


TOOLS = {name: _module(name) for name in ("train_embed", "sample", "export", "evaluate", "bench",
                                           "pretrain_tiny")}


def call(tool, *argv):
    """Exit code of a tool with these arguments, in this process."""
    try:
        return run_tool(f"{tool}.py", lambda: TOOLS[tool].main([str(a) for a in argv]))
    except SystemExit as end:
        return end.code


def start(tool, *argv):
    """The tool as a process of its own, on one thread like the tests: the bytes are to be compared.

    It hears Ctrl-C even where a shell has started the tests in the background, with SIGINT ignored.
    """
    return subprocess.Popen([sys.executable, ROOT / "tools" / f"{tool}.py", *map(str, argv)],
                            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                            env={**os.environ, "OMP_NUM_THREADS": "1"},
                            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))


def fork(tool, *argv):
    """The tool in a copy of this process, which starts at once; its number, for os.kill."""
    if (child := os.fork()) == 0:
        signal.signal(signal.SIGINT, signal.default_int_handler)    # maybe ignored, as in start
        os._exit(call(tool, *argv))
    return child


def end_of(child):
    """Exit code of a forked tool, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
