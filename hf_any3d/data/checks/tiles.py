"""Lines about labeled scans of one area: their classes, density, units and overlap, and where they differ.

`hf-any3d data check` describes the files of a folder with this.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np

from hf_any3d.data.checks.left_out_points import count_left_out, left_out_words
from hf_any3d.data.classes.las_classes import ASPRS_CLASSES, UNCLASSIFIED, Kind, class_name, kind_of, names_of
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.files.coordinate_systems import CoordinateSystem
from hf_any3d.data.files.label_words import common_names
from hf_any3d.data.files.las import system_of
from hf_any3d.data.frames.units import TAKEN_FOR_METERS, is_taken_for_meters
from hf_any3d.utils.messages import listed

# Cells on the ground in which points are counted, in meters, and the least extent of what has a density on the ground.
_CELL, _LEAST_EXTENT = 1.0, 10.0
# Densities that differ by this factor, and shares of a tile that are shared by chance of rounding.
_UNEQUAL, _LEAST_SHARE = 4.0, 1e-3
_MOST_NAMED, _MOST_COMPARED = 5, 2000
_UNITS = {1.0: "meters", 0.3048: "feet", round(1200 / 3937, 9): "US survey feet", 1e-3: "millimeters"}


@dataclass(frozen=True)
class Tile:
    """Facts about a scan.

    Attributes:
        name: Its file.
        low: (3,) least coordinates, in the units of the file.
        high: (3,) largest coordinates.
        meters_per_unit: Length of a unit, or None.
        is_taken_for_meters: Whether it has no coordinate system that says the unit, and is measured in meters.
        density: Points per square meter of ground, or None without a unit or ground.
        labels: Label -> number of points, or of faces where they alone have labels; None without labels.
        labeled: What has the labels, "points" or "faces".
        has: Names of what its points have, such as "colors".
        system: Its coordinate system.
        returns: Whether returns of pulses are counted, None of formats without them.
        ground_scale: Length on the ground of a meter on the map, where it is another one.
        points: Number of its points.
        left_out: Reason -> points that commands for tiles leave out for it.
    """

    name: str
    low: tuple[float, ...]
    high: tuple[float, ...]
    meters_per_unit: float | None
    density: float | None
    labels: dict[int, int] | None
    has: tuple[str, ...]
    returns: bool | None = None
    labeled: str = "points"
    is_taken_for_meters: bool = False
    table: str | None = None
    words: tuple[str, ...] | None = None
    system: CoordinateSystem = CoordinateSystem()
    ground_scale: float | None = None
    points: int = 0
    left_out: Counter[str] = field(default_factory=Counter)

    @property
    def is_las(self) -> bool:
        """True if labels are codes of ASPRS."""
        return _is_las(self.name)


def tile_of(name: str, cloud: PointCloudData) -> Tile:
    """Return the facts about a cloud."""
    # Points may be relative to an offset, and tiles are compared on the map.
    offset = np.zeros(3) if cloud.offset is None else cloud.offset
    low, high = ((getattr(cloud.points, end)(axis=0) + offset).tolist() for end in ("min", "max"))
    labeled = "points"
    codes = cloud.labels
    labels = None
    if codes is None and cloud.face_labels is not None:
        labeled = "faces"
        codes = cloud.face_labels
    if codes is not None:
        kinds, counts = np.unique(codes, return_counts=True)
        labels = dict(zip(kinds.tolist(), counts.tolist(), strict=True))
    left_out = count_left_out(cloud, noise=True)
    fields = ("colors", "intensity", "normals", "ring", "labels")
    has = tuple(name for name in fields if getattr(cloud, name) is not None)
    # Other formats have no place for returns, so that they lack nothing.
    returns = cloud.return_number is not None if _is_las(name) else None
    unit = cloud.meters_per_unit
    assumed = is_taken_for_meters(name, cloud)
    scale = 1.0 if assumed else unit and unit * (cloud.ground_scale or 1.0)
    # Points per square meter of the cells on the ground that have any. Points of scans of objects have no ground, and
    # without a unit there are no square meters.
    density = None
    is_seen_from_above = cloud.up_axis == "z" or cloud.meters_per_height is not None
    if scale is not None and is_seen_from_above and not cloud.is_mesh:
        flat = (cloud.points[:, :2] - cloud.points[:, :2].min(axis=0)).astype(np.float64) * scale
        if flat.max() >= _LEAST_EXTENT:
            # One number for each cell, so that those with any point are counted by `np.unique`.
            cells = np.floor(flat / _CELL).astype(np.int64)
            occupied = len(np.unique(cells[:, 0] * (cells[:, 1].max() + 1) + cells[:, 1]))
            density = len(flat) / (occupied * _CELL**2)
    table = cloud.label_codes
    words = cloud.label_names
    # Clouds of archives and standard input have no file to look at.
    system = CoordinateSystem()
    if _is_las(name) and os.path.isfile(name):
        # Without pyproj, no system is known to be another one.
        with suppress(ImportError):
            system = system_of(name)
    facts = (unit, density, labels, has, returns, labeled, assumed, table, words, system, cloud.ground_scale)
    return Tile(name, (*low,), (*high,), *facts, len(cloud), left_out)


def _is_las(name: str) -> bool:
    return name.lower().endswith((".las", ".laz"))


def describe_tiles(tiles: Sequence[Tile]) -> list[str]:
    """Return lines about classes, density, units, overlap, and what only some tiles have; none if there is nothing."""
    if len(tiles) > 1:
        # Names relative to the common folder are shorter, and differ.
        folder = os.path.commonpath([os.path.dirname(tile.name) for tile in tiles])
        tiles = [replace(tile, name=os.path.relpath(tile.name, folder) if folder else tile.name) for tile in tiles]
    tiles = _with_common_words(tiles)
    lines: list[str] = []
    for describe in (
        _classes,
        _codes,
        _left_out,
        _unequal_labels,
        _densities,
        _units,
        _systems,
        _overlaps,
        _missing,
    ):
        lines += describe(tiles)
    return lines


def _with_common_words(tiles: Sequence[Tile]) -> list[Tile]:
    """Return the tiles with one list of words, whose numbers are their labels, after the numbers of tiles without."""
    words = common_names(tile.words for tile in tiles)
    if not words:
        return list(tiles)
    others: list[int] = []
    for tile in tiles:
        if tile.words is None:
            others += tile.labels or ()
    first = max(others, default=-1) + 1
    names = ("",) * first + words
    common = []
    for tile in tiles:
        if tile.words is not None and tile.labels is not None:
            own = tile.words
            labels = {}
            for label, count in tile.labels.items():
                labels[names.index(own[label], first) if label >= 0 else label] = count
            tile = replace(tile, labels=labels, words=names)
        common.append(tile)
    return common


def _classes(tiles: Sequence[Tile]) -> Iterator[str]:
    names = _names(tiles)
    for labeled in ("points", "faces"):
        counts: Counter[int] = Counter()
        for tile in tiles:
            if tile.labeled == labeled:
                counts.update(tile.labels or {})
        total = sum(counts.values())
        shares = []
        for label, count in sorted(counts.items()):
            what = f"{label} {class_name(label, names)}" if label in names else str(label)
            shares.append(f"{what} {100 * count / total:.3g} %")
        if shares:
            yield f"labels of {labeled}: {', '.join(shares)}"


def _codes(tiles: Sequence[Tile]) -> Iterator[str]:
    """Tell which codes of LAS are no class of things, in the files that have them."""
    files_of: dict[tuple[int, str], list[str]] = {}
    for tile in tiles:
        for label in tile.labels or {}:
            if tile.table is not None and kind_of(label, tile.table) in (Kind.USE, Kind.RESERVED, Kind.FLAGGED):
                files_of.setdefault((label, tile.table), []).append(tile.name)
    for (label, table), names in sorted(files_of.items()):
        name = names_of(table).get(label)
        what = f"{label}{f' {name}' if name else ''}"
        yield f"{what} says {kind_of(label, table)}, in {_some(names)}; it is not learned by default"


def _left_out(tiles: Sequence[Tile]) -> Iterator[str]:
    """Tell which points commands for tiles leave out, in the files that have them."""
    counts = sum((tile.left_out for tile in tiles), Counter())
    if counts:
        words = left_out_words(counts, sum(tile.points for tile in tiles))
        yield f"{words}; in {_some([tile.name for tile in tiles if tile.left_out])}"


def _unequal_labels(tiles: Sequence[Tile]) -> Iterator[str]:
    """Tell which tiles alone have a class, and which have no labels."""
    labeled = [tile for tile in tiles if tile.labels]
    names = _names(tiles)
    for label in sorted({label for tile in labeled for label in tile.labels or ()}):
        having = [tile.name for tile in labeled if label in (tile.labels or {})]
        if len(having) < len(labeled):
            what = f"{label} {names[label]}" if label in names else str(label)
            lacking = [tile.name for tile in labeled if tile.name not in having]
            # Whichever list is shorter.
            where = f"in {_some(having)}" if len(having) <= len(lacking) else f"not in {_some(lacking)}"
            yield f"only {len(having)} of {len(labeled)} have {what}: {where}"
    without = [tile.name for tile in tiles if tile.labels is None]
    if 0 < len(without) < len(tiles):
        kinds = " or ".join(sorted({tile.labeled for tile in labeled}, reverse=True))
        yield f"no labels of {kinds} in {len(without)} of {len(tiles)}: {_some(without)}"
    # LAS has a place for a class in each point, whether or not anyone has classified them.
    never = [tile.name for tile in tiles if tile.is_las and tile.labels and set(tile.labels) <= {*UNCLASSIFIED}]
    if never:
        yield f"no point is classified in {len(never)} of {len(tiles)}: {_some(never)}"


def _densities(tiles: Sequence[Tile]) -> Iterator[str]:
    densities = sorted((tile.density, tile.name) for tile in tiles if tile.density is not None)
    if not densities:
        return
    (low, sparse), (high, dense) = densities[0], densities[-1]
    # A few percent differ between any two tiles.
    if len(densities) == 1 or high < 1.05 * low:
        yield f"density: {low:.3g} points per square meter"
        return
    unequal = "; thin out or leave out one kind" if high > _UNEQUAL * low else ""
    yield f"density: {low:.3g} ({sparse}) to {high:.3g} ({dense}) points per square meter{unequal}"


def _units(tiles: Sequence[Tile]) -> Iterator[str]:
    of_unit: dict[str, list[str]] = {}
    for tile in tiles:
        of_unit.setdefault(_unit_name(tile), []).append(tile.name)
    if len(of_unit) == 1 and tiles[0].is_taken_for_meters:
        yield TAKEN_FOR_METERS
    elif len(of_unit) == 1 and tiles[0].meters_per_unit is not None:
        yield f"unit: {_unit_name(tiles[0])}"
    elif len(of_unit) > 1:
        yield f"units differ: {'; '.join(f'{unit} in {_some(names)}' for unit, names in of_unit.items())}"
    stretched = [tile for tile in tiles if tile.ground_scale is not None]
    if stretched:
        lengths = sorted({f"{1 / (tile.ground_scale or 1.0):.3g}" for tile in stretched})
        names = _some([tile.name for tile in stretched])
        yield f"map scale: {' or '.join(lengths[:_MOST_NAMED])} m on the map are 1 m on the ground, in {names}"


def _systems(tiles: Sequence[Tile]) -> Iterator[str]:
    """Tell of tiles whose coordinate systems are known to be different."""
    groups: list[tuple[CoordinateSystem, list[str]]] = []
    for tile in tiles:
        if not str(tile.system):
            continue
        for system, names in groups:
            if not tile.system.differs_from(system):
                names.append(tile.name)
                break
        else:
            groups.append((tile.system, [tile.name]))
    if len(groups) > 1:
        yield f"coordinate systems differ: {'; '.join(f'{system} in {_some(names)}' for system, names in groups)}"


def _unit_name(tile: Tile) -> str:
    if tile.is_taken_for_meters:
        return TAKEN_FOR_METERS
    if tile.meters_per_unit is None:
        return "not known"
    return _UNITS.get(round(tile.meters_per_unit, 9), f"{tile.meters_per_unit:g} m")


def _overlaps(tiles: Sequence[Tile]) -> Iterator[str]:
    """Compare the boxes of tiles on the ground that are in meters or feet; scans of objects all lie at the origin."""
    on_ground = [tile for tile in tiles if tile.density is not None][:_MOST_COMPARED]
    shared = []
    for tile, other in combinations(on_ground, 2):
        # The same numbers are other places there.
        if tile.system.differs_from(other.system):
            continue
        # In meters, as tiles may have different units
        unit = tile.meters_per_unit or 1.0
        other_unit = other.meters_per_unit or 1.0
        # What both boxes share along x and y; negative where they are apart
        sides = [
            min(tile.high[axis] * unit, other.high[axis] * other_unit)
            - max(tile.low[axis] * unit, other.low[axis] * other_unit)
            for axis in range(2)
        ]
        # Neighboring tiles share a seam by design; only larger shares are worth a line.
        smaller = min(_area(tile), _area(other))
        on_the_ground = (tile.ground_scale or 1.0) ** 2
        if min(sides) > 0 and (area := sides[0] * sides[1] * on_the_ground) > _LEAST_SHARE * smaller:
            shared.append((area / smaller, area, tile.name, other.name))
    if shared:
        shared.sort(reverse=True)
        named = [
            f"{tile} and {other} {area:,.0f} square meters, {100 * share:.3g} % of the smaller"
            for share, area, tile, other in shared
        ]
        count = f"{len(shared)} pair{'s' * (len(shared) > 1)}"
        yield f"overlapping boxes, {count}: {listed(named, _MOST_NAMED, '; ')}"


def _area(tile: Tile) -> float:
    unit = (tile.meters_per_unit or 1.0) * (tile.ground_scale or 1.0)
    return (tile.high[0] - tile.low[0]) * (tile.high[1] - tile.low[1]) * unit**2


def _missing(tiles: Sequence[Tile]) -> Iterator[str]:
    kinds: list[tuple[str, Callable[[Tile], bool | None]]] = [
        ("colors", lambda tile: "colors" in tile.has),
        ("intensities", lambda tile: "intensity" in tile.has),
        ("normals", lambda tile: "normals" in tile.has),
        ("rings", lambda tile: "ring" in tile.has),
        ("numbers of returns", lambda tile: tile.returns),
    ]
    for kind, has in kinds:
        # None stands for a format that has no place for it.
        asked = [tile for tile in tiles if has(tile) is not None]
        without = [tile.name for tile in asked if not has(tile)]
        if 0 < len(without) < len(asked):
            yield f"no {kind} in {len(without)} of {len(asked)}: {_some(without)}"


def _names(tiles: Sequence[Tile]) -> dict[int, str]:
    words = next((tile.words for tile in tiles if tile.words is not None), ())
    if words:
        # Numbers before those of words are of other tiles.
        return {label: word for label, word in enumerate(words) if word}
    tables = {tile.table for tile in tiles if tile.table is not None}
    # Where formats differ, a code may be a class in one file and reserved in another.
    if len(tables) > 1:
        return ASPRS_CLASSES
    return names_of(tables.pop() if tables else None)


def _some(names: Sequence[str]) -> str:
    return listed(names, _MOST_NAMED)
