"""Find models by their names before anything large is loaded, and fetch their configurations."""

from __future__ import annotations

from pathlib import Path

from hf_any3d.extensions import EXTENSIONS
from hf_any3d.hub.names import check_path, no_such, not_cached, offline_reason, skip_hub_if_offline
from hf_any3d.hub.published_table import find_published, is_published
from hf_any3d.registry import FORMATS, TASKS

CONFIG = "config.json"
"""File with the configuration of a model."""
ADAPTER = "adapter_config.json"
"""File with the configuration of an adapter."""


def find_model(name: str, revision: str | None = None) -> str:
    """Return the directory or hub name of a model, after checking what can be checked without the hub."""
    path = Path(name).expanduser()
    if is_published(name):
        find_published(name)  # refuses a size that there is not
    elif path.is_dir():
        # People often name the folder of a run whose model is one level deeper.
        if not is_model(path):
            inner = sorted(file.parent for file in path.glob(f"*/{CONFIG}"))
            hint = f"; did you mean {inner[0]}?" if inner else ""
            raise ValueError(f"{name}: no model in this directory; it has no {CONFIG}{hint}")
        return str(path)
    elif path.exists() or path.suffix[1:].lower() in FORMATS:
        # A file of points in the place of the model, which is no name on the hub.
        what = f"{name}: a file" if path.exists() else no_such(name, "file")
        raise FileNotFoundError(f"{what}; expected the directory or Hub name of a model")
    elif (packaged := packaged_model(name)) is not None:
        return packaged
    else:
        if "://" in name:
            raise FileNotFoundError(f"{name}: a URL; expected a directory, or the name on the Hub, owner/name")
        check_path(name, revision, needs_owner=True)
    skip_hub_if_offline()
    return name


def packaged_model(name: str) -> str | None:
    """Return the directory of the model that a command of an installed package opens by default, by its name."""
    for extension in EXTENSIONS.values():
        for task, folder in extension.default_models.items():
            if TASKS[task].command == name:
                return folder
    return None


def is_model(folder: Path) -> bool:
    """Return whether a folder has a model or an adapter."""
    return any((folder / file).is_file() for file in (CONFIG, ADAPTER))


def download_config(name: str, revision: str | None = None) -> Path:
    """Return the configuration of a model on the hub; only this file is downloaded.

    Raises:
        FileNotFoundError: No such model or revision, or the hub cannot be reached; says which.
    """
    import huggingface_hub
    from huggingface_hub import errors

    absent = "no such directory, and no such model on the Hub (for a private one: hf auth login)"
    reason = offline_reason() or "the Hub cannot be reached"
    reasons = {
        errors.RevisionNotFoundError: f"no revision {revision} on the Hub",
        errors.RepositoryNotFoundError: absent,
        errors.HFValidationError: absent,
        # Before EntryNotFoundError, from which it derives.
        errors.LocalEntryNotFoundError: not_cached(name, reason, revision).removeprefix(f"{name}: "),
        errors.EntryNotFoundError: f"this repository has no {CONFIG}, so it is not a model",
    }
    try:
        return Path(huggingface_hub.hf_hub_download(name, CONFIG, revision=revision))
    except tuple(reasons) as error:
        # The first that fits, as the error may be of a type that derives from another one here.
        reason = next(text for kind, text in reasons.items() if isinstance(error, kind))
        raise FileNotFoundError(f"{name}: {reason}") from None
