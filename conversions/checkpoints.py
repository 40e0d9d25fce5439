"""Read untrusted checkpoints as data, never as code, and account for every tensor in them."""

import argparse
import json
import os
import sys
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from hf_any3d.conversions.pickles import NotPlainError, storages_of, texts_of
from hf_any3d.conversions.tensor_checks import listed
from hf_any3d.conversions.torch_pointcloud import authors_names
from hf_any3d.utils.messages import cut

# How many times its own size a compressed file may unpack to, and the size that is always read. Compression saves
# about a tenth of weights.
_EXPANSION, _ALWAYS_READ = 20, 64 * 2**20
# How many times tensors of a file may share the same numbers, as layers that are used several times do.
_SHARING = 64
# Names of tensors are paths of modules, of which the longest have some hundred characters.
_LONGEST_NAME = 1000
# The pickles of published files have less than a megabyte.
_LARGEST_PICKLE = 64 * 2**20
# What reading a file of unexpected content raises; errors of the disk are not among them.
_OF_CONTENT = (
    ValueError,
    RuntimeError,
    LookupError,
    TypeError,
    AttributeError,
    ArithmeticError,
    SafetensorError,
)


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
    (_NUMBER, "numpy.core.multiarray.scalar"),
    (_NUMBER, "numpy._core.multiarray.scalar"),
    type(np.dtype("float64")),
    type(np.dtype("float32")),
    type(np.dtype("int64")),
    type(np.dtype("int32")),
    # Schedules of older versions of torch store a function of their class, by its name.
    (_LeftOut, "builtins.getattr"),
    (_LeftOut, "torch.optim.lr_scheduler.OneCycleLR"),
    (_LeftOut, "pointcept.utils.scheduler.OneCycleLR"),
]


def read_checkpoint(
    path: str | os.PathLike, keys: tuple[str, ...] = ("model", "base_model")
) -> dict[str, torch.Tensor]:
    """Read the state dict in a file of safetensors or `torch.save`, unpickling nothing but tensors and plain values.

    In the latter it may be under one of `keys`, or bare. Tensors are on the CPU, under the names of the authors'
    program: without the prefix `module.` of data-parallel training, and without torch-pointcloud's names.
    """
    if Path(path).suffix == ".safetensors":
        with errors_about(path):
            state = load_file(path)
            check_names(state)
            return authors_names(state)
    content = _load(path)
    state = _under_a_key(content, keys)
    parts = state.values() if isinstance(state, Mapping) else ()
    if not parts or not all(isinstance(part, torch.Tensor) for part in parts):
        seen = type(content).__name__
        if isinstance(content, Mapping):
            seen = listed(sorted(map(_shown, content)))
        raise ValueError(f"{path}: no state dict; expected one under {' or '.join(map(repr, keys))}, found {seen}")
    with errors_about(path):
        check_names(state)
        return without_parallel_prefix(state)


def _under_a_key(content: Any, keys: tuple[str, ...]) -> Any:
    """Return the mapping that a file holds under the first of some keys, or the content as it is without one."""
    if isinstance(content, Mapping):
        # Training programs store more beside the weights, each under a key of its own.
        for key in keys:
            if isinstance(content.get(key), Mapping):
                return content[key]
    return content


def read_entries(path: str | os.PathLike) -> list[str]:
    """Read the keys of a file that `torch.save` wrote, such as those beside its state dict; safetensors have none."""
    if Path(path).suffix == ".safetensors":
        return []
    # Only the keys are wanted, so that tensors need no memory.
    content = _load(path, "meta")
    if not isinstance(content, Mapping):
        return []
    return [key for key in content if isinstance(key, str)]


def read_settings(path: str | os.PathLike, key: str) -> dict[str, Any]:
    """Read the settings that a file of `torch.save` holds under a key next to its state dict, plain values only."""
    with errors_about(path):
        settings = _load(path)[key]
        return dict(vars(settings) if isinstance(settings, argparse.Namespace) else settings)


def read_weights(directory: Path) -> tuple[dict[str, torch.Tensor], list[Path]]:
    """Read the state dict of a directory, in one file or several, mapped if possible; also return the files."""
    name = SAFE_WEIGHTS_NAME
    has_safe_weights = any(directory.glob(f"{SAFE_WEIGHTS_NAME}*"))
    if not has_safe_weights and any(directory.glob(f"{WEIGHTS_NAME}*")):
        name = WEIGHTS_NAME
    index = directory / f"{name}.index.json"
    files = [directory / name]
    if index.is_file():
        with errors_about(index):
            parts = set(read_json(index)["weight_map"].values())
            files = [directory / part for part in sorted(parts)]
    state: dict[str, torch.Tensor] = {}
    for file in files:
        tensors = read_checkpoint(file)
        # Which of them counts would depend on the order of the files.
        twice = sorted(state.keys() & tensors.keys())
        if twice:
            raise ValueError(f"{file} holds tensors that another file of {directory} holds, too: {listed(twice)}")
        state |= tensors
    return state, files


def open_tokenizer(name: str | os.PathLike, config: PreTrainedConfig | None = None) -> PreTrainedTokenizerBase:
    """Open the tokenizer of a language model, running no code of its repository."""
    # From a directory without these files transformers would make an empty tokenizer.
    if os.path.isdir(name) and not any((Path(name) / file).is_file() for file in ("tokenizer.json", "vocab.json")):
        raise ValueError(f"{name}: no tokenizer; expected tokenizer.json or vocab.json, or give --tokenizer")
    with errors_about(name):
        tokenizer = AutoTokenizer.from_pretrained(name, config=config, trust_remote_code=False)
        if tokenizer.eos_token_id is None:
            raise ValueError("the tokenizer has no end token, which answers and padding need")
    return tokenizer


def check_vocabulary(tokenizer: PreTrainedTokenizerBase, most: int) -> None:
    """Check that a language model has an embedding for each token."""
    if len(tokenizer) > most:
        raise ValueError(f"the tokenizer has {len(tokenizer)} tokens; the language model takes at most {most}")


def read_json(file: Path) -> dict:
    """Read a JSON file that holds an object."""
    with errors_about(file):
        return dict(json.loads(file.read_text(encoding="utf-8")))


def check_names(state: Mapping[Any, torch.Tensor]) -> None:
    """Check that tensors have names: those of modules are texts of a line, which errors can show."""
    for name in state:
        if not isinstance(name, str) or not name or len(name) > _LONGEST_NAME or not name.isprintable():
            raise ValueError(f"holds a tensor under {_shown(name)}; expected the name of a module's tensor")


def _shown(name: Any) -> str:
    """Return a key of a file for a message; texts of a line are shown as they are."""
    is_line = isinstance(name, str) and name != "" and name.isprintable()
    text = name if is_line else repr(name)
    return cut(" ".join(text.split()), 80)


def without_parallel_prefix(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Remove the prefix `module.` of data-parallel training from the names of tensors."""
    plain = {name.removeprefix("module."): tensor for name, tensor in state.items()}
    if len(plain) < len(state):
        twice = []
        for name in sorted(plain):
            if name in state and f"module.{name}" in state:
                twice.append(f"{name} and module.{name}")
        raise ValueError(f"the checkpoint holds tensors that mean the same part: {listed(twice)}")
    return plain


@contextmanager
def errors_about(source: str | os.PathLike) -> Iterator[None]:
    """Name the file or directory in errors about its content, which become a `ValueError`."""
    try:
        yield
    except _OF_CONTENT as error:
        text = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        if isinstance(error, RuntimeError):
            text = text.partition("\n")[0]  # torch explains at length
        raise ValueError(text if text.startswith(os.fspath(source)) else f"{source}: {text}") from error


def _load(path: str | os.PathLike, device: str = "cpu") -> Any:
    try:
        with open(path, "rb") as file:
            in_place = _check_zip(path) if zipfile.is_zipfile(file) else _check_first_format(file)
        device = device if in_place else "cpu"
        with torch.serialization.safe_globals(_PLAIN):
            content = torch.load(path, map_location=device, weights_only=True, mmap=in_place and device == "cpu")
        _check_stored(content)
        return content
    except OSError:
        raise
    # Damaged files make torch's reader raise a dozen kinds of errors.
    except Exception as error:
        with open(path, "rb") as file:
            start = file.read(4)
        # A file of another kind gets a plain answer; a damaged one the reader's own.
        if not start.startswith(_STARTS):
            raise ValueError(f"{path}: not a PyTorch checkpoint; it begins with {start!r}") from error
        text = str(error) or type(error).__name__
        is_more = isinstance(error, NotPlainError)
        kind = "holds more than tensors and plain values" if is_more else "damaged"
        raise ValueError(f"{path}: {kind} ({cut(' '.join(text.split()), 200)})") from error


def _check_zip(path: str | os.PathLike) -> bool:
    """Check what torch trusts in a zip, checksums and sizes; return whether it may map the file."""
    with zipfile.ZipFile(path) as archive:
        members = {member.filename: member for member in archive.infolist()}
        if len(members) < len(archive.infolist()):
            raise ValueError("it holds two members of one name")
        size = os.path.getsize(path)
        unpacked = sum(member.file_size for member in members.values())
        if unpacked > max(_ALWAYS_READ, _EXPANSION * size):
            raise ValueError(f"its {size:,} bytes claim to unpack to {unpacked:,}")
        damaged = archive.testzip()
        if damaged:
            raise ValueError(f"the checksum of its member {damaged!r} is wrong")
        pickles = [name for name in members if name.endswith("/data.pkl")]
        if len(pickles) != 1 or members[pickles[0]].file_size > _LARGEST_PICKLE:
            raise ValueError(f"it has {len(pickles)} data.pkl; expected one, of at most {_LARGEST_PICKLE:,} bytes")
        folder = pickles[0].removesuffix("data.pkl")
        for storage in storages_of(archive.read(pickles[0])):
            member = members.get(f"{folder}data/{storage.key}")
            stored = 0 if member is None else member.file_size
            if stored != storage.size:
                raise ValueError(f"its tensor {storage.key!r:.50} has {stored:,} bytes; it needs {storage.size:,}")
        order = sys.byteorder
        if f"{folder}byteorder" in members:
            order = archive.read(f"{folder}byteorder").decode()
        is_stored = all(member.compress_type == zipfile.ZIP_STORED for member in members.values())
        # Torch swaps bytes where they are, which is for numbers in memory.
        return is_stored and order == sys.byteorder


def _check_first_format(file: BinaryIO) -> bool:
    """Check what torch trusts in a file of its first format: pickles, then the storages; it is not mapped."""
    size = os.fstat(file.fileno()).st_size
    file.seek(0)
    head = BytesIO(file.read(_LARGEST_PICKLE))
    # A mark, the version and the system, then the content, and the list of the storages that follow.
    content = [storages_of(head) for _ in range(4)][-1]
    missing = sorted({storage.key for storage in content} - texts_of(head))
    if missing:
        raise ValueError(f"it does not hold the numbers of its tensor {missing[0]!r:.50}")
    claimed = sum(storage.size + 8 for storage in content)
    if claimed > size - head.tell():
        raise ValueError(f"its tensors need {claimed:,} bytes, of which it holds {size - head.tell():,}")
    return False


def _check_stored(content: Any) -> None:
    """Check that the numbers of tensors are stored, each for itself."""
    waiting = [content]
    seen = set()
    claimed = 0
    stored = {}
    # A loop, as what a stranger's file nests may hold itself.
    while waiting:
        value = waiting.pop()
        if isinstance(value, torch.Tensor):
            # A view with strides may claim more than its storage has.
            size = value.numel() * value.itemsize
            storage = value.untyped_storage()
            if size > storage.nbytes():
                raise ValueError(f"a tensor claims {size:,} bytes, of which {storage.nbytes():,} are stored")
            claimed += size
            # By address, so that numbers that tensors share are stored once.
            stored[storage._cdata] = storage.nbytes()
        elif isinstance(value, (Mapping, list, tuple, set)) and id(value) not in seen:
            seen.add(id(value))
            waiting += value.values() if isinstance(value, Mapping) else value
    if claimed > max(_ALWAYS_READ, _SHARING * sum(stored.values())):
        raise ValueError(f"its tensors claim {claimed:,} bytes, of which {sum(stored.values()):,} are stored")


_STARTS = (b"PK", b"\x80")
"""First bytes of torch's files: of a ZIP archive, and of a pickle before version 1.6."""
