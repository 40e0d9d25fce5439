"""Answers of a person about suggested points: read from a table or a cloud, and found again in their tiles."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PureWindowsPath

import numpy as np

from hf_any3d.data.classes.las_classes import ASPRS_CLASSES, UNCLASSIFIED
from hf_any3d.data.files import PointCloudData, PointCloudError, read_point_cloud
from hf_any3d.data.tables.small_tables import column_names, plain_name, read_rows

COLUMNS = ("tile", "row", "x", "y", "z", "class")
"""Columns of a table of answers; others are not read."""
ROW = "TileRow"
"""Dimension of a LAS or LAZ file of suggested points with the number of each in its tile, from 0."""
_LAS = (".las", ".laz")
_TABLES = (".csv", ".tsv", ".tab", ".txt")
_MOST_CODES = 256  # of LAS
# Shares of a tile's diagonal, and meters, by which coordinates may be rounded in a table.
_ROUNDED, _ROUNDED_METERS = 1e-5, 0.006


@dataclass(frozen=True)
class Answers:
    """Points that a person has given a class.

    Attributes:
        path: The file that they are from, the first of several.
        tiles: Name of the tile of each point; "" where the file does not say it.
        rows: (points,) number of each point in its tile, from 0.
        places: (points, 3) float64 coordinates, as in the tile.
        classes: Name of the class of each, or the code that LAS has for it.
        where: File and line of each, for errors; empty if nobody knows.
    """

    path: Path
    tiles: list[str]
    rows: np.ndarray
    places: np.ndarray
    classes: list[str | int]
    where: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.classes)

    def place(self, number: int) -> str:
        """Return the location of an answer, with which error messages begin."""
        return self.where[number] if self.where else str(self.path)

    def part(self, numbers: np.ndarray) -> Answers:
        """Return some of the answers."""
        chosen = numbers.tolist()
        return Answers(
            self.path,
            [self.tiles[number] for number in chosen],
            self.rows[numbers],
            self.places[numbers],
            [self.classes[number] for number in chosen],
            [self.where[number] for number in chosen] if self.where else [],
        )


def is_answers(path: Path) -> bool:
    """Return whether a file has answers about points of a tile, and is no tile itself; by its columns."""
    if path.suffix.lower() in _TABLES:
        return {"row", "class"} <= {*column_names(path)}
    if path.suffix.lower() not in _LAS:
        return False
    try:
        with warnings.catch_warnings(action="ignore"):
            read_point_cloud(path, columns=[ROW])
    except PointCloudError:
        return False
    return True


def read_answers(path: Path) -> Answers:
    """Read the answers of a file; points without a class, or with code 0 or 1 of LAS, have none.

    Raises:
        ValueError: A cell is no number, or a column is missing; the error names the first one.
    """
    answers = _of_cloud(path) if path.suffix.lower() in _LAS else _of_table(path)
    if not len(answers):
        raise ValueError(f"{path}: no point has a class; label at least some points")
    return answers


def read_all_answers(paths: Sequence[Path]) -> Answers:
    """Read the answers of several files, as one list."""
    parts = [read_answers(path) for path in paths]
    return Answers(
        parts[0].path,
        [name for part in parts for name in part.tiles],
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.places for part in parts]),
        [name for part in parts for name in part.classes],
        [where for part in parts for where in part.where],
    )


def _of_table(path: Path) -> Answers:
    tiles: list[str] = []
    rows: list[int] = []
    places: list[list[float]] = []
    classes: list[str | int] = []
    where: list[str] = []
    for row in read_rows(path, COLUMNS[1:]):
        name = row.cells["class"]
        # As in the LAS of suggested points, whose points have these codes until somebody gives them others
        if not name or plain_name(name) in {str(code) for code in UNCLASSIFIED}:
            continue
        rows.append(row.whole("row"))
        places.append([row.number(axis) for axis in "xyz"])
        # A path of any system, of which the name counts
        tiles.append(PureWindowsPath(row.cells.get("tile", "")).name)
        classes.append(_code_of(name) if _is_number(name) else name)
        where.append(f"{path}: line {row.line}")
        if isinstance(classes[-1], int) and not 0 <= classes[-1] < _MOST_CODES:
            raise row.error(f"class {name!r}; use a name, or a LAS code from 0 to {_MOST_CODES - 1}")
    return Answers(path, tiles, np.array(rows, np.int64), np.array(places).reshape(-1, 3), classes, where)


def _is_number(name: str) -> bool:
    """Return whether a class is a code, also as a spreadsheet writes it, such as 2.0."""
    whole, point, digits = name.replace(",", ".").lstrip("+-").partition(".")
    return whole.isascii() and whole.isdigit() and digits.strip("0") == "" and (bool(digits) or not point)


def _code_of(name: str) -> int:
    return int(float(name.replace(",", ".")[:20]))


def _of_cloud(path: Path) -> Answers:
    # Its other dimensions are what was suggested, and not what is learned.
    with warnings.catch_warnings(action="ignore"):
        cloud = read_point_cloud(path, columns=[ROW])
    # LAS always has a class, and the column was asked for.
    assert cloud.labels is not None and cloud.further is not None
    has_class = ~np.isin(cloud.labels, UNCLASSIFIED)
    rows = cloud.further[ROW][has_class].astype(np.int64)
    classes: list[str | int] = [*cloud.labels[has_class].tolist()]
    where = [f"{path}: point {number}" for number in np.flatnonzero(has_class)]
    return Answers(path, [""] * len(classes), rows, coordinates_of(cloud)[has_class], classes, where)


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
    by_name = {path.name.casefold(): path.name for path in tiles}
    for number, (path, cloud) in enumerate(tiles.items()):
        coordinates = coordinates_of(cloud)
        tolerance = _ROUNDED * float(np.linalg.norm(np.ptp(coordinates, axis=0)))
        if in_meters:
            tolerance = max(tolerance, _ROUNDED_METERS / (cloud.meters_per_unit or 1.0))
        own = np.array([name.casefold() in (path.name.casefold(), "") for name in answers.tiles]) & (found < 0)
        own &= (answers.rows >= 0) & (answers.rows < len(cloud))
        candidates = np.flatnonzero(own)
        away = np.abs(coordinates[answers.rows[candidates]] - answers.places[candidates]).max(axis=1)
        found[candidates[away <= tolerance]] = number
    missing = np.flatnonzero(found < 0)
    if len(missing):
        first = int(missing[0])
        name = answers.tiles[first]
        place = ", ".join(f"{value:.10g}" for value in answers.places[first])
        given = ", ".join(by_name.values())
        if name and name.casefold() not in by_name:
            raise ValueError(
                f"{answers.place(first)}: its points belong to {name}; pass that file together with {given}"
            )
        raise ValueError(
            f"{answers.place(first)}: row {answers.rows[first]} of {name or 'the tile'} is not at {place}; none of "
            f"{given} is the tile that the points were suggested for, or it has changed since; pass the original "
            "tile"
        )
    return found


def one_for_each_point(
    answers: Answers, labels: np.ndarray, names: Sequence[str], tiles: Sequence[PointCloudData], tile_of: np.ndarray
) -> np.ndarray:
    """Return the numbers of the answers that count, (points,): one for each point, however often it was answered.

    A point is a row of a tile, in any file of answers; rows in the very same place, such as those of two copies of a
    tile, are one point, too.

    Args:
        answers: All answers.
        labels: (answers,) number of the class of each.
        names: Names of the classes.
        tiles: The tiles.
        tile_of: (answers,) number of the tile of each.

    Raises:
        ValueError: Two answers about one point differ; the error names both.
    """
    first_of: dict[tuple[float, ...], int] = {}
    kept = []
    for number, (tile, row) in enumerate(zip(tile_of.tolist(), answers.rows.tolist(), strict=True)):
        cloud = tiles[tile]
        place = cloud.points[row].astype(np.float64) + (0.0 if cloud.offset is None else cloud.offset)
        # Rounded as in files, since a copy of another format may have split off another offset.
        first = first_of.setdefault(tuple(np.round(place, 4).tolist()), number)
        if first == number:
            kept.append(number)
        elif labels[first] != labels[number]:
            raise ValueError(
                f"{answers.place(number)}: says {names[labels[number]]} of a point that is {names[labels[first]]} "
                f"in {answers.place(first)}; keep one answer for this point"
            )
    return np.array(kept)


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
