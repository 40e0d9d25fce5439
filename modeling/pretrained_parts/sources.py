"""Find the files of pretrained weights, in a directory or by a name, and compare them."""

import hashlib
import json
import os
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from transformers import PreTrainedConfig
from transformers.modeling_utils import load_state_dict
from transformers.utils import RepositoryNotFoundError, RevisionNotFoundError, cached_file, extract_commit_hash

from hf_any3d.modeling.file_stamps import file_digest, file_stamp
from hf_any3d.modeling.hooks import hooks
from hf_any3d.modeling.pretrained_parts.loading import weights_of
from hf_any3d.modeling.pretrained_parts.record import PretrainedPart, absolute_name
from hf_any3d.modeling.pretrained_parts.tensors import CHECKSUM_PREFIX, tensors_checksum

CONFIG_NAME = "config.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
# In the order in which transformers looks for them.
WEIGHT_ENTRIES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
INDEX_SUFFIX = ".index.json"
_HUB_NAME = re.compile(r"(?=.{1,96}$)\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)


class EncoderUnavailableError(OSError):
    """Pretrained weights are available neither from the hub nor on this machine."""


class EncoderMismatchError(ValueError):
    """Pretrained weights differ from the expected ones."""


@dataclass(frozen=True)
class EncoderSource:
    """Files of pretrained weights in a directory on this machine, and their commit if they are of the hub."""

    name: str
    path: Path
    revision: str | None

    @property
    def checksum(self) -> str:
        """`"tensors-sha256:…"` of all tensors, see `tensors_checksum`."""
        # Not resolved: the targets of links in the hub's cache have no file extensions.
        files = weight_files(self.path.absolute())
        return _tensors_checksum_of(tuple((file, file_stamp(file)) for file in files))

    @property
    def file_checksum(self) -> str:
        """`"sha256:…"` of the weight files, see `weights_checksum`."""
        return weights_checksum(self.path)

    def checksum_like(self, other: str) -> str:
        """Return the checksum in the same kind as another one: of the tensors, or of the files."""
        return self.checksum if other.startswith(CHECKSUM_PREFIX) else self.file_checksum


def resolve_encoder(name_or_path: str | Path, revision: str | None = None) -> EncoderSource:
    """Find pretrained weights, in a directory or with `Hooks.find_weights`, and download them if necessary.

    Raises:
        ValueError: If the name is neither a directory nor a valid name on the hub, or also holds an adapter.
        FileNotFoundError: If there are no weights that transformers loads.
        EncoderUnavailableError: If neither hub, cache nor package has it; the message says what was tried.
        EncoderMismatchError: If the installed package holds other weights than expected.
    """
    name = str(name_or_path)
    if name and os.path.isdir(name):
        directory = Path(name)
        revision = None
    elif _HUB_NAME.fullmatch(name):
        directory, revision = hooks().find_weights(name, revision)
    else:
        raise ValueError(
            f"{name}: no such directory, and not looked up on the Hub, where names are "
            "owner/name; pass a directory or owner/name"
        )
    if (directory / ADAPTER_CONFIG_NAME).exists():
        # transformers would load the adapter, which the checksum of the weights does not cover.
        raise ValueError(f"{directory} holds {ADAPTER_CONFIG_NAME} with the weights; expected weights only")
    # An error now, and not when the weights are read.
    weight_files(directory)
    return EncoderSource(name, directory, revision)


def record_source(name_or_path: str | os.PathLike, source: EncoderSource) -> PretrainedPart:
    """Make the record of a part from the name given and the source found; a directory is recorded absolutely."""
    return PretrainedPart(absolute_name(name_or_path), source.revision, source.checksum)


def open_recorded(part: PretrainedPart, model: str | Path | None = None) -> EncoderSource:
    """Find the weights of a recorded part and verify their checksum.

    A mirror of the repository, or one with a rewritten history, may lack the pinned commit; then its main branch is
    used if the checksum matches. A relative path is relative to the working directory, or to that of the `model`.

    Raises:
        EncoderUnavailableError: Neither the recorded place nor the cache has the weights.
        EncoderMismatchError: They have another checksum than the recorded one.
    """
    name = part.name_or_path
    # Examples and archives have the encoder in a folder of the model.
    if model and not os.path.isdir(name) and (name.startswith(".") or os.path.isdir(Path(model, name))):
        name = os.path.abspath(Path(model, name))
    lost = (
        f"{name!r}, which the config{f' of the model in {model}' if model else ''} names as the source of its "
        f"pretrained weights, is no directory here (relative to {Path.cwd()})"
    )
    help_text = "If it was moved, give its location as encoder_name_or_path=…, or change it in the config's parts"
    if not os.path.isdir(name) and not _HUB_NAME.fullmatch(name):
        raise ValueError(f"{lost}. {help_text}")
    try:
        source = resolve_encoder(name, part.revision)
    except RevisionNotFoundError:
        # Without a checksum, other weights would pass for the recorded ones.
        if part.checksum is None:
            raise
        source = resolve_encoder(name)
    except RepositoryNotFoundError as error:
        raise EncoderUnavailableError(f"{lost}, and the Hub has no such repository: {error}. {help_text}") from None
    if part.checksum is not None:
        verify_checksum(source, part.checksum, model)
    return source


def verify_checksum(source: EncoderSource, expected: str, model: str | Path | None = None) -> None:
    """Raise an EncoderMismatchError if weights have another checksum, of tensors or files, than `model` records."""
    checksum = source.checksum_like(expected)
    if checksum != expected:
        raise EncoderMismatchError(
            f"encoder {source.name!r}{f' at revision {source.revision}' if source.revision else ''}: the weights in "
            f"{source.path} have checksum {checksum}; expected {expected}. "
            f"The model{f' in {model}' if model else ''} was trained with other weights, so its results would change "
            "silently. Give the revision or directory of the expected weights, or train the model again with these"
        )


def opened_source(
    name: str | os.PathLike, config: PreTrainedConfig, revision: str | None = None, cache_dir: str | None = None
) -> PretrainedPart:
    """Return the record of a directory, or of a repository and its commit, whose model was just loaded."""
    name = os.fspath(name)
    if os.path.isdir(name):
        return PretrainedPart(os.path.abspath(name))
    origin = getattr(config, "published", None)
    # A file of the authors was converted before it was loaded.
    if isinstance(origin, Mapping) and origin.get("name") == name.partition(":")[0]:
        return PretrainedPart(name, origin.get("revision"))
    file = cached_file(
        name,
        CONFIG_NAME,
        cache_dir=cache_dir,
        revision=revision,
        local_files_only=True,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return PretrainedPart(name, extract_commit_hash(file, None))


# Weight files and their checksums.


def weight_entry(names: Collection[str]) -> str | None:
    """Return the file among `names` that transformers would load, weights or the index of shards; None without any."""
    return next((entry for entry in WEIGHT_ENTRIES if entry in names), None)


def shard_names(index: Path) -> list[str]:
    """Return the sorted names of the weight files that an index lists."""
    return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))


def weight_files(directory: str | Path) -> list[Path]:
    """Return the weight file of a saved model, or its shards sorted by name; safetensors are preferred to `.bin`."""
    directory = Path(directory)
    found = sorted(path.name for path in directory.iterdir())
    entry = weight_entry(found)
    if entry is None:
        expected = f"one of {', '.join(WEIGHT_ENTRIES)}"
        quantized = [name for name in found if name.endswith(".gguf")]
        if quantized:
            expected += (
                f"; transformers saves {quantized[0]} as such a file if it opened it with "
                "quantization_config=GgufConfig(dequantize=True)"
            )
        raise FileNotFoundError(f"{directory}: no weights; expected {expected}")
    names = shard_names(directory / entry) if entry.endswith(INDEX_SUFFIX) else [entry]
    return [directory / name for name in names]


def weights_checksum(directory: str | Path) -> str:
    """Compute the SHA-256 of the weight file of a saved model or, for shards, of the lines `name digest`."""
    files = weight_files(directory)
    digests = [file_digest(file) for file in files]
    # A single file; shards have other names.
    if weight_entry({file.name for file in files}):
        return f"sha256:{digests[0]}"
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


@lru_cache(maxsize=256)
def _tensors_checksum_of(files: tuple[tuple[Path, tuple[int, ...]], ...]) -> str:
    # The stamps are part of the key, so that a changed file is read again.
    tensors = {}
    for file, _ in files:
        with weights_of(file):
            tensors |= load_state_dict(str(file), map_location="cpu")
    return tensors_checksum(tensors)
