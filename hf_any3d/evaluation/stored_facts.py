"""Facts about models that were counted before, found again by the content of their configuration files.

Counting builds the model, which takes seconds; this imports neither torch nor transformers.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
from pathlib import Path
from typing import Any

from hf_any3d.utils.atomic_files import read_json, write_json

# Files that define the facts about a model, and packages whose version may change how parameters are counted.
_CONFIGS = ("config.json", "adapter_config.json", "preprocessor_config.json", "processor_config.json")
_PACKAGES = ("hf-any3d", "transformers", "peft")


def stored_facts(name: str, folder: Path | None = None, revision: str | None = None) -> dict[str, Any] | None:
    """Return the facts about a model, see `model_facts`, if they are stored.

    `folder` is its directory, None for one in the hub's cache.
    """
    # Without a readable store they are counted anew.
    with contextlib.suppress(OSError, importlib.metadata.PackageNotFoundError):
        facts = read_json(_file_of(name, folder, revision))
        if isinstance(facts, dict):
            # Stored by the content of the files, which may lie elsewhere under another name.
            return {**facts, "model": name}
    return None


def store_facts(facts: dict[str, Any], name: str, folder: Path | None = None, revision: str | None = None) -> None:
    """Keep the facts about a model for `stored_facts`; a store that cannot be written is not an error."""
    with contextlib.suppress(OSError, importlib.metadata.PackageNotFoundError):
        write_json(_file_of(name, folder, revision), facts)


def _file_of(name: str, folder: Path | None, revision: str | None) -> Path:
    """Return where the facts about a model are kept: by the content of its configuration files."""
    from huggingface_hub import constants, try_to_load_from_cache

    # Another version may count parameters in another way.
    digest = hashlib.sha256(json.dumps([*map(importlib.metadata.version, _PACKAGES)]).encode())
    for file in _CONFIGS:
        path: Any = folder / file if folder else try_to_load_from_cache(name, file, revision=revision)
        # The cache answers with a marker, no path, for a file that a repository does not have.
        content = Path(path).read_bytes() if isinstance(path, (str, Path)) and Path(path).is_file() else b""
        # With lengths, so that no content can pass for two.
        digest.update(f"{file} {len(content)} ".encode() + content)
    return Path(constants.HF_HOME) / "hf_any3d" / "facts" / f"{digest.hexdigest()[:32]}.json"
