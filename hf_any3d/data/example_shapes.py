"""Shapes to choose from by name: files of a folder, and those that come with the package."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData, supported_file_types
from hf_any3d.data.files.attributes import unit_colors
from hf_any3d.utils.messages import cut
from hf_any3d.utils.shipped import ASSETS

_COLUMNS = ["points", "colors", "label", "name", "creator", "license"]


# Released files: objects of Objaverse by id, 8192 points each.
_RELEASED_SUFFIX = "_8192.npy"
# Shapes in the page's list; others can be entered by name.
MOST_LISTED = 500


def first_known(names: Sequence[str], labels: Iterable[str]) -> str | None:
    """Return the first name with one of these labels as a word, else the first of all; None without any."""
    words = "|".join(re.escape(label) for label in labels)
    # Without labels a pattern that nothing matches
    known = re.compile(rf"(?<![^\W_])(?:{words})(?![^\W_])" if words else r"(?!)", re.IGNORECASE)
    return next(filter(known.search, names), next(iter(names), None))


class ExampleShapes:
    """Shapes by name: the files of a folder, then the embedded chair and first test shape of each class.

    `ID_8192.npy`, as released, is listed as ID, other files by their names; `names` are the first 500.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        import pyarrow.parquet

        self._shapes: dict[str, Path | PointCloudData] = {"chair.ply": ASSETS / "chair.ply"}
        rows = pyarrow.parquet.read_table(ASSETS / "test.parquet", columns=_COLUMNS)
        # The first row of each class
        _, first = np.unique(rows["label"], return_index=True)
        for row in rows.take(sorted(first)).to_pylist():
            colors = unit_colors(np.asarray(row["colors"]))  # (1024, 3)
            name = f"{row['name']} by {row['creator']}, {row['license']}"
            self._shapes[name] = PointCloudData(np.asarray(row["points"]), colors)
        files = {}
        if folder is not None:
            types = {f".{name}" for name in supported_file_types()}
            with os.scandir(folder) as entries:
                readable = [entry for entry in entries if Path(entry.name).suffix.lower() in types and entry.is_file()]
            names = sorted(entry.name for entry in readable)
            if not names:
                kinds = ", ".join(sorted(types))
                raise FileNotFoundError(f"{Path(folder)}: no point cloud in this folder; supported: {kinds}")
            files = {name.removesuffix(_RELEASED_SUFFIX): Path(folder) / name for name in names}
        self._shipped = [shape for name, shape in self._shapes.items() if name not in files]
        self._shapes |= files
        # Files of the folder come first.
        self.names = list({**files, **self._shapes})[:MOST_LISTED]

    def is_shipped(self, shape: object) -> bool:
        """Return whether a shape of `get` comes with the package: it is a whole thing that stands upright."""
        return any(shape is own for own in self._shipped)

    def get(self, name: str) -> Path | PointCloudData:
        """Return a shape or its file."""
        if name not in self._shapes:
            raise ValueError(f"no example {cut(name, 80)!r}; there are {len(self._shapes)}, such as {self.names[:3]}")
        return self._shapes[name]
