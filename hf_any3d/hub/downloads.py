"""Find and fetch the authors' files on the hub, and compare their checksums."""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HTTPError,  # pyright: ignore[reportPrivateImportUsage] of the client that the hub uses, whichever it is
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.hf_api import RepoFile
from safetensors import safe_open
from safetensors.torch import save_file
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME

from hf_any3d.hub.names import offline_reason
from hf_any3d.hub.published_table import BorrowedPart, PublishedFile
from hf_any3d.modeling.pretrained_parts.sources import file_digest
from hf_any3d.utils.atomic_files import read_json_object, temporary_path, write_json

_COMMIT, _CHECKSUM = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{64}|[0-9a-f]{40}")
_TIMEOUT_SECONDS = 10.0
# Forms of weights, the first of which that a folder has is fetched.
_WEIGHTS = (".safetensors", ".bin")
_SETTINGS = (".json", ".txt", ".jinja")


@dataclass(frozen=True)
class Version:
    """A file at a commit.

    Args:
        commit: The commit.
        checksum: SHA-256 of the file, or the name that git gives to its content.
    """

    commit: str
    checksum: str


def find_version(
    repository: str,
    size: str | None,
    file: PublishedFile,
    revision: str | None,
    folder: Path,
    hub: Mapping[str, Any],
) -> Version:
    """Ask the hub for commit and checksum of a file; without a network, the cache."""
    revision = revision or "main"

    def entry(of: str) -> Path:
        return folder / "revisions" / quote(of, safe="") / f"{size or 'model'}.json"

    known = read_json_object(entry(revision))
    commit, checksum = (str(known.get(field)) for field in ("commit", "checksum"))
    cached = Version(commit, checksum) if _COMMIT.fullmatch(commit) and _CHECKSUM.fullmatch(checksum) else None
    if cached is not None and cached.commit == revision:  # nothing that could have changed
        return cached
    reason = offline_reason(hub.get("local_files_only"))
    if reason is None:
        try:
            found = get_hf_file_metadata(
                hf_hub_url(repository, file.path, revision=revision), token=hub.get("token"), timeout=_TIMEOUT_SECONDS
            )
        except (GatedRepoError, RepositoryNotFoundError) as error:
            raise FileNotFoundError(
                f"{repository}: no such repository on the hub, or no access to it (for a private or gated one: "
                "hf auth login)"
            ) from error
        except RevisionNotFoundError as error:
            raise FileNotFoundError(f"{repository}: no revision {revision!r} on the hub") from error
        except EntryNotFoundError as error:
            raise FileNotFoundError(
                f"{repository}: revision {revision!r} has no {file.path}, the file that its authors published; if it "
                "was renamed, download it and give its path"
            ) from error
        except (HTTPError, OfflineModeIsEnabled, OSError) as error:
            reason = f"the hub cannot be reached ({type(error).__name__})"
        else:
            commit, checksum = found.commit_hash or "", found.etag or ""
            if not _COMMIT.fullmatch(commit) or not _CHECKSUM.fullmatch(checksum):
                raise OSError(
                    f"{repository}: the hub names commit {commit!r} and checksum {checksum!r} of {file.path}; "
                    "expected 40 hexadecimal digits, and 64 or 40"
                )
            version = Version(commit, checksum)
            # A branch moves on; under its commit the answer can be found again without a network.
            for name in {revision, commit}:
                write_json(entry(name), vars(version))
            return version
    if cached is None:
        at = "" if revision == "main" else f" at revision {revision}"
        raise OSError(
            f"{repository}: {file.path}{at} was never opened on this machine, and {reason}; open it once with a "
            "network, or download the file and give its path"
        )
    return cached


def download(
    repository: str,
    path: str,
    *,
    commit: str,
    cache_dir: Path | None,
    hub: Mapping[str, Any],
    checksum: str | None = None,
) -> Path:
    """Fetch a file and compare its checksum, by default with the one that the hub names."""
    try:
        if checksum is None:
            url = hf_hub_url(repository, path, revision=commit)
            checksum = get_hf_file_metadata(url, token=hub.get("token"), timeout=_TIMEOUT_SECONDS).etag or ""
        file = Path(
            hf_hub_download(
                repository,
                path,
                revision=commit,
                cache_dir=cache_dir,
                token=hub.get("token"),
                local_files_only=bool(hub.get("local_files_only")),
            )
        )
    except LocalEntryNotFoundError as error:
        raise OSError(
            f"{repository}: {path} is not in the hub's cache, and the hub cannot be reached; open it once with a "
            "network"
        ) from error
    except EntryNotFoundError as error:
        raise FileNotFoundError(f"{repository}: commit {commit} has no {path}, which the conversion needs") from error
    except (HTTPError, OSError) as error:
        raise OSError(
            f"{repository}: the download of {path} failed ({type(error).__name__}: {error}); call again to continue it"
        ) from error
    if (found := _checksum(file, checksum)) != checksum:
        raise ValueError(
            f"{file}: the file of {repository} has checksum {found}; expected {checksum}, as on the hub. It is "
            "damaged: delete it, and open it again"
        )
    return file


def fetch_part(
    repository: str, part: str, fetch: Callable[..., Path], version: Version, hub: Mapping[str, Any]
) -> Path:
    """Fetch a file, or the files of a folder that a model needs: settings, tokenizer and one form of the weights."""
    if not part.endswith("/"):
        return fetch(repository, part)
    try:
        entries = HfApi(token=hub.get("token")).list_repo_tree(repository, part[:-1], revision=version.commit)
        names = [entry.path for entry in entries if isinstance(entry, RepoFile)]
    except EntryNotFoundError as error:
        raise FileNotFoundError(
            f"{repository}: commit {version.commit} has no folder {part}, which the conversion needs"
        ) from error
    except (HTTPError, OSError) as error:
        raise OSError(f"{repository}: the hub cannot be reached ({type(error).__name__}: {error})") from error
    weights = next((found for ending in _WEIGHTS if (found := [name for name in names if name.endswith(ending)])), [])
    files = [fetch(repository, name) for name in [*weights, *(n for n in names if n.endswith(_SETTINGS))]]
    if not files:
        raise FileNotFoundError(f"{repository}: folder {part} has no files of a model; expected config.json")
    return files[0].parent


@contextmanager
def borrowed_part(part: BorrowedPart, folder: Path, hub_cache: Path | None, hub: Mapping[str, Any]) -> Iterator[Path]:
    """Yield a temporary directory with config and some tensors of a model of transformers."""
    arguments: dict[str, Any] = {"cache_dir": hub_cache, "token": hub.get("token")}
    unfinished = temporary_path(folder / part.repository.rpartition("/")[2])
    try:
        config = Path(hf_hub_download(part.repository, CONFIG_NAME, **arguments))
        # A snapshot in the hub's cache is in a folder with the name of its commit.
        fetch = partial(download, part.repository, commit=config.parent.name, cache_dir=hub_cache, hub=hub)
        try:
            index = fetch(f"{SAFE_WEIGHTS_INDEX_NAME}")
            shards = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        except FileNotFoundError:
            # Small models have a single file and no index.
            shards = dict.fromkeys(part.prefixes, SAFE_WEIGHTS_NAME)
        files = {shard for name, shard in shards.items() if name.startswith(part.prefixes)}
        unfinished.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(config, unfinished / CONFIG_NAME)
        tensors = {}
        for name in sorted(files):
            with safe_open(fetch(name), "pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys() if key.startswith(part.prefixes)}
        save_file(tensors, unfinished / SAFE_WEIGHTS_NAME, {"format": "pt"})
        # They are in the file by now, and the caller needs the memory.
        del tensors
        yield unfinished
    except (HTTPError, LocalEntryNotFoundError) as error:
        raise OSError(
            f"{part.repository}: a part of the model cannot be fetched ({type(error).__name__}: {error})"
        ) from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _checksum(path: Path, expected: str) -> str:
    """Return the checksum of a file, of the same kind as another one."""
    # The hub names files in Git LFS by their SHA-256, and small ones as git does.
    if len(expected) == 64:
        return file_digest(path)
    digest = hashlib.sha1(b"blob %d\0" % path.stat().st_size)  # as git names it
    with path.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
