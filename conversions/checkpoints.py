"""Reading original checkpoints as data, and accounting for every tensor in them."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError

import numpy as np
import torch

_SHOWN = 20
# Plain numbers of numpy, which training programs like to keep beside the weights; the function that makes them has
# another name in files of older versions.
_NUMBER = np.float64(0).__reduce__()[0]
_NUMBERS = [
    np.dtype,
    *((_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32")),
]


def read_checkpoint(
    path: str | os.PathLike, keys: tuple[str, ...] = ("model", "base_model")
) -> dict[str, torch.Tensor]:
    """Read the state dict in a file that `torch.save` wrote; nothing but tensors and plain values is ever unpickled.

    Args:
        path: The file.
        keys: Where in the file's dict the state dict may be; a file that is nothing but a state dict is taken too.

    Returns:
        Tensors by name, on the CPU, without the `module.` that data-parallel training puts in front.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, holds objects that would run code, or holds no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        # Only the newer of torch's two formats can be read in place.
        in_place = zipfile.is_zipfile(path)
        with torch.serialization.safe_globals(_NUMBERS):
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=in_place)
    except UnpicklingError as error:
        raise ValueError(
            f"{path}: not a checkpoint of tensors and plain values ({_first_line(error)}); other objects are refused, "
            "since reading them runs code of whoever made the file"
        ) from error
    except (RuntimeError, EOFError, OSError, KeyError, ValueError) as error:
        raise ValueError(f"{path}: damaged, or no file that torch.save wrote ({_first_line(error)})") from error
    return _state_dict(path, content, keys)


def without_parallel_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Tensors without the `module.` that data-parallel training puts in front of their names.

    Raises:
        ValueError: If two tensors then have the same name; all such names are listed.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        twice = [f"{name} and module.{name}" for name in sorted(plain) if {name, f"module.{name}"} <= state.keys()]
        raise ValueError(f"the checkpoint holds tensors that mean the same part: {', '.join(twice)}")
    return plain


def account(path: str | os.PathLike, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Size]) -> None:
    """Make sure that tensors are exactly those which are expected.

    Args:
        path: The file that they came from, for the message.
        found: Tensors by name.
        expected: Shapes by name.

    Raises:
        ValueError: Tensors are missing, left over or of another shape; all are listed.
    """
    missing = sorted(expected.keys() - found.keys())
    left_over = sorted(found.keys() - expected.keys())
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name])}"
        for name in sorted(expected.keys() & found.keys())
        if found[name].shape != expected[name]
    ]
    told = [("missing", missing), ("left over", left_over), ("of another shape", shapes)]
    if problems := [f"{what}: {', '.join(names)}" for what, names in told if names]:
        raise ValueError(f"{path}: does not fit, tensors are {'; '.join(problems)}")


def listed(names: list[str]) -> str:
    """Names in one line; of very many, the first ones and a count."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _state_dict(path: Path, content: object, keys: tuple[str, ...]) -> dict[str, torch.Tensor]:
    state = content
    if isinstance(content, Mapping):
        state = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        seen = listed(sorted(map(str, content))) if isinstance(content, Mapping) else type(content).__name__
        raise ValueError(f"{path}: no state dict; expected one under {' or '.join(map(repr, keys))}, found {seen}")
    try:
        return without_parallel_prefix({str(name): tensor for name, tensor in state.items()})
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if "nsupported" in line or "GLOBAL" in line]
    return (lines or str(error).strip().splitlines() or [type(error).__name__])[0][:200]
