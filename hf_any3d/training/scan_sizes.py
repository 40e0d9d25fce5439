"""Record in a model how large its training scans are, so that it can recognize scans of something else."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from hf_any3d.data.files import PointCloudData, PointCloudError, read_point_cloud
from hf_any3d.data.frames.units import length_of_unit
from hf_any3d.data.tables.numpy_rows import numpy_rows
from hf_any3d.training.arguments import DataArguments


def record_sizes(config: Any, data: DataArguments, rows: Dataset) -> None:
    """Store the largest extent of the scans in a config, `largest_scan`, and the length of a unit, `scan_unit`.

    The larger one counts if the config has one in the same unit, as of an earlier model to which scans are added.
    """
    points = numpy_rows(rows)["points"]
    # Longest edge of the box around any scan, in the unit of the files.
    largest = max(float(np.ptp(np.asarray(cloud)[:, :3], axis=0).max()) for cloud in points)
    unit = meters_per_unit(data, rows)
    earlier = getattr(config, "largest_scan", None)
    # Extents in different units cannot be compared.
    if earlier is not None and unit == config.scan_unit:
        largest = max(largest, earlier)
    config.largest_scan = largest
    config.scan_unit = unit


def meters_per_unit(data: DataArguments, rows: Dataset) -> float | None:
    """Return the unit of length of the scans in meters, read from the first file; None if it is unknown."""
    first = read_first(data, rows)
    return None if first is None else length_of_unit(first)


def read_first(data: DataArguments, rows: Dataset) -> PointCloudData | None:
    """Return the points of the first file of a folder, with what it states; None if it does not stand for all."""
    if data.dataset_name != "folder" or data.data_dir is None or "file" not in rows.column_names:
        return None
    names = [str(name) for name in rows.with_format(None)["file"][:]]
    path = Path(data.data_dir) / names[0]
    # Files of several formats may have several units and axes.
    if len({Path(name).suffix.lower() for name in names}) > 1 or not path.is_file():
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a file leaves out was told when the scans were loaded
        try:
            return read_point_cloud(path, fields=())
        except (PointCloudError, OSError):
            return None  # what was read before may be gone by now
