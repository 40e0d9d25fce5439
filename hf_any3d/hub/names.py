"""Check names of models and datasets before the hub is contacted.

A mistyped path such as `outputs/run2` is a valid name on the hub. There it costs a minute of retries without a
network, and with one it may load a stranger's model.
"""

import difflib
import os
import re
import socket
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import urlsplit

from hf_any3d.hub.published_table import is_published
from hf_any3d.registry import FORMATS

SILENT_HUB = "HF_ANY3D_SILENT_HUB"
"""Environment variable that a command sets for itself and its processes where the hub's address is unknown."""
# Folders that programs write to; names on the hub do not start with them.
_LOCAL_FOLDERS = ("checkpoints", "output", "outputs", "runs")
# Endings, without dots, of what is a file and no name on the hub.
_FILE_ENDINGS = {*"bin ckpt h5 hdf5 json jsonl onnx parquet pkl pt pth safetensors yaml yml zip".split(), *FORMATS}

# A drive of Windows is a single letter.
_SCHEME = re.compile(r"^([A-Za-z][\w+.-]+):[/\\]+")


def check_name(
    name: str | os.PathLike | None, arguments: Mapping[str, Any] = MappingProxyType({}), kind: str = "model"
) -> None:
    """Raise an error if a name cannot or must not be looked up on the hub.

    Existing files and directories are accepted, as are published checkpoints, which have a cache of their own. The
    settings of a model in a directory are checked first: every door comes through here before it opens them.
    `arguments` are those of `from_pretrained`; `kind` is "model" or "dataset".
    """
    if not isinstance(name, (str, os.PathLike)):
        return
    if kind == "model" and os.path.isdir(name):
        # Here, as commands read names before they load transformers.
        from hf_any3d.modeling.config_checks import check_stored_files

        check_stored_files(Path(name, arguments.get("subfolder") or ""))
    if os.path.exists(name) or is_published(name):
        return
    name = os.fspath(name)
    revision = arguments.get("revision")
    cache_dir = arguments.get("cache_dir")
    check_path(name, revision, cache_dir, kind)
    reason = offline_reason(arguments.get("local_files_only"))
    # A dataset may also be in the cache of `datasets`, which has an error of its own.
    if reason is None or kind != "model" or _is_cached(name, revision, cache_dir, kind):
        return
    raise OSError(not_cached(name, reason, revision))


def not_cached(name: str, reason: str, revision: str | None = None) -> str:
    """Return the text of an error about a model that is not on this machine, where the Hub is not asked."""
    at = "" if revision is None else f" at revision {revision}"
    return f"{name}: no such directory, and this model{at} is not in the Hub cache ({reason}); {how_to_look(reason)}"


def how_to_look(reason: str, otherwise: str = "pass a directory") -> str:
    """Return what to do where the Hub is not asked, by the reason; or else `otherwise`."""
    step = {
        "HF_HUB_OFFLINE is set": "unset HF_HUB_OFFLINE",
        "local_files_only=True": "leave out local_files_only",
    }.get(reason, "connect to a network")
    return f"{step} to look on the Hub, or {otherwise}"


def offline_reason(local_files_only: object = False) -> str | None:
    """Return why the hub is not asked, or None if it may be."""
    from huggingface_hub import constants

    if os.environ.get(SILENT_HUB):
        return "the Hub did not answer"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if local_files_only:
        return "local_files_only=True"
    return None if hub_is_known(constants.ENDPOINT) else "the Hub cannot be reached"


def refuse_push_if_offline(repository: str) -> None:
    """Raise OSError where the hub cannot be pushed to; its client would take a minute to say so."""
    if (reason := offline_reason()) is not None:
        step = "; unset it to push" if reason.startswith("HF_HUB_OFFLINE") else ""
        raise OSError(f"{repository}: nothing was pushed; {reason}{step}")


def hub_is_known(endpoint: str) -> bool:
    """Return whether the address of the hub can be found; without a network libraries try for up to a minute."""
    # Behind a proxy, names are resolved elsewhere.
    if any(name.lower().endswith("_proxy") for name in os.environ):
        return True
    try:
        socket.getaddrinfo(urlsplit(endpoint).hostname, None)
    except OSError:
        return False
    return True


def skip_hub_if_offline() -> None:
    """Use the cache alone if the hub's address is unknown, rather than try again for a minute."""
    # Once imported, the library has read the variable.
    is_decided = "huggingface_hub" in sys.modules or "HF_HUB_OFFLINE" in os.environ
    if not is_decided and not hub_is_known(os.environ.get("HF_ENDPOINT", "https://huggingface.co")):
        os.environ |= {"HF_HUB_OFFLINE": "1", SILENT_HUB: "1"}


def check_path(
    name: str,
    revision: str | None = None,
    cache_dir: str | os.PathLike | None = None,
    kind: str = "model",
    needs_owner: bool = False,
) -> None:
    """Raise an error if a name that does not exist here is meant as a path; see `check_name`.

    Our own classes, auto classes and commands call this before they ask the hub. `pipeline`, `AutoModel` and
    `AutoConfig` of transformers and `PeftModel.from_pretrained` of PEFT cannot: they learn only from the config that
    a model is ours, and asking for it is the request that is to be avoided. They look the name up on the hub first.
    """
    if not is_path_like(name, needs_owner):
        return
    similar = similar_path(name)
    if _is_owner_and_name(name):
        if _is_cached(name, revision, cache_dir, kind):
            return
        download = f"hf download {name}" + " --repo-type dataset" * (kind == "dataset")
        hint = f"{similar or '.'} To use a {kind} of this name on the Hub, download it first: {download}"
    elif similar or re.fullmatch(r"\w[\w.-]*", name, re.ASCII) is None or _is_file_name(name):
        hint = similar
    else:
        # It could be a name on the Hub but for its owner.
        hint = ", and not looked up on the Hub, where names are owner/name; pass a directory or owner/name"
    raise FileNotFoundError(f"{name}: no such directory{hint}")


def is_path_like(name: str, needs_owner: bool = False) -> bool:
    """Return whether a name that does not exist here is nevertheless meant as a path, not as a name on the hub."""
    if not _is_owner_and_name(name):
        has_marks = "/" in name or "\\" in name or name.startswith((".", "~"))
        return needs_owner or has_marks or _is_file_name(name)
    # A folder here may have the name of an owner on the hub, or nearly, but hardly hold something with nearly the same
    # name.
    return bool(similar_path(name, whole=True))


def is_folder_name(name: str) -> bool:
    """Return whether a name can be no repository on the hub, as it names a folder of this machine."""
    first, *others = name.split("/")
    return first in ("", ".", "..", "~") or "\\" in name or len(others) > 1 or bool(others and first in _LOCAL_FOLDERS)


def _is_owner_and_name(name: str) -> bool:
    """Return whether a name has the form of a repository's on the hub, and nothing but its owner may be a folder."""
    owner, _, rest = name.partition("/")
    return (
        re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII) is not None
        and owner not in _LOCAL_FOLDERS
        and not _is_file_name(rest)
    )


def _is_file_name(name: str) -> bool:
    return Path(name).suffix[1:].lower() in _FILE_ENDINGS


def no_such(name: str | os.PathLike, what: str = "file or folder") -> str:
    """Return the text of an error about a path where nothing is, with what may have been meant."""
    text = os.fspath(name)
    # As a path, a URL has lost one of its slashes.
    shown = _SCHEME.sub(r"\1://", text)
    return f"{shown}: {why_absent(name, what)}"


def why_absent(name: str | os.PathLike, what: str = "file or folder") -> str:
    """Return the text of `no_such` without the name."""
    if _SCHEME.match(os.fspath(name)):
        return "a URL; download the file and pass its path"
    return f"no such {what}{similar_path(name)}"


def similar_path(name: str | os.PathLike, whole: bool = False) -> str:
    """Return "; did you mean PATH?" for a path that does not exist, or "" if none is similar.

    A similar folder above it is named too, unless the `whole` path has to be there under the similar name.
    """
    path = Path(name).expanduser()
    missing = [part for part in (path, *path.parents) if not part.exists()]
    if not missing or not (folder := missing[-1].parent).is_dir():
        return ""
    try:
        names = [entry.name for entry in os.scandir(folder) if not entry.name.startswith(".")]
    except OSError:
        return ""
    # Of a name with blanks, a shell passes each word by itself.
    longer = sorted(entry for entry in names if entry.startswith(f"{missing[-1].name} "))
    if longer and len(missing) == 1 and not whole:
        return f'; put a name with blanks in quotes, such as "{folder / longer[0]}"'
    matches = difflib.get_close_matches(missing[-1].name, names, n=3)
    inner = [folder / match / path.relative_to(missing[-1]) for match in matches]
    above = folder / matches[0] if matches and not whole else None
    similar = next((path for path in inner if path.exists()), above)
    return f"; did you mean {similar}?" if similar else ""


def _is_cached(name: str, revision: str | None, cache_dir: str | os.PathLike | None, kind: str) -> bool:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(cache_dir or constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type=kind))
    revision = revision or "main"
    # Branches and tags are files in refs that hold their commit; a commit is the name of its snapshot.
    ref = folder / "refs" / revision
    snapshot = folder / "snapshots" / (ref.read_text(encoding="utf-8") if ref.is_file() else revision)
    # A push fetches the card of a model, which alone does not open it.
    return snapshot.is_dir() and any(path.name != "README.md" for path in snapshot.iterdir())
