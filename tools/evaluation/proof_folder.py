"""What an inspection needs before it begins: its packages, its defaults, its folder."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from anomaly.files.atomic_files import read_json, write_json
from anomaly.files.holding import held, refuse_foreign

RESOLUTION = 256        # pixels that the longer side has at most, as for the paper's detectors
DETECTOR_STEPS = 200    # of training


def check_extra() -> None:
    """ValueError if a package of the extra is not installed."""
    try:
        import matplotlib  # noqa: F401
        import scipy  # noqa: F401
        import sklearn  # noqa: F401
    except ImportError as err:
        raise ValueError(f"inspect: {err.name} is not installed, and it is needed; "
                         f'pip install -e ".[eval]"') from None


@contextmanager
def held_folder(folder: Path, options: dict[str, object]) -> Iterator[Callable[[], None]]:
    """Hold the folder of an inspection; call what it gives once nothing can be at fault any more.

    FileExistsError if anything else lies in it, ValueError if it was made with other options.
    """
    path = folder / "config.json"
    if not path.is_file():
        refuse_foreign(folder, {"config.json.part"})
    elif (before := read_json(path, {}, "choose another --out")) != options:
        name = next(n for n in sorted(before | options) if before.get(n) != options.get(n))
        raise ValueError(f"--{name.replace('_', '-')}: {options.get(name)}, but {folder} was made "
                         f"with {before.get(name)}; give that, or choose another --out")
    with held(folder):
        yield lambda: write_json(path, options)
