"""Checkpoints of a survey: places whose elevation was measured independently of the scan."""

from __future__ import annotations

import csv
import os
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.options import one_of

ENDINGS = (".csv", ".gpkg", ".geojson")
"""Endings of files with checkpoints."""
_VEGETATED = {"1", "true", "yes", "y", "vva", "vegetated"}
_OPEN = {"", "0", "false", "no", "n", "nva", "open"}
# Well-known binary: numbers of points with two and three coordinates, in the dialects of ISO and of Esri.
_POINT, _POINTS_WITH_Z = 1, (1001, 0x80000001)


@dataclass(frozen=True)
class Checkpoints:
    """Places with known elevations.

    Attributes:
        points: (points, 3) map coordinates and elevations in the units of the scan.
        vegetated: (points,) bool, which stand under vegetation.
    """

    points: np.ndarray
    vegetated: np.ndarray


def read_checkpoints(path: str | os.PathLike, coordinate_system: str | None) -> Checkpoints:
    """Read checkpoints: columns x, y and z of a CSV, or points of a GeoPackage or GeoJSON with z.

    An optional column `vegetated` (yes or no) tells which stand under vegetation. Elevations are in the unit of the
    scan's. Points of a GeoPackage or GeoJSON in another coordinate system are moved to that of the scan on the map.

    Args:
        path: The file.
        coordinate_system: That of the scan, as well-known text; None where it has none.

    Raises:
        ValueError: The ending is another one, a column is missing, or a value is no number.
    """
    ending = one_of("ending of the checkpoints", Path(path).suffix.lower(), ENDINGS)
    if ending == ".csv":
        rows = _rows_of_csv(path)
    else:
        rows = _rows_of_layer(path, coordinate_system)
    if not rows:
        raise ValueError(f"{path} has no checkpoints; give columns x, y and z")
    points = np.array([[_number(path, at, row, name) for name in "xyz"] for at, row in enumerate(rows, 1)])
    return Checkpoints(points, np.array([_is_vegetated(path, at, row) for at, row in enumerate(rows, 1)]))


def _rows_of_csv(path: str | os.PathLike) -> list[dict[str, Any]]:
    with open(path, encoding="utf-8-sig", newline="") as file:
        rows = csv.DictReader(file)
        names = [name.strip().lower() for name in rows.fieldnames or ()]
        return [dict(zip(names, row.values(), strict=False)) for row in rows]


def _rows_of_layer(path: str | os.PathLike, coordinate_system: str | None) -> list[dict[str, Any]]:
    """Return the points of the first layer of a GeoPackage or GeoJSON, in the coordinate system of the scan."""
    from pyogrio import errors, raw
    from pyproj import Transformer

    try:
        meta, _, shapes, columns = raw.read(path)
    except errors.DataSourceError as error:
        raise ValueError(f"{path}: cannot read checkpoints: {error}") from error
    names = [name.lower() for name in meta["fields"]]
    move = None
    if meta["crs"] is not None and coordinate_system is not None:
        move = Transformer.from_crs(meta["crs"], coordinate_system, always_xy=True)
    elif Path(path).suffix.lower() == ".geojson":
        raise ValueError(
            f"{path} is in longitude and latitude, but the scan has no coordinate system; give a .csv in the "
            "coordinates of the scan"
        )
    rows = []
    for at, shape in enumerate(shapes):
        place = _coordinates(path, shape)
        row = {name: column[at] for name, column in zip(names, columns, strict=True)}
        row |= dict(zip("xyz", place, strict=False))
        if move is not None:
            row["x"], row["y"] = move.transform(row["x"], row["y"])
        rows.append(row)
    return rows


def _coordinates(path: str | os.PathLike, shape: bytes | None) -> tuple[float, ...]:
    """Return x, y and, if it has one, z of a point in well-known binary."""
    if shape is not None:
        order = "<" if shape[0] == 1 else ">"
        (kind,) = struct.unpack_from(f"{order}I", shape, 1)
        if kind == _POINT:
            return struct.unpack_from(f"{order}2d", shape, 5)
        if kind in _POINTS_WITH_Z:
            return struct.unpack_from(f"{order}3d", shape, 5)
    raise ValueError(f"{path} has geometries other than points; give one point per checkpoint")


def _number(path: str | os.PathLike, at: int, row: Mapping[str, Any], name: str) -> float:
    if row.get(name) is None:
        raise ValueError(f"{path} has no {name}; expected columns x, y and z (found: {', '.join(map(str, row))})")
    try:
        value = float(row[name])
    except ValueError:
        value = np.nan
    if not np.isfinite(value):
        raise ValueError(f"{path}: checkpoint {at} has {name} {row[name]!r}; expected a number")
    return value


def _is_vegetated(path: str | os.PathLike, at: int, row: Mapping[str, Any]) -> bool:
    word = str(row.get("vegetated") or "").strip().lower()
    if word not in _VEGETATED | _OPEN:
        raise ValueError(f"{path}: checkpoint {at} has vegetated {word!r}; expected yes or no")
    return word in _VEGETATED


def error_statistics(errors: Sequence[float] | np.ndarray) -> dict[str, Any]:
    """Return number, root mean square, mean and largest of errors in meters; None where there are none."""
    errors = np.asarray(errors, np.float64)
    if not len(errors):
        return {"points": 0, "rmse_z_m": None, "mean_error_m": None, "largest_error_m": None}
    return {
        "points": len(errors),
        "rmse_z_m": round(float(np.sqrt(np.mean(errors**2))), 3),
        "mean_error_m": round(float(errors.mean()), 3),
        "largest_error_m": round(float(np.abs(errors).max()), 3),
    }
