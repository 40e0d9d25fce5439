"""Answers of a person about suggested points: read from a table or a cloud, and found again in their tiles."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hf_any3d.data.files import PointCloudData, PointCloudError, read_point_cloud
from hf_any3d.data.las_classes import ASPRS_CLASSES, UNCLASSIFIED

COLUMNS = ("tile", "row", "x", "y", "z", "class")
"""Columns of a table of answers; others are not read."""
ROW = "TileRow"
"""Dimension of a LAS or LAZ file of suggested points with the number of each in its tile, from 0."""
_LAS = (".las", ".laz")
# Shares of a tile's diagonal, and meters, by which coordinates may be rounded in a table.
_ROUNDED, _ROUNDED_METERS = 1e-5, 0.006


@dataclass(frozen=True)
class Answers:
    """Points that a person has given a class.

    Attributes:
        path: The file that they are from.
        tiles: Name of the tile of each point; "" where the file does not say it.
        rows: (points,) number of each point in its tile, from 0.
        places: (points, 3) float64 coordinates, as in the tile.
        classes: Name of the class of each, or the code that LAS has for it.
    """

    path: Path
    tiles: list[str]
    rows: np.ndarray
    places: np.ndarray
    classes: list[str | int]

    def __len__(self) -> int:
        return len(self.classes)


def is_answers(path: Path) -> bool:
    """Return whether a file has answers about points of a tile, and is no tile itself; by its columns."""
    if path.suffix.lower() == ".csv":
        with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
            header = next(csv.reader(file), [])
        return {"row", "class"} <= {name.strip().lower() for name in header}
    if path.suffix.lower() not in _LAS:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            read_point_cloud(path, columns=[ROW])
    except PointCloudError:
        return False
    return True


def read_answers(path: Path) -> Answers:
    """Read the answers of a file; points without a class, or with code 0 or 1 in LAS, have none.

    Raises:
        ValueError: A cell is no number, or a column is missing; the error names the first one.
    """
    try:
        answers = _of_cloud(path) if path.suffix.lower() in _LAS else _of_table(path)
    except UnicodeDecodeError:
        # Spreadsheets write the letters of their own system, unless they are asked for others.
        raise ValueError(f"{path}: not text in UTF-8; expected a table that is saved as CSV in UTF-8") from None
    if not len(answers):
        raise ValueError(f"{path}: no point has a class; expected one for some of them at least")
    return answers


def _of_table(path: Path) -> Answers:
    tiles: list[str] = []
    rows: list[int] = []
    places: list[list[float]] = []
    classes: list[str | int] = []
    # A spreadsheet may write a mark of the encoding before the first column.
    with open(path, newline="", encoding="utf-8-sig") as file:
        table = csv.reader(file)
        header = [name.strip().lower() for name in next(table, [])]
        missing = [name for name in COLUMNS[1:] if name not in header]
        if missing:
            raise ValueError(f"{path}: no column {missing[0]!r}; expected {', '.join(COLUMNS)}")
        for number, cells in enumerate(table, start=2):
            row = dict(zip(header, cells, strict=False))
            name = row.get("class", "").strip()
            if not name:
                continue
            try:
                rows.append(int(row["row"]))
                places.append([float(row[axis]) for axis in "xyz"])
            except (KeyError, ValueError):
                raise ValueError(f"{path}: line {number} has no whole row or no number for x, y or z") from None
            tiles.append(row.get("tile", "").strip())
            classes.append(name)
    return Answers(path, tiles, np.array(rows, np.int64), np.array(places).reshape(-1, 3), classes)


def _of_cloud(path: Path) -> Answers:
    # Its other dimensions are what was suggested, and not what is learned.
    with warnings.catch_warnings(action="ignore"):
        cloud = read_point_cloud(path, columns=[ROW])
    # LAS always has a class, and the column was asked for.
    assert cloud.labels is not None and cloud.further is not None
    has_class = ~np.isin(cloud.labels, UNCLASSIFIED)
    rows = cloud.further[ROW][has_class].astype(np.int64)
    classes: list[str | int] = [*cloud.labels[has_class].tolist()]
    return Answers(path, [""] * len(classes), rows, coordinates_of(cloud)[has_class], classes)


def coordinates_of(cloud: PointCloudData) -> np.ndarray:
    """Return the coordinates (points, 3) float64 of a cloud, as in its file."""
    places = cloud.points.astype(np.float64)
    return places if cloud.offset is None else places + cloud.offset


def tile_of_each(answers: Answers, tiles: Mapping[Path, PointCloudData], in_meters: bool) -> np.ndarray:
    """Return the number of the tile of each answer, (points,), among those given.

    Raises:
        ValueError: A point is not in its tile, or elsewhere in it; the error names the first one.
    """
    found = np.full(len(answers), -1)
    by_name = {path.name: number for number, path in enumerate(tiles)}
    for number, (path, cloud) in enumerate(tiles.items()):
        coordinates = coordinates_of(cloud)
        tolerance = _ROUNDED * float(np.linalg.norm(np.ptp(coordinates, axis=0)))
        if in_meters:
            tolerance = max(tolerance, _ROUNDED_METERS / (cloud.meters_per_unit or 1.0))
        own = np.array([name in (path.name, "") for name in answers.tiles]) & (found < 0)
        own &= (answers.rows >= 0) & (answers.rows < len(cloud))
        candidates = np.flatnonzero(own)
        away = np.abs(coordinates[answers.rows[candidates]] - answers.places[candidates]).max(axis=1)
        found[candidates[away <= tolerance]] = number
    missing = np.flatnonzero(found < 0)
    if len(missing):
        first = int(missing[0])
        name = answers.tiles[first]
        place = ", ".join(f"{value:.10g}" for value in answers.places[first])
        given = ", ".join(by_name)
        if name and name not in by_name:
            raise ValueError(f"{answers.path}: its points are of {name}; expected that file beside {given}")
        raise ValueError(
            f"{answers.path}: row {answers.rows[first]} of {name or 'the tile'} is not at {place}; expected the tile "
            f"as it was when its points were suggested, which is none of {given} or has changed"
        )
    return found


def codes_by_name(names: Sequence[str], codes: Sequence[int] | None) -> dict[str, int]:
    """Return the codes that files get for classes; a class without one in LAS gets the first free one from 64 on."""
    known = dict(zip(names, codes or (), strict=False))
    by_name = {title: code for code, title in ASPRS_CLASSES.items()}
    for name in names:
        if name in known:
            continue
        code = by_name.get(name.lower())
        if code is None or code in known.values():
            code = next(number for number in range(64, 256) if number not in known.values())
        known[name] = code
    return known
