"""Find and fetch the authors' files on the hub, and compare their checksums."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] of the client that the hub uses, whichever it is
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_any3d.hub.names import how_to_look, offline_reason
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.modeling.records import BorrowedPart, PublishedFile
from hf_any3d.utils.atomic_files import folder_beside, read_json_object, write_json

_TIMEOUT_SECONDS = 10.0
# Forms of weights, the first of which that a folder has is fetched.
_WEIGHTS = ("*.safetensors", "*.bin")
_SETTINGS = ("*.json", "*.txt", "*.jinja")


@dataclass(frozen=True)
class Version:
    """A file at a commit, and its checksum: SHA-256, or the name that git gives to its content."""

    commit: str
    checksum: str


def find_version(
    repository: str,
    size: str | None,
    file: PublishedFile,
    revision: str | None,
    folder: Path,
    hub: Mapping[str, Any],
    address: str | None = None,
) -> Version:
    """Ask the hub for commit and checksum of a file; without a network, return what it answered before.

    A file with an address is fetched, unless its checksum is known, from the package or from the first time.
    """
    # By the size, as a repository may hold several checkpoints.
    answers = _Answers(folder / "revisions", f"{size or 'model'}.json")
    if address is not None:
        commit = file.commit or "published"
        if revision not in (None, "main", commit):
            raise ValueError(f"{repository}: revision={revision!r}; expected {commit}, at which its file is known")
        if file.sha256 is not None:
            return Version(commit, file.sha256)
        cached = answers.read(commit)
        if cached is None:
            fetched = download_from(address, repository, file, None, folder, hub)
            cached = Version(commit, file_digest(fetched))
            answers.write(commit, cached)
        return cached
    revision = revision or file.commit or "main"
    cached = answers.read(revision)
    if cached is not None and cached.commit == revision:  # nothing that could have changed
        return cached
    reason = offline_reason(hub.get("local_files_only"))
    if reason is None:
        try:
            url = hf_hub_url(repository, file.path, revision=revision)
            # Asks for the header of the file alone.
            answer = get_hf_file_metadata(url, token=hub.get("token"), timeout=_TIMEOUT_SECONDS)
            assert answer.commit_hash is not None and answer.etag is not None  # of every file on the hub
            version = Version(answer.commit_hash, answer.etag)
        except (RepositoryNotFoundError, RevisionNotFoundError, EntryNotFoundError):
            # The hub has answered that there is no such file, which an older answer must not hide.
            raise
        except (HTTPError, OfflineModeIsEnabled, OSError) as error:
            reason = f"the Hub cannot be reached ({type(error).__name__})"
        else:
            # A branch moves on; under its commit the answer can be found again without a network.
            for name in {revision, version.commit}:
                answers.write(name, version)
            return version
    if cached is None:
        at = "" if revision == "main" else f" at revision {revision}"
        raise OSError(
            f"{repository}: {file.path}{at} is not in the Hub cache ({reason}); "
            + how_to_look(reason, "download the file and pass its path")
        )
    return cached


@dataclass(frozen=True)
class _Answers:
    """Answers of the hub about a file, stored by revision."""

    folder: Path
    file_name: str

    def read(self, revision: str) -> Version | None:
        record = read_json_object(self._path(revision))
        return Version(**record) if record.keys() == {"commit", "checksum"} else None

    def write(self, revision: str, version: Version) -> None:
        write_json(self._path(revision), vars(version))

    def _path(self, revision: str) -> Path:
        return self.folder / quote(revision, safe="") / self.file_name


def download(repository: str, path: str, version: Version, cache_dir: Path | None, hub: Mapping[str, Any]) -> Path:
    """Fetch a file and compare its checksum."""
    # By the commit, since a branch may move on after its checksum was asked for.
    file = Path(hf_hub_download(repository, path, revision=version.commit, cache_dir=cache_dir, **hub))
    # The hub names files in Git LFS by their SHA-256, and small ones as git does.
    if len(version.checksum) == 64:
        checksum = file_digest(file)
    else:
        digest = hashlib.sha1(b"blob %d\0" % file.stat().st_size)  # as git names it
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
        checksum = digest.hexdigest()
    if checksum != version.checksum:
        raise ValueError(
            f"{file}: the file of {repository} has checksum {checksum}; expected {version.checksum}, as on the Hub; "
            "it is damaged: delete it, and open it again"
        )
    return file


def kept_file(file: PublishedFile, folder: Path) -> Path:
    """Return where a file with an address is kept in the folder of its repository."""
    return folder / "files" / str(file.sha256 or file.commit) / Path(file.path).name


def download_from(
    address: str, repository: str, file: PublishedFile, checksum: str | None, folder: Path, hub: Mapping[str, Any]
) -> Path:
    """Fetch a file from its address, once, and compare its SHA-256, if that is known."""
    path = kept_file(file, folder)
    # A file that is there may be damaged, so it is compared too.
    if path.is_file() and file_digest(path) == checksum:
        return path
    reason = offline_reason(hub.get("local_files_only"))
    if reason is None:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            # It removes a file with another checksum.
            torch.hub.download_url_to_file(address, str(path), hash_prefix=checksum, progress=False)
            return path
        except (OSError, RuntimeError) as error:
            reason = f"{type(error).__name__}: {error}"
    raise OSError(
        f"{repository}: {address} is not on this machine, and {reason}; download it and give the file's path"
    )


def fetch_part(repository: str, part: str, commit: str, cache_dir: Path | None, hub: Mapping[str, Any]) -> Path:
    """Fetch a file, or the files of a folder that a model needs: settings, tokenizer and one form of the weights."""
    if not part.endswith("/"):
        return Path(hf_hub_download(repository, part, revision=commit, cache_dir=cache_dir, **hub))
    # The part that is the whole repository is "/", and patterns begin without it.
    folder = part.lstrip("/")
    directory = Path()
    for weights in _WEIGHTS:
        patterns = [folder + pattern for pattern in (weights, *_SETTINGS)]
        snapshot = snapshot_download(repository, revision=commit, cache_dir=cache_dir, allow_patterns=patterns, **hub)
        directory = Path(snapshot) / folder
        if any(directory.glob(weights)):
            break
    return directory


@contextmanager
def borrowed_part(part: BorrowedPart, folder: Path, hub_cache: Path | None, hub: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary directory with config and some tensors of a model of transformers."""
    with folder_beside(folder / part.repository.rpartition("/")[2]) as unfinished:
        config = Path(hf_hub_download(part.repository, CONFIG_NAME, cache_dir=hub_cache, **hub))
        # A snapshot in the hub's cache is in a folder with the name of its commit.
        fetch = partial(hf_hub_download, part.repository, revision=config.parent.name, cache_dir=hub_cache, **hub)
        try:
            shards = json.loads(Path(fetch(SAFE_WEIGHTS_INDEX_NAME)).read_text(encoding="utf-8"))["weight_map"]
        except EntryNotFoundError:
            # Small models have a single file and no index.
            shards = dict.fromkeys(part.prefixes, SAFE_WEIGHTS_NAME)
        shutil.copyfile(config, unfinished / CONFIG_NAME)
        tensors = {}
        # Only shards that hold some of these tensors are fetched.
        for name in sorted({shard for name, shard in shards.items() if name.startswith(part.prefixes)}):
            with safe_open(fetch(name), "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys() if key.startswith(part.prefixes)}
        save_file(tensors, unfinished / SAFE_WEIGHTS_NAME, {"format": "pt"})
        # They are in the file by now, and the caller needs the memory.
        del tensors
        yield unfinished
