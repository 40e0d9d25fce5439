"""Read untrusted checkpoints as data, never as code, and account for every tensor in them."""

import argparse
import json
import os
import struct
import sys
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
_LONGEST_NAME = 500
# How many times its own size a compressed file may unpack to, and the size that is always read. Compression saves
# about a tenth of weights, so this is generous.
_EXPANSION, _ALWAYS_READ = 20, 64 * 2**20
# How many times tensors of a file may share the same storage: tied weights do so two or three times.
_SHARING = 8
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a member of a zip: lengths of name and extra field


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

    Uncompressed files are mapped into memory; others, such as repacked and compressed ones, are read. Checksums are
    compared in both cases.

    Args:
        path: The file.
        keys: Keys of the file's dict under which the state dict may be; a bare state dict is accepted too.

    Returns:
        Tensors by name, on the CPU, without the prefix `module.` of data-parallel training. All are dense and of one
        of `DTYPES`.

    Raises:
        FileNotFoundError: No such file.
        ValueError: The file is damaged, holds objects that would run code, holds no state dict, or holds tensors that
            are not plain arrays.
    """
    path = Path(path)
    check_is_file(path)
    # Checksums first, since torch compares none of what it maps.
    members = _checked_members(path) if _is_zip(path) else None
    in_place = members is not None and _is_readable_in_place(path, members)
    state = _state_dict(path, _load(path, "cpu", in_place), keys)
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
    members = _checked_members(path) if _is_zip(path) else None
    content = _load(path, "cpu", members is not None and _is_readable_in_place(path, members))
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
    """Check that tensors are plain arrays whose numbers are all in the file.

    Raises:
        ValueError: Tensors are sparse, quantized, not of one of `DTYPES`, or larger than what is stored; all are
            listed. Or a name is not text, or very long.
    """
    for name in state:
        if not isinstance(name, str) or len(name) > _LONGEST_NAME:
            seen = f"one of {len(name):,} characters" if isinstance(name, str) else f"a {type(name).__name__}"
            raise ValueError(f"{path}: names of tensors are text of up to {_LONGEST_NAME} characters; found {seen}")
    wrong, stored, claimed = [], {}, 0
    for name, tensor in state.items():
        if tensor.layout != torch.strided or tensor.is_nested:
            wrong.append(f"{name} is {'nested' if tensor.is_nested else tensor.layout}")
        elif tensor.dtype not in DTYPES or tensor.is_quantized:
            wrong.append(f"{name} is {tensor.dtype}")
        elif tensor.device.type != "cpu":
            wrong.append(f"{name} has no numbers (it is on {tensor.device})")
        # Strides of 0 repeat what is stored.
        elif tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes():
            wrong.append(f"{name} claims {tensor.numel():,} numbers, more than are stored")
        else:
            storage = tensor.untyped_storage()
            # By address, as several tensors may share a storage, which then counts once.
            stored[storage.data_ptr()] = storage.nbytes()
            claimed += tensor.numel() * tensor.itemsize
    if wrong:
        raise ValueError(
            f"{path}: not all tensors are plain arrays of numbers (dense, float16 to float64, integers or bool): "
            f"{listed(sorted(wrong))}"
        )
    if claimed > _SHARING * sum(stored.values()):
        raise ValueError(f"{path}: tensors claim {claimed:,} bytes, but {sum(stored.values()):,} are stored")


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


def _load(path: Path, device: str, in_place: bool = False) -> Any:
    try:
        with torch.serialization.safe_globals(_PLAIN):
            return torch.load(path, map_location=device, weights_only=True, mmap=in_place)
    except UnpicklingError as error:
        raise ValueError(
            f"{path}: not a checkpoint of tensors and plain values ({_first_line(error)}); other objects are refused, "
            "since reading them runs code of whoever made the file"
        ) from error
    # Crafted files make torch's reader raise a dozen kinds of errors; in all of them the file is at fault.
    except Exception as error:
        raise ValueError(f"{path}: damaged, or no file that torch.save wrote ({_first_line(error)})") from error


def _is_zip(path: Path) -> bool:
    try:
        return zipfile.is_zipfile(path)
    except zipfile.BadZipFile:  # a locator that names another disk
        return True  # reading its members says so


def _checked_members(path: Path) -> dict[int, zipfile.ZipInfo]:
    """Compare the checksums of all members of a zip and return the members by the offset of their content.

    Raises:
        ValueError: A member is damaged or occurs twice, or the zip claims to unpack to many times its size.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            members = archive.infolist()
            size = path.stat().st_size
            unpacked = sum(member.file_size for member in members)
            if unpacked > max(_ALWAYS_READ, _EXPANSION * size):
                raise ValueError(
                    f"{path}: {size:,} bytes that claim to unpack to {unpacked:,}; expected at most {_EXPANSION} "
                    "times as many"
                )
            if len({member.filename for member in members}) < len(members):
                raise ValueError(f"{path}: a member occurs twice; expected each name once")
            offsets = {}
            for member in members:
                _compare_checksum(path, archive, member)
                file.seek(member.header_offset)
                # The lengths in the member's own header are used; those in the zip's directory may differ.
                lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
                offsets[member.header_offset + _LOCAL_HEADER.size + sum(lengths)] = member
            return offsets
    # The last one is that of a member's name.
    except (zipfile.BadZipFile, OSError, NotImplementedError, struct.error, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: damaged, or no file that torch.save wrote ({_first_line(error)})") from error


def _compare_checksum(path: Path, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> None:
    try:
        with archive.open(member) as content:
            # The checksum is compared at the end of the member.
            while content.read(2**20):
                pass
    # A wrong checksum, too few bytes, a broken or encrypted stream: each raises another kind of error.
    except Exception as error:
        reason = _first_line(error)
        raise ValueError(f"{path}: damaged, its member {member.filename!r} cannot be read ({reason})") from error


def _is_readable_in_place(path: Path, members: Mapping[int, zipfile.ZipInfo]) -> bool:
    """Return whether torch may map a file: every tensor is a complete, uncompressed member.

    Mapping trusts the sizes that tensors claim, and reads past the end of a member that is shorter.
    """
    if any(member.compress_type != zipfile.ZIP_STORED for member in members.values()):
        return False
    if not _has_byte_order_of_this_machine(path):
        return False  # torch would swap the bytes of a mapping that cannot be written to, which ends the process
    try:
        # No numbers are read, but torch notes at which offset each storage begins.
        content = _load(path, "meta")
    except ValueError:  # tensors that meta does not support; reading the file reports what is wrong with it
        return False
    tensors = _tensors_in(content)
    if any(tensor.layout != torch.strided or tensor.is_quantized for tensor in tensors):
        return False
    are_all_found = True
    for tensor in tensors:
        storage = tensor.untyped_storage()
        # Torch computes most offsets instead of reading them, which is right for files that it wrote itself.
        member = members.get(getattr(storage, "_checkpoint_offset", -1))
        if member is None:
            are_all_found = False
        elif member.file_size != storage.nbytes():
            raise ValueError(
                f"{path}: damaged, its member {member.filename!r} has {member.file_size:,} bytes; its tensor needs "
                f"{storage.nbytes():,}"
            )
    return are_all_found


def _has_byte_order_of_this_machine(path: Path) -> bool:
    with zipfile.ZipFile(path) as archive:
        orders = [archive.read(name) for name in archive.namelist() if name.rpartition("/")[2] == "byteorder"]
    return all(order == sys.byteorder.encode() for order in orders)


def _tensors_in(content: Any) -> list[torch.Tensor]:
    # A loop, as crafted files nest containers deeper than Python's stack, or in themselves.
    found, waiting, seen = [], [content], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor):
            found.append(value)
        elif isinstance(value, Mapping):
            waiting.extend(value.values())
        elif isinstance(value, (list, tuple, set)):
            waiting.extend(value)
    return found


def _state_dict(path: Path, content: object, keys: tuple[str, ...]) -> dict[str, torch.Tensor]:
    state = content
    if isinstance(content, Mapping):
        state = next((content[key] for key in keys if isinstance(content.get(key), Mapping)), content)
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, torch.Tensor) for v in state.values()):
        seen = type(content).__name__
        if isinstance(content, Mapping):
            seen = listed(sorted(key[:_LONGEST_NAME] for key in content if isinstance(key, str))) or "nothing"
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
