"""Tables of the things of a scan: CSV, and GeoPackage or GeoJSON with their outlines."""

from __future__ import annotations

import csv
import io
import os
import shutil
import struct
import warnings
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.options import one_of
from hf_any3d.utils.atomic_files import atomic_write
from hf_any3d.utils.messages import listed
from hf_any3d_survey.inventory.lengths import FEET, METERS, LengthUnit
from hf_any3d_survey.inventory.things import Thing

DRIVERS = {".csv": None, ".geojson": "GeoJSON", ".gpkg": "GPKG"}
"""Endings of tables -> what GDAL calls the format."""
LAYER = "objects"
"""Name of the layer with the things in a GeoPackage."""
# Well-known binary: little-endian, and its numbers of the kinds of geometry.
_LITTLE_ENDIAN, _POINT, _POLYGON = 1, 1, 3


def columns_of(unit: LengthUnit) -> dict[str, int | None]:
    """Return the columns of a table in a unit, and how many digits are written after the point; None for no number."""
    return {
        "number": None,
        "class": None,
        "code": None,
        "x": 3,
        "y": 3,
        f"ground_{unit.name}": 2,
        f"height_{unit.name}": 2,
        f"crown_diameter_{unit.name}": 2,
        f"area_{unit.name}2": 2,
        "points": None,
        "score": 3,
        "ground_guessed": None,
    }


def row_of(thing: Thing, unit: LengthUnit = METERS) -> dict[str, Any]:
    """Return the row of a thing, as plain values that are rounded; None where it has none."""
    values = (
        thing.number,
        thing.label,
        thing.code,
        thing.x,
        thing.y,
        thing.ground / unit.length * unit.up,
        thing.height / unit.length,
        thing.crown_diameter / unit.length,
        thing.area / unit.length**2,
        thing.points,
        thing.score,
        thing.ground_guessed,
    )
    row: dict[str, Any] = {}
    for (name, digits), value in zip(columns_of(unit).items(), values, strict=True):
        if digits is not None:
            value = None if np.isnan(value) else round(float(value), digits)
        row[name] = value
    return row


def check_table(path: str | os.PathLike, coordinate_system: str | None) -> None:
    """Raise an error if `write_table` could not write to this path, before any work is done.

    Raises:
        ValueError: The ending is not one of `DRIVERS`, a GeoJSON has no coordinate system, or a GeoPackage that is
            there is open in another program, cannot be read, or has another layer `LAYER`.
    """
    ending = one_of("ending of the table", Path(path).suffix.lower(), DRIVERS)
    if ending == ".geojson" and coordinate_system is None:
        raise ValueError(
            f"{path}: GeoJSON needs longitudes and latitudes, but the scan has no coordinate system; write a .gpkg "
            "or .csv instead"
        )
    if ending == ".gpkg" and Path(path).exists():
        _check_geopackage(Path(path))


def _check_geopackage(path: Path) -> None:
    """Raise an error unless the layer of a GeoPackage can be replaced, and all others be kept."""
    # Here, as it brings pandas and pyarrow, which a CSV does without
    from pyogrio import list_layers, read_info
    from pyogrio.errors import DataSourceError

    # What another program has changed and not yet moved into the file would be lost, and later be mixed with ours.
    for ending in ("-wal", "-journal"):
        if path.with_name(path.name + ending).exists():
            raise ValueError(f"{path} is open in another program; close it there, or give another path")
    own = [list(columns_of(unit)) for unit in (METERS, FEET)]
    try:
        layers = [name for name, _ in list_layers(path)]
        fields = list(read_info(path, layer=LAYER)["fields"]) if LAYER in layers else own[0]
    except DataSourceError as error:
        raise ValueError(f"{path}: exists but is not a readable GeoPackage; give another path") from error
    if fields not in own:
        raise ValueError(
            f"{path}: its layer {LAYER!r} has other columns ({listed(fields)}) that would be lost; rename it, or "
            "give another path"
        )


def write_table(
    path: str | os.PathLike,
    things: Sequence[Thing],
    coordinate_system: str | None = None,
    unit: LengthUnit = METERS,
) -> None:
    """Write a row for each thing, with the columns of `columns_of`.

    Names of columns have the unit in them; x and y are map coordinates. What a thing lacks, such as the crown of a
    building, is empty. In GeoPackage and GeoJSON a thing is the polygon of its outline, or a point where it has none.
    A GeoPackage has the coordinates of the scan. Outlines in GeoJSON are in longitude and latitude (WGS 84), as RFC
    7946 demands: map programs in browsers read nothing else, and QGIS and GDAL read that too. Its columns x and y are
    those of the scan.

    Args:
        path: A file that ends in .csv, .geojson or .gpkg. It is replaced as a whole, but a GeoPackage keeps its other
            layers: a copy of it gets the layer `LAYER`, and takes its place when it is complete.
        things: The things.
        coordinate_system: Well-known text or a name such as "EPSG:2154".
        unit: Unit of all columns but x and y.

    Raises:
        ValueError: The ending is another one, a GeoJSON has no coordinate system, or GDAL does not know it.
    """
    check_table(path, coordinate_system)
    path = Path(path)
    if path.suffix.lower() == ".csv":
        with atomic_write(path) as unfinished, open(unfinished, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            columns = columns_of(unit)
            writer.writerow(columns)
            for thing in things:
                row = row_of(thing, unit)
                writer.writerow([_cell(row[name], digits) for name, digits in columns.items()])
        return
    with atomic_write(path) as unfinished:
        if path.suffix.lower() == ".gpkg" and path.exists():
            shutil.copyfile(path, unfinished)
            _write_layer(unfinished, path, things, coordinate_system, unit)
            _check_layer(unfinished, len(things))
        else:
            # In memory, since GDAL ends without an error on a disk that is full
            content = io.BytesIO()
            _write_layer(content, path, things, coordinate_system, unit)
            unfinished.write_bytes(content.getvalue())


def _check_layer(unfinished: Path, count: int) -> None:
    """Raise an error unless a GeoPackage is whole."""
    import sqlite3  # here, as Python may be built without it

    try:
        # Closed at the end of the block
        with closing(sqlite3.connect(unfinished)) as database:
            (state,) = database.execute("PRAGMA integrity_check").fetchone()
            (rows,) = database.execute(f"SELECT COUNT(*) FROM {LAYER}").fetchone()
    except sqlite3.Error as error:
        raise OSError(f"{unfinished}: {error}") from error
    if state != "ok" or rows != count:
        raise OSError(f"{unfinished}: {rows} of {count} rows were written ({state})")


def _cell(value: Any, digits: int | None) -> str:
    """Return a cell of a CSV."""
    if value is None:
        return ""
    if digits is not None:
        return f"{value:.{digits}f}"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _write_layer(
    target: Any, path: Path, things: Sequence[Thing], coordinate_system: str | None, unit: LengthUnit
) -> None:
    """Write the things into a GeoPackage or GeoJSON that will be `path`."""
    from pyogrio import errors, raw

    driver = DRIVERS[path.suffix.lower()]
    rows = [row_of(thing, unit) for thing in things]
    names = columns_of(unit)
    columns = []
    for name, digits in names.items():
        kind: Any = np.float64
        if digits is None:
            kind = {"class": object, "ground_guessed": bool}.get(name, np.int64)
        # None becomes NaN, which GDAL writes as an empty cell.
        columns.append(np.array([row[name] for row in rows], kind))
    shapes = [_well_known_binary(thing) for thing in things]
    has_points = not all(thing.outline for thing in things)
    options = {"RFC7946": "YES"} if driver == "GeoJSON" else {}
    try:
        with warnings.catch_warnings():
            # That a file with a temporary name is a GeoPackage
            warnings.filterwarnings("ignore", ".*file(name)? extension", RuntimeWarning)
            # That a scan without a coordinate system has a layer without one
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            raw.write(
                target,
                np.array(shapes, object),
                columns,
                list(names),
                layer=LAYER,
                driver=driver,
                geometry_type="Unknown" if has_points else "Polygon",
                crs=coordinate_system,
                encoding="UTF-8",
                layer_options=options,
            )
    except errors.CRSError as error:
        raise ValueError(f"{path}: the coordinate system {coordinate_system!r} is unknown to GDAL") from error
    except (errors.DataSourceError, errors.DataLayerError, errors.FeatureError) as error:
        # Such as places that have no longitude and latitude, or a full disk
        raise ValueError(f"{path}: {error}") from error


def _well_known_binary(thing: Thing) -> bytes:
    """Return the outline of a thing, or its place where it has none."""
    if not thing.outline:
        return struct.pack("<BIdd", _LITTLE_ENDIAN, _POINT, thing.x, thing.y)
    parts = [struct.pack("<BII", _LITTLE_ENDIAN, _POLYGON, len(thing.outline))]
    for ring in thing.outline:
        parts += [struct.pack("<I", len(ring)), np.ascontiguousarray(ring, "<f8").tobytes()]
    return b"".join(parts)
