"""Example shapes of the page."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData, supported_file_types

FOLDER = Path(__file__).parents[2] / "examples" / "data"
_COLUMNS = ["points", "colors", "label", "name", "creator", "license"]


def embedded_shapes() -> dict[str, Path | PointCloudData]:
    """Return a chair and the first test shape of each class of the embedded data; nothing outside of a checkout.

    Returns:
        Shapes by name, with author and licence if there is one.
    """
    chair, table = FOLDER / "chair.ply", FOLDER / "test.parquet"
    shapes: dict[str, Path | PointCloudData] = {chair.name: chair} if chair.is_file() else {}
    if table.is_file():
        import pyarrow.parquet

        rows = pyarrow.parquet.read_table(table, columns=_COLUMNS)
        _, first = np.unique(rows["label"], return_index=True)
        for row in rows.take(sorted(first)).to_pylist():
            colors = np.asarray(row["colors"], dtype=np.float32) / 255  # (1024, 3)
            name = f"{row['name']} by {row['creator']}, {row['license']}"
            shapes[name] = PointCloudData(np.asarray(row["points"]), colors)
    return shapes


# Released files: objects of Objaverse by id, 8192 points each.
_RELEASED_SUFFIX = "_8192.npy"
# Shapes in the page's list; others can be entered by name.
MOST_LISTED = 500


class ExampleShapes:
    """Shapes by name: the files of a folder, then the embedded shapes.

    `ID_8192.npy`, as released, is listed as ID, other files by their names.

    Args:
        folder: Folder with files; other types and subfolders are ignored.

    Attributes:
        names: The first 500 names.

    Raises:
        FileNotFoundError: There is no such folder, or no readable file in it.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        files = {} if folder is None else _files_of(Path(folder))
        self._shapes: dict[str, Path | PointCloudData] = {**embedded_shapes(), **files}
        self.names = list({**files, **self._shapes})[:MOST_LISTED]

    def get(self, name: str) -> Path | PointCloudData:
        """Return a shape or its file.

        Raises:
            ValueError: There is no shape of this name.
        """
        if name not in self._shapes:
            raise ValueError(f"no example {name[:80]!r}; there are {len(self._shapes)}, such as {self.names[:3]}")
        return self._shapes[name]


def _files_of(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    types = {f".{name}" for name in supported_file_types()}
    with os.scandir(folder) as entries:
        names = sorted(entry.name for entry in entries if Path(entry.name).suffix.lower() in types and entry.is_file())
    if not names:
        raise FileNotFoundError(f"{folder}: no point cloud in this folder; readable are {', '.join(sorted(types))}")
    return {name.removesuffix(_RELEASED_SUFFIX): folder / name for name in names}
