"""The shapes that come with the source code, not with the installed package."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData

FOLDER = Path(__file__).parents[2] / "examples" / "data"
_COLUMNS = ["points", "colors", "label", "name", "creator", "license"]


def embedded_shapes() -> dict[str, Path | PointCloudData]:
    """A chair, and of the embedded data's test split the first shape of each class; nothing outside of a checkout.

    Returns:
        By name, with author and licence where there is one to be named.
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
