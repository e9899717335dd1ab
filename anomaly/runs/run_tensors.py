"""Tensors of a run as they are read back: whole, finite, of the shapes that are expected."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor


def read_tensors(path: Path, begin: str = "") -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, those whose keys begin so, and metadata of a file that a run wrote.

    ValueError unless they are finite numbers, or bool.
    """
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys() if key.startswith(begin)}
            bad = [key for key, some in tensors.items() if not (
                some.dtype == torch.bool or some.is_floating_point() and some.isfinite().all())]
            if bad:
                raise SafetensorError(f"{bad[0]!r} has values that are not finite numbers")
            return tensors, file.metadata() or {}
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: not found; training did not finish, run train_embed.py "
                                f"with --resume") from None
    except (SafetensorError, OSError) as err:
        raise ValueError(f"{path}: damaged ({str(err)!r}); train again") from None


def step_of(path: Path, metadata: dict[str, str]) -> int:
    """The step that a saved state was saved after."""
    if not metadata.get("step", "").isdecimal():
        raise ValueError(f"{path}: no step in its metadata; train again into another folder")
    return int(metadata["step"])


def fitted(path: Path, tensors: dict[str, Tensor], like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors; ValueError unless they have the names and shapes of others."""
    found, expected = ({name: tuple(some.shape) for name, some in each.items()}
                       for each in (tensors, like))
    for name in sorted(found.keys() | expected):
        if found.get(name) != expected.get(name):
            raise ValueError(f"{path}: {name!r} has the shape {found.get(name)}, expected "
                             f"{expected.get(name)}; put the run's own file back or train again")
    return tensors
