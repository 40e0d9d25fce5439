"""Read untrusted checkpoints as data, never as code, and account for every tensor in them."""

import argparse
import json
import os
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

_SHOWN = 20


class _LeftOut:
    """Stand-in for a schedule of a training program and for what a file looks up on it; keeps nothing."""

    def __new__(cls, *arguments: Any) -> "_LeftOut":
        """Take any arguments."""
        return super().__new__(cls)


# What training programs often store along with the weights: settings of argparse, which are attributes and run no
# code, and NumPy scalars, whose constructor older versions call by another name.
_NUMBER = np.float64(0).__reduce__()[0]
_PLAIN = [
    argparse.Namespace,
    np.dtype,
    *((_NUMBER, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *(type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32")),
    # Schedules of older versions of torch store a function of their class, by its name.
    (_LeftOut, "builtins.getattr"),
    (_LeftOut, "torch.optim.lr_scheduler.OneCycleLR"),
    (_LeftOut, "pointcept.utils.scheduler.OneCycleLR"),
]
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
DTYPES = (*_FLOATS, torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
"""Types of weights in the published files; quantized, complex and 8-bit floats are not read."""


def check_is_file(path: Path) -> None:
    """Raise an error for a directory (ValueError), or where there is no file (FileNotFoundError)."""
    if path.is_dir():
        raise ValueError(f"{path}: a directory; expected a file")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")


def read_checkpoint(
    path: str | os.PathLike, keys: tuple[str, ...] = ("model", "base_model")
) -> dict[str, torch.Tensor]:
    """Read the state dict in a file that `torch.save` wrote, unpickling nothing but tensors and plain values.

    Uncompressed files are mapped into memory, others are read. Checksums are compared in both cases.

    Args:
        path: The file.
        keys: Keys of the file's dict under which the state dict may be; a bare state dict is accepted too.

    Returns:
        Tensors by name, on the CPU, without the prefix `module.` of data-parallel training.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, holds objects that would run code, holds no state dict, or holds tensors that
            are not plain arrays.
    """
    path = Path(path)
    check_is_file(path)
    state = _state_dict(path, _load(path), keys)
    check_tensors(path, state)
    with errors_about(path):
        return without_parallel_prefix(state)


def read_entries(path: str | os.PathLike) -> list[str]:
    """Read the keys of a file that `torch.save` wrote, such as those beside its state dict.

    Args:
        path: A file that `read_checkpoint` takes.
    """
    content = _load(Path(path), "meta")
    return [key for key in content if isinstance(key, str)] if isinstance(content, Mapping) else []


def read_settings(path: str | os.PathLike, key: str) -> dict[str, Any]:
    """Read the settings that a file of `torch.save` holds next to its state dict, plain values only.

    Args:
        path: The file.
        key: Their key.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, or holds no settings under the key.
    """
    path = Path(path)
    check_is_file(path)
    content = _load(path)
    found = content.get(key) if isinstance(content, Mapping) else None
    if isinstance(found, argparse.Namespace):
        found = vars(found)
    if not isinstance(found, Mapping) or not all(isinstance(name, str) for name in found):
        raise ValueError(f"{path}: no settings under {key!r}; expected those of the model, by name")
    return dict(found)


def read_weights(directory: Path) -> tuple[dict[str, torch.Tensor], list[Path]]:
    """Read the state dict of a directory, memory-mapped if the format allows it.

    Args:
        directory: With `model.safetensors` or `pytorch_model.bin`, or the index of several such files.

    Returns:
        Tensors by name, and the files that hold them.

    Raises:
        FileNotFoundError: No weights, or a file that the index names is missing.
        ValueError: A file is damaged or holds more than tensors and plain values, or two hold the same tensor.
    """
    for name in (SAFE_WEIGHTS_NAME, WEIGHTS_NAME):
        if (index := directory / f"{name}.index.json").is_file():
            return _read_all(_files_in_index(index))
        if (directory / name).is_file():
            return _read_all([directory / name])
    raise FileNotFoundError(f"{directory}: no weights; expected {SAFE_WEIGHTS_NAME} or {WEIGHTS_NAME}, or an index")


def read_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Read the state dict of a file that `torch.save` or safetensors wrote.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It is damaged, or holds more than tensors and plain values.
    """
    if file.suffix != ".safetensors":
        return read_checkpoint(file)
    check_is_file(file)
    try:
        state = load_file(file)
    except (SafetensorError, KeyError) as error:  # KeyError: unknown dtype
        raise ValueError(f"{file}: damaged, or no safetensors file ({error})") from error
    check_tensors(file, state)
    return state


def open_tokenizer(name: str | os.PathLike, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a language model, running no code of its repository.

    Args:
        name: Directory or hub name.
        config: Config of the language model; by default that of the repository, if transformers knows its type.

    Raises:
        ValueError: There is none, or it has no end token.
    """
    # From a directory without these files transformers would make an empty tokenizer.
    if os.path.isdir(name) and not any((Path(name) / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{name}: no tokenizer; expected tokenizer.json or vocab.json, or give --tokenizer")
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, config=config, trust_remote_code=False)
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{name}: no tokenizer that can be opened ({reason}); give --tokenizer") from error
    if tokenizer.eos_token_id is None:
        raise ValueError(f"{name}: the tokenizer has no end token, which answers and padding need")
    return tokenizer


def read_json(file: Path) -> dict:
    """Read a JSON file that holds an object.

    Raises:
        FileNotFoundError: No such file.
        ValueError: It holds something else.
    """
    check_is_file(file)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file}: not JSON ({error})") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file}: holds a {type(content).__name__}; expected an object")
    return content


def account(path: str | os.PathLike, found: Mapping[str, torch.Tensor], expected: Mapping[str, torch.Tensor]) -> None:
    """Check that names, shapes and kinds of tensors are exactly those expected.

    Args:
        path: The file that they came from, for the message.
        found: Tensors by name.
        expected: Tensors of the same shapes, by name, possibly on `meta`; their values are not compared.

    Raises:
        ValueError: Tensors are missing, left over, of another shape, or floats instead of integers or vice versa; all
            are listed.
    """
    missing = sorted(expected.keys() - found.keys())
    left_over = sorted(found.keys() - expected.keys())
    both = sorted(expected.keys() & found.keys())
    shapes = [
        f"{name} is {tuple(found[name].shape)}, expected {tuple(expected[name].shape)}"
        for name in both
        if found[name].shape != expected[name].shape
    ]
    types = [
        f"{name} is {found[name].dtype}, expected {expected[name].dtype}"
        for name in both
        if found[name].is_floating_point() != expected[name].is_floating_point()
    ]
    kinds = [("missing", missing), ("left over", left_over), ("of another shape", shapes), ("of another type", types)]
    if problems := [f"{what}: {listed(names)}" for what, names in kinds if names]:
        raise ValueError(f"{path}: does not fit, tensors are {'; '.join(problems)}")


def check_tensors(path: Path, state: Mapping[str, torch.Tensor]) -> None:
    """Check that tensors are dense, have numbers, and are of one of `DTYPES`.

    Raises:
        ValueError: Some are not; all are listed.
    """
    wrong = [
        f"{name} is {tensor.layout}, {tensor.dtype} on {tensor.device}"
        for name, tensor in state.items()
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES or tensor.is_meta
    ]
    if wrong:
        raise ValueError(
            f"{path}: not all tensors are plain arrays of numbers (dense, float16 to float64, integers or bool): "
            f"{listed(sorted(wrong))}"
        )


def check_finite(state: Mapping[str, torch.Tensor]) -> None:
    """Check that all numbers are finite in float32.

    Raises:
        ValueError: Some are NaN, infinite or too large; the tensors are listed.
    """
    wrong = [name for name, tensor in state.items() if not _is_finite(tensor)]
    if wrong:
        raise ValueError(
            f"the checkpoint holds NaN or infinite numbers in {len(wrong)} tensors: {listed(sorted(wrong))}; expected "
            "finite weights"
        )


def without_parallel_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the prefix `module.` of data-parallel training from the names of tensors.

    Raises:
        ValueError: Two tensors then have the same name; all such names are listed.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        twice = [f"{name} and module.{name}" for name in sorted(plain) if {name, f"module.{name}"} <= state.keys()]
        raise ValueError(f"the checkpoint holds tensors that mean the same part: {listed(twice)}")
    return plain


@contextmanager
def errors_about(source: str | os.PathLike) -> Iterator[None]:
    """Prefix the message of a `ValueError` with the file or directory that it is about, unless it already names it."""
    try:
        yield
    except ValueError as error:
        text = str(error)
        raise ValueError(text if text.startswith(os.fspath(source)) else f"{source}: {text}") from error


def listed(names: list[str]) -> str:
    """Join names in one line, shortened to the first ones and a count if there are many."""
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def _load(path: Path, device: str = "cpu") -> Any:
    try:
        in_place = device == "cpu" and zipfile.is_zipfile(path) and _is_uncompressed(path)
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location=device, weights_only=True, mmap=in_place)
    except UnpicklingError as error:
        raise ValueError(
            f"{path}: not a checkpoint of tensors and plain values ({_first_line(error)}); other objects are refused, "
            "since reading them runs code of whoever made the file"
        ) from error
    # Damaged files make torch's reader raise a dozen kinds of errors.
    except Exception as error:
        raise ValueError(f"{path}: damaged, or no file that torch.save wrote ({_first_line(error)})") from error


def _is_uncompressed(path: Path) -> bool:
    """Return whether torch may map a zip, after comparing its checksums, which torch does not."""
    with zipfile.ZipFile(path) as archive:
        if damaged := archive.testzip():
            raise zipfile.BadZipFile(f"the checksum of its member {damaged!r} is wrong")
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _state_dict(path: Path, content: object, keys: tuple[str, ...]) -> dict[str, torch.Tensor]:
    state = content
    if isinstance(content, Mapping):
        state = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    items = state.items() if isinstance(state, Mapping) else ()
    is_state = all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in items)
    if not isinstance(state, Mapping) or not state or not is_state:
        seen = type(content).__name__
        if isinstance(content, Mapping):
            seen = listed(sorted(key for key in content if isinstance(key, str))) or "nothing"
        raise ValueError(f"{path}: no state dict; expected one under {' or '.join(map(repr, keys))}, found {seen}")
    return dict(state)


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel() or tensor.is_meta:
        return True
    largest = torch.finfo(torch.float32).max
    low, high = (float(bound) for bound in tensor.aminmax())  # both are NaN where any number is
    return -largest <= low and high <= largest


def _first_line(error: Exception) -> str:
    # torch explains at length; these lines name what it refuses.
    lines = [line.strip() for line in str(error).splitlines() if "nsupported" in line or "GLOBAL" in line]
    return (lines or str(error).strip().splitlines() or [type(error).__name__])[0][:200]


def _files_in_index(index: Path) -> list[Path]:
    names = read_json(index).get("weight_map")
    # A name with folders could lead out of the directory.
    if not isinstance(names, dict) or not names or any(Path(name).name != name for name in map(str, names.values())):
        raise ValueError(f"{index}: no weight_map from tensors to files in the same directory")
    return [index.parent / name for name in sorted(set(names.values()))]


def _read_all(files: list[Path]) -> tuple[dict[str, torch.Tensor], list[Path]]:
    state: dict[str, torch.Tensor] = {}
    for file in files:
        part = read_tensors(file)
        if twice := sorted(state.keys() & part.keys()):
            raise ValueError(f"{file}: holds tensors that another file holds too: {', '.join(twice)}")
        state |= part
    return state, files
