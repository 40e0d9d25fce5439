"""Contents of directories and hub repositories: a full model, an adapter, or both, of which one counts.

All doors ask here: classes and auto classes, pipelines and commands, PeftModel, AutoPeftModel and `load_adapter`.

| config.json | weights of a model | adapter | what opens |
|---|---|---|---|
| | | yes | the base that the adapter names, with the adapter |
| yes | | all that is not pretrained | the pretrained part that the config records, with the adapter |
| yes | | less | the base that the adapter names, with the adapter |
| yes | yes | on this place | the full model, with the adapter |
| yes | yes | on another base | the full model alone: it was saved over the adapter, as after a merge |
| yes | yes | | the full model |
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.utils import CONFIG_NAME, cached_file
from transformers.utils.peft_utils import ADAPTER_CONFIG_NAME

from hf_any3d.modeling.config_checks import stored_settings
from hf_any3d.modeling.pretrained_parts.record import located
from hf_any3d.modeling.pretrained_parts.sources import WEIGHT_ENTRIES

# As PEFT calls them, which models without adapters open without.
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


@dataclass(frozen=True)
class Contents:
    """Contents of a directory or repository, in one place and revision.

    Args:
        name: Directory, or name on the hub.
        hub: Arguments of `from_pretrained` that find files in it.
        config: Contents of config.json; None without one.
        has_weights: Whether it holds weights of a model.
        adapter: Contents of adapter_config.json; None without one.
    """

    name: str
    hub: Mapping[str, Any]
    config: dict[str, Any] | None
    has_weights: bool
    adapter: dict[str, Any] | None

    @property
    def folder(self) -> Path | None:
        """The directory with the files, if it is on this machine and not in the hub's cache."""
        return Path(self.name, self.hub.get("subfolder") or "") if os.path.isdir(self.name) else None

    @property
    def base(self) -> str | None:
        """Base that the adapter names; a directory relative to that of the adapter as an absolute path."""
        base = (self.adapter or {}).get("base_model_name_or_path") or None
        if base == ".":
            return self.name if self.folder is None else os.path.abspath(self.folder)
        return base if self.folder is None else located(base, self.folder)

    @property
    def is_base_here(self) -> bool:
        """True if the adapter names this place as its base, or none."""
        base = self.base
        if base in (None, self.name):
            return True
        return self.folder is not None and os.path.isdir(base) and os.path.samefile(base, self.folder)

    def takes_adapter(self, part: str | None) -> bool:
        """Return whether the adapter belongs to what is opened, and not to what was there before a full model.

        Args:
            part: Name of the part that adapters of the model are trained on; None if it has none.
        """
        if self.adapter is None or self.config is None or not self.has_weights:
            return self.adapter is not None
        # Saving an adapter records the part under it, and saving a full model removes the record or stores the part.
        recorded = (self.config.get("parts") or {}).get(part) or {}
        is_stored = recorded.get("stored") and not recorded.get("subfolder")
        if part is not None and (not recorded or is_stored):
            return not self.is_complete and self.is_base_here
        return self.is_base_here

    @property
    def is_complete(self) -> bool:
        """True if the adapter lists modules that were trained in full, as one on a pretrained part does."""
        return bool((self.adapter or {}).get("modules_to_save"))


def contents_of(name: str | os.PathLike, hub: Mapping[str, Any]) -> Contents:
    """Return what a directory or repository holds; `hub` are the arguments of `from_pretrained` that find files.

    Files that cannot be asked for, as the hub is unreachable, are looked up in its cache.
    """
    name = os.fspath(name)
    adapter = read_json(name, ADAPTER_CONFIG_NAME, hub)
    config = read_json(name, CONFIG_NAME, hub) if adapter is not None else None
    has_weights = config is not None and any(find_file(name, entry, hub) for entry in WEIGHT_ENTRIES)
    return Contents(name, hub, config, has_weights, adapter)


def adapter_folder(name: str | os.PathLike, hub: Mapping[str, Any]) -> Path:
    """Return the directory on this machine with an adapter's config and weights, which are fetched if need be.

    PEFT gets directories alone: of a name it asks the hub whether files exist, also where the cache has them.

    Raises:
        OSError: The config is there and the weights are not, or neither hub nor cache has them.
    """
    place = Path(name, hub.get("subfolder") or "")
    if not os.path.isdir(name):
        config = cached_file(name, ADAPTER_CONFIG_NAME, **hub)
        for file in ADAPTER_WEIGHTS:
            found = find_file(name, file, hub)
            if found is not None:
                return Path(found).parent
        # Its error says whether the hub could be asked.
        cached_file(name, ADAPTER_WEIGHTS[0], **hub)
        place = Path(config).parent
    if (place / ADAPTER_CONFIG_NAME).is_file() and not any((place / file).is_file() for file in ADAPTER_WEIGHTS):
        raise OSError(
            f"{place} lacks {ADAPTER_WEIGHTS[0]}, the weights of the adapter whose {ADAPTER_CONFIG_NAME} it holds"
        )
    return place


def is_lost_directory(name: str | None) -> bool:
    """Return whether a name is that of a directory that is not there; another one may be a repository."""
    if name is None:
        return False
    # Names on the hub have at most one slash.
    is_path = os.path.isabs(name) or name.startswith(".") or name.count(os.sep) > 1
    return is_path and not os.path.isdir(name)


def find_file(name: str | os.PathLike, file: str, hub: Mapping[str, Any]) -> str | None:
    """Return the path of a file of a directory or hub repository; None if there is none, or it cannot be asked for."""
    return cached_file(
        name,
        file,
        _raise_exceptions_for_gated_repo=False,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
        **hub,
    )


def read_json(name: str | os.PathLike, file: str, hub: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the contents of a JSON file of a directory or repository; None if it has none."""
    path = find_file(name, file, hub)
    if path is None:
        return None
    with stored_settings(path):
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(found, dict):
            raise ValueError(f"holds a {type(found).__name__}; expected an object")
    return found
