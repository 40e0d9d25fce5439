"""Classes that several files name by words: one list for all of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from pathlib import Path

from hf_any3d.data.files import read_point_cloud
from hf_any3d.data.files.label_words import common_names
from hf_any3d.registry import FORMATS

# Modules of formats whose labels may be words.
_WITH_WORDS = ("text", "npy")


def words_of_files(paths: Iterable[Path], label_field: str | None = None) -> tuple[str, ...] | None:
    """Return the words by which files name the classes of their points, in alphabetical order; None without any.

    Files of other formats are not opened, and those that cannot be read are left to whoever reads them.
    """
    found = []
    for path in paths:
        if FORMATS.get(path.suffix[1:].lower()) not in _WITH_WORDS:
            continue
        try:
            # Warnings are those of the reading that follows.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                cloud = read_point_cloud(path, on_invalid="drop", label_field=label_field, fields=["labels"])
                found.append(cloud.label_names)
        except (ValueError, OSError):
            continue
    names = common_names(found)
    return names or None
