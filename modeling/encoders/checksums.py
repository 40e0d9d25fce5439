"""Which files hold a pretrained part's weights, and the SHA-256 of the files and of the tensors in them."""

import hashlib
import json
from collections.abc import Collection
from functools import lru_cache
from pathlib import Path

from transformers.modeling_utils import load_state_dict

from hf_any3d.modeling.pretrained_parts import tensors_checksum

# In the order in which transformers itself looks for them.
WEIGHT_ENTRIES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_INDEX_SUFFIX = ".index.json"


def weight_entry(names: Collection[str]) -> str | None:
    """Picks, from the names of an encoder's files, the one that transformers would load.

    Args:
        names: file names, relative to the encoder's directory or repository.

    Returns:
        A weight file, or the index of a sharded one; `None` when there is neither.
    """
    return next((entry for entry in WEIGHT_ENTRIES if entry in names), None)


def shard_names(index: Path) -> list[str]:
    """Lists the weight files behind an index file, sorted.

    Raises:
        ValueError: the file is no index of sharded weights, or names a file outside its own directory.
    """
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{index}: not an index of sharded weights; expected JSON with a 'weight_map'") from error
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index}: 'weight_map' names {name!r}; expected a file beside the index")
    return names


def weight_files(directory: str | Path) -> list[Path]:
    """Lists the files that hold the weights of the encoder saved in a directory.

    Args:
        directory: what `save_pretrained` wrote, or a snapshot in the hub's cache.

    Returns:
        One file, or all shards sorted by name; safetensors before `.bin`.

    Raises:
        FileNotFoundError: no weights lie there, or a shard is missing.
    """
    directory = Path(directory)
    entry = weight_entry({path.name for path in directory.iterdir()})
    if entry is None:
        raise FileNotFoundError(f"{directory}: no weights; expected one of {', '.join(WEIGHT_ENTRIES)}")
    names = shard_names(directory / entry) if entry.endswith(_INDEX_SUFFIX) else [entry]
    files = [directory / name for name in names]
    for file in files:
        if not file.is_file():
            raise FileNotFoundError(f"{file}: this shard of the weights is missing")
    return files


def weights_checksum(directory: str | Path) -> str:
    """Names the weights of the encoder saved in a directory, whatever repository or path they came by.

    Args:
        directory: what `save_pretrained` wrote, or a snapshot in the hub's cache.

    Returns:
        `"sha256:"` and 64 hex digits: of the weight file, or, for shards, of the lines `name digest` sorted by name.

    Raises:
        FileNotFoundError: no weights lie there, or a shard is missing.
    """
    files = weight_files(directory)
    digests = [_file_digest(file) for file in files]
    if weight_entry({file.name for file in files}):
        return f"sha256:{digests[0]}"
    lines = "".join(f"{file.name} {digest}\n" for file, digest in zip(files, digests, strict=True))
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def tensors_checksum_in(directory: str | Path) -> str:
    """Name the tensors of a checkpoint, in whatever files and shards they lie; see `tensors_checksum`.

    Args:
        directory: What `save_pretrained` wrote, or a snapshot in the hub's cache.

    Raises:
        FileNotFoundError: If no weights lie there, or a shard is missing.
    """
    # By their own names: what links in the hub's cache lead to does not tell a format.
    files = weight_files(Path(directory).absolute())
    return _tensors_checksum_of(tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files))


@lru_cache(maxsize=256)
def _tensors_checksum_of(files: tuple[tuple[Path, int, int], ...]) -> str:
    # Size and time of change are in the key, so a file written anew is read anew.
    tensors = {}
    for file, _, _ in files:
        tensors |= load_state_dict(str(file), map_location="cpu")
    return tensors_checksum(tensors)


def _file_digest(file: Path) -> str:
    # The real path: snapshots in the hub's cache are links to blobs that several revisions share.
    real = file.resolve()
    state = real.stat()
    return _digest_of(real, state.st_size, state.st_mtime_ns)


@lru_cache(maxsize=256)
def _digest_of(file: Path, size: int, modified: int) -> str:
    # Size and time of change are in the key, so a file written anew is read anew.
    digest = hashlib.sha256()
    with file.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
