"""The folder in which libraries of Hugging Face keep what they fetch and prepare."""

from __future__ import annotations

import atexit
import os
import sys
from pathlib import Path

from hf_any3d.utils.atomic_files import temporary_folder


def folder_of_caches() -> Path:
    """Return the folder in which libraries of Hugging Face keep what they fetch and prepare, without loading them."""
    cache = os.environ.get("XDG_CACHE_HOME", "~/.cache")
    return Path(os.path.expandvars(os.environ.get("HF_HOME", f"{cache}/huggingface"))).expanduser()


def is_of_caches(file: object) -> bool:
    """Return whether a path is the folder of the caches, one above it, or something in it."""
    if not isinstance(file, str):
        return False
    caches = folder_of_caches()
    path = Path(file)
    return path == caches or path in caches.parents or caches in path.parents


def replace_unwritable_cache() -> Path | None:
    """Let data be prepared in a temporary folder if their cache cannot be written, and return that cache.

    None if it can, or if its place is decided: once imported, `datasets` has read the variable.
    """
    if "datasets" in sys.modules or "HF_DATASETS_CACHE" in os.environ:
        return None
    caches = folder_of_caches()
    place = caches
    while not place.exists() and place != place.parent:
        place = place.parent
    if place.is_dir() and os.access(place, os.W_OK):
        return None
    # Until the process ends
    folder = temporary_folder()
    os.environ["HF_DATASETS_CACHE"] = str(folder.__enter__())
    atexit.register(folder.__exit__, None, None, None)
    return caches
