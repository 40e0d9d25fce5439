"""The weights of a model's directory, whether in one file or many, safetensors or torch's."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from hf_any3d.conversions.checkpoints import check_tensors, read_checkpoint


def read_weights(directory: Path) -> tuple[dict[str, torch.Tensor], list[Path]]:
    """Read the state dict of a directory, in place where the format allows it.

    Args:
        directory: With `model.safetensors` or `pytorch_model.bin`, or the index of several such files.

    Returns:
        Tensors by name, and the files that they are in.

    Raises:
        FileNotFoundError: No weights, or a file that the index names is missing.
        ValueError: A file is damaged or holds more than tensors and plain values, or two hold the same tensor.
    """
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if (index := directory / f"{name}.index.json").is_file():
            return _read_all(_named_by(index))
        if (directory / name).is_file():
            return _read_all([directory / name])
    raise FileNotFoundError(f"{directory}: no weights; expected {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}, or an index")


def read_json(file: Path) -> dict:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It holds something else.
    """
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}; expected an object")
    return content


def _named_by(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    if not isinstance(names, dict) or not names or any(Path(name).name != name for name in map(str, names.values())):
        raise ValueError(f"{index}: no weight_map from tensors to files beside it")
    return [index.parent / name for name in sorted(set(names.values()))]


def _read_all(files: list[Path]) -> tuple[dict[str, torch.Tensor], list[Path]]:
    state: dict[str, torch.Tensor] = {}
    for file in files:
        part = _read(file)
        if twice := sorted(state.keys() & part.keys()):
            raise ValueError(f"{file}: holds tensors that another file holds too: {', '.join(twice)}")
        state |= part
    return state, files


def _read(file: Path) -> dict[str, torch.Tensor]:
    if file.suffix != ".safetensors":
        return read_checkpoint(file)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: no such file")
    try:
        state = load_file(file)
    # An unknown dtype is a KeyError.
    except (SafetensorError, KeyError) as error:
        raise ValueError(f"{file}: damaged, or no safetensors file ({error})") from error
    check_tensors(file, state)
    return state
