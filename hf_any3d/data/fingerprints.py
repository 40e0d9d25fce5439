"""Identity of a model and of an input: what resumes or caches answers compares these before it reuses one.

Names do not identify a model: the weights behind a directory or a branch of the hub change.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hf_any3d.data.files.registry import files_read
from hf_any3d.modeling.file_stamps import file_digest, file_stamp

if TYPE_CHECKING:  # torch takes seconds to import, and files alone are compared without it
    from torch import nn

_CONFIG_NAME, _ADAPTER_CONFIG_NAME = "config.json", "adapter_config.json"
# Files of a saved model that its answers do not depend on: cards, logs and states of trainings.
_UNREAD = re.compile(
    r"README\.md|training_args\.bin|trainer_state\.json|optimizer\.|scheduler\.|rng_state|.*\.log|\..*"
)
# Folders of checkpoints of the same training, and of its events.
_UNREAD_FOLDERS = re.compile(r"checkpoint-\d+|runs|\..*")


def model_fingerprint(name: str | os.PathLike, revision: str | None = None) -> str:
    """Return a text that changes with everything in a saved model that its answers depend on.

    Returns:
        Of a directory `sha256:` and a digest of its files, of the hub `commit:` and the commit.
    """
    if os.path.isdir(name):
        return f"sha256:{_directory_digest(Path(name))}"
    from transformers.utils.hub import cached_file, extract_commit_hash

    file = cached_file(os.fspath(name), _CONFIG_NAME, revision=revision)
    if file is None:
        raise OSError(f"{name}: no {_CONFIG_NAME}")
    # A published checkpoint is opened from the directory that it was converted to.
    commit = extract_commit_hash(file, None)
    return f"sha256:{_directory_digest(Path(file).parent)}" if commit is None else f"commit:{commit}"


def active_adapters(model: Any) -> list[str]:
    """Return the names of the adapters that take part in a model's answers, of PEFT or of transformers."""
    names: set[str] = set()
    for module in model.modules():
        # Of the layers; the models around them have methods of the same name. Layers can be disabled for a while.
        is_layer = isinstance(getattr(type(module), "active_adapters", None), property)
        if is_layer and not getattr(module, "disable_adapters", False):
            active = module.active_adapters
            names.update([active] if isinstance(active, str) else active)
    return sorted(names)


def weights_state(*modules: nn.Module) -> tuple[tuple[int, int, int], ...]:
    """Return what changes, in this process, when a tensor of a module is replaced, moved or written to.

    It costs no look at the numbers, so that every call of a pipeline can afford it.
    """
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    # Tensors of inference mode count no changes, since none can be made to them outside of it.
    stamps = []
    for tensor in tensors:
        version = 0 if tensor.is_inference() else tensor._version
        stamps.append((id(tensor), tensor.data_ptr(), version))
    return tuple(stamps)


def input_stamp(path: str | os.PathLike, data: bytes | None = None) -> str:
    """Return a text that changes when an input does."""
    if data is not None:
        return f"sha256:{hashlib.sha256(data).hexdigest()}"
    return " ".join(_file_stamp(file) for file in files_read(path))


def is_saved_model(path: str | os.PathLike) -> bool:
    """Return whether a directory holds a model or an adapter."""
    return any(os.path.isfile(os.path.join(path, name)) for name in (_CONFIG_NAME, _ADAPTER_CONFIG_NAME))


def path_fingerprint(path: str | os.PathLike) -> str:
    """Return a text that changes with what a path names: a saved model, a file, or a folder of data."""
    if os.path.isfile(path):
        return f"sha256:{' '.join(file_digest(file) for file in files_read(path))}"
    if is_saved_model(path):
        return model_fingerprint(path)
    # Data may be large.
    files = sorted(file for file in Path(path).rglob("*") if file.is_file())
    lines = "".join(f"{file.relative_to(path).as_posix()} {_file_stamp(file)}\n" for file in files)
    return f"stamps-sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def _file_stamp(file: Path) -> str:
    try:
        return " ".join(map(str, file_stamp(file)))
    except OSError:
        return "missing"


def _directory_digest(folder: Path) -> str:
    lines = []
    for place, folders, names in os.walk(folder):
        # In place, so that `os.walk` enters these alone, and in this order.
        folders[:] = sorted(name for name in folders if not _UNREAD_FOLDERS.fullmatch(name))
        files = [Path(place, name) for name in sorted(names) if not _UNREAD.match(name)]
        lines += [f"{file.relative_to(folder).as_posix()} {file_digest(file)}\n" for file in files if file.is_file()]
    return hashlib.sha256("".join(lines).encode()).hexdigest()
