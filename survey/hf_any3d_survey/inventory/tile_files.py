"""Files of tiles that are one place: each is read once before, so that all are known when one is in work."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.classes.las_classes import CURRENT, UNCLASSIFIED
from hf_any3d.data.files import PointCloudData, PointCloudError, PointCloudFileError, file_errors
from hf_any3d.data.files.coordinate_systems import CoordinateSystem
from hf_any3d.data.files.las import REPROJECT, has_no_points, system_of
from hf_any3d.data.files.source import NoPointsError
from hf_any3d.data.frames.far_points import distance_in_words, far_groups
from hf_any3d.data.frames.units import check_projected
from hf_any3d.data.inputs import ATTRIBUTES
from hf_any3d.utils.messages import listed, printable
from hf_any3d_survey.inventory.left_out import LeftOut, codes_of_file, split_left_out
from hf_any3d_survey.inventory.place import HIGH_NOISE, MARGIN, NOISE, Answer, Around, Copies
from hf_any3d_survey.inventory.shelf import Shelf
from hf_any3d_survey.inventory.steps import InventorySteps
from hf_any3d_survey.local_features.map_index import PlacedPoints, blocks, bounds_of_all

_ARRAYS = ("points", "labels", *ATTRIBUTES.values())
_PLACE = ("offset", "meters_per_unit", "meters_per_height", "in_degrees", "no_map")
_FURTHER = "further "  # before the names of columns, which may be those of arrays
_SAME_UNIT = 1e-5
_SAME_PLACE = 1e-4  # units of the file
_SAME_SCALE = 0.02  # share by which the scale of the map may differ over a place, which has that of the middle
_NO_POINTS = "has no points"


@dataclass(frozen=True)
class TileFile:
    """File of a tile of a place, and what is known of it while others are in work.

    Attributes:
        path: The file.
        count: Number of its points, without those that are left out.
        unit: Length of a unit on the ground in meters.
        height: The same of heights; below 0 where they are depths.
        bounds: (2, 2) lowest and highest places on the map, in its unit.
        has_class: (points,) which points of the file have a class, as packed bits.
        label_codes: Table of the codes of its classes, as of `PointCloudData`.
        left_out: Points that are left out; None for none.
        name: What its points are kept under on the `shelf`.
        shelf: Where the points of all tiles are kept, once they have been read.
        place: How its coordinates are meant, by the names of `PointCloudData`.
        ground_scale: Length on the ground of a meter on the map, the same for all tiles of a place; None for 1.
    """

    path: str
    count: int
    unit: float
    height: float
    bounds: np.ndarray
    has_class: np.ndarray
    label_codes: str | None
    left_out: LeftOut | None
    name: str
    shelf: Shelf
    place: Mapping[str, Any]
    ground_scale: float | None = None

    @property
    def stem(self) -> str:
        """Name of the file without its ending."""
        return Path(self.path).stem

    @property
    def total(self) -> int:
        """Number of points of the file."""
        return self.count if self.left_out is None else self.left_out.total

    def open(self) -> PointCloudData:
        """Return the points that are not left out, with codes as labels."""
        return self._cloud(**self.shelf.get(self.name))

    def _cloud(self, **arrays: np.ndarray) -> PointCloudData:
        """Return points as they are kept, or some of them, by the names of their arrays."""
        labels = arrays.pop("labels")
        columns = [name for name in arrays if name.startswith(_FURTHER)]
        further = {name.removeprefix(_FURTHER): arrays.pop(name) for name in columns}
        values: dict[str, Any] = {**arrays, **self.place, "ground_scale": self.ground_scale}
        cloud = PointCloudData(**values, further=further or None)
        # Codes of a byte, which the constructor would make eight.
        cloud.labels = labels
        return cloud

    def around(self, cloud: PointCloudData, tiles: Sequence[TileFile]) -> tuple[list[Around], Copies]:
        """Return the points of other tiles, among all `tiles`, that are near this one, and copies among its own.

        Points that stand in several tiles are returned once, and not at all where they are among its own, `cloud`.
        """
        margin = MARGIN / self.unit
        low, high = self.bounds[0] - margin, self.bounds[1] + margin
        near_tiles = [
            (number, tile)
            for number, tile in enumerate(tiles)
            if tile is self or not ((tile.bounds[1] < low).any() or (tile.bounds[0] > high).any())
        ]
        own_number = next(number for number, tile in near_tiles if tile is self)
        before = _Before(own_number, _on_map(cloud), {number: tile.bounds for number, tile in near_tiles})
        found = []
        for number, tile in near_tiles:
            if tile is self:
                continue
            arrays = tile.shelf.get(tile.name)
            rows = _within(PlacedPoints(arrays["points"], np.ones(3), tile.offset), low, high)
            places = arrays["points"][rows] + tile.offset
            rows = rows[before.are_new(number, places, rows)]
            if len(rows):
                fields = {name: values[rows] for name, values in arrays.items()}
                found.append(Around(number, rows, tile._cloud(**fields)))
        return found, before.copies()

    @property
    def offset(self) -> np.ndarray:
        """Vector that is added to the points that are kept, (3,)."""
        offset = self.place["offset"]
        return np.zeros(3) if offset is None else offset

    def labels_of(self, answer: Answer, keeps: bool) -> np.ndarray:
        """Return the classes to write, (points,) int64, by the answer about all points; -1 keeps that of the file.

        Args:
            answer: The answer.
            keeps: True to keep all classes that the file has but 0 and 1.
        """
        labels = answer.classes.astype(np.int64)
        if self.label_codes == CURRENT:
            # Older formats have one class for all noise (LAS 1.4 R15, tables 9 and 17).
            labels[(labels == NOISE) & (answer.heights > 0)] = HIGH_NOISE
        if self.left_out is not None:
            labels[self.left_out.rows[self.left_out.is_withheld]] = -1
        if keeps:
            labels[np.unpackbits(self.has_class, count=len(labels)).astype(bool)] = -1
        return labels


class _Before:
    """Points that were seen before: those of the tile `number` itself, `own`, and those of its neighbors so far.

    Only points within the bounds (2, 2) of two tiles can be the same, by the numbers of tiles.
    """

    def __init__(self, number: int, own: PlacedPoints, bounds: Mapping[int, np.ndarray]):
        self.number = number
        self._own = own
        self._bounds = {other: box + [[-_SAME_PLACE], [_SAME_PLACE]] for other, box in bounds.items()}
        self._keys = np.zeros(0, np.uint64)
        self._rows: list[np.ndarray] = []
        self._tiles: list[np.ndarray] = []
        self._originals: list[np.ndarray] = []

    def are_new(self, tile: int, places: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return which points (points, 3) of a neighbor were not seen, (points,) bool, and find copies of them."""
        is_new = np.ones(len(places), bool)
        shared = np.zeros(len(places), bool)
        for other, (low, high) in self._bounds.items():
            if other != tile:
                shared |= ((places[:, :2] >= low) & (places[:, :2] <= high)).all(axis=1)
        some = np.flatnonzero(shared)
        if not len(some):
            return is_new
        keys = _keys_of(places[some])
        near = _within(self._own, *self._bounds[tile])
        own_keys = _keys_of(self._own[near])
        is_new[some] = ~np.isin(keys, own_keys) & ~np.isin(keys, self._keys)
        if tile < self.number:
            order = np.argsort(keys)
            at = np.searchsorted(keys, own_keys, sorter=order).clip(max=len(keys) - 1)
            is_copy = keys[order[at]] == own_keys
            self._rows.append(near[is_copy])
            self._tiles.append(np.full(is_copy.sum(), tile))
            self._originals.append(rows[some[order[at[is_copy]]]])
        self._keys = np.concatenate([self._keys, keys[is_new[some]]])
        return is_new

    def copies(self) -> Copies:
        """Return the copies among the tile's own points, each with the first tile that has it."""
        if not self._rows:
            return Copies.none()
        rows, first = np.unique(np.concatenate(self._rows), return_index=True)
        return Copies(rows, np.concatenate(self._tiles)[first], np.concatenate(self._originals)[first])


def _within(points: PlacedPoints, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the numbers of the points from `low` to `high`, (2,) each."""
    found = [np.zeros(0, np.int64)]
    for block in blocks(len(points)):
        flat = points[block][:, :2]
        found.append(block.start + np.flatnonzero(((flat >= low) & (flat <= high)).all(axis=1)))
    return np.concatenate(found)


def _keys_of(places: np.ndarray) -> np.ndarray:
    """Return a number for each place (points, 3), (points,) uint64, which others have with hardly any probability."""
    # Offsets of two files may differ, and so the last digits of their sums.
    steps = np.round(places / _SAME_PLACE).astype(np.int64).astype(np.uint64)
    mixed = np.zeros(len(steps), np.uint64)
    for axis in range(3):
        mixed = (mixed ^ steps[:, axis]) * np.uint64(0x9E3779B97F4A7C15)
        mixed ^= mixed >> np.uint64(29)
    return mixed


def look_at_tiles(
    pipe: InventorySteps,
    paths: Sequence[str],
    unit: str | None,
    shelf: Shelf,
    progress: Callable[[str], None],
) -> list[TileFile]:
    """Read each tile, once: its points are kept on the `shelf`.

    Tiles without points, and small ones far from all others, are left out with a warning.

    Raises:
        PointCloudFileError: A file cannot be read, tiles have different units, or none has points.
    """
    tiles: list[TileFile] = []
    empty: dict[str, str] = {}
    for number, path in enumerate(paths):
        if len(paths) > 1:
            progress(f"reading {path}")
        with file_errors(path):
            try:
                whole = pipe.open(path, unit)
            except NoPointsError:
                empty[path] = _NO_POINTS
                continue
            check_projected(whole)
            if whole.meters_per_unit is None and tiles:
                # What names no system has that of the others; see `system_of_place`.
                whole.ground_scale = tiles[0].ground_scale
            length = whole.meters_per_unit or 1.0
            height = whole.meters_per_height or length
            scale = whole.ground_scale or 1.0
            if tiles:
                first = tiles[0]
                _check_same_unit(length, height, first.unit / (first.ground_scale or 1.0), first)
        has_class = np.zeros(len(whole), bool)
        if whole.labels is not None:
            has_class = ~np.isin(whole.labels, [*UNCLASSIFIED])
        has_class = np.packbits(has_class)
        cloud, left_out = split_left_out(whole, pipe.feature_extractor.split_far, Path(path).stem)
        del whole
        if cloud is None:
            empty[path] = "has only noise and withheld points"
            continue
        bounds = bounds_of_all(_on_map(cloud))[:, :2]
        cloud.labels = codes_of_file(cloud)
        name = f"points{number}"
        shelf.put(name, _arrays_of(cloud, pipe.feature_extractor.columns))
        place = {own: getattr(cloud, own) for own in _PLACE}
        facts = (path, len(cloud), length * scale, height, bounds, has_class, cloud.label_codes, left_out)
        tiles.append(TileFile(*facts, name, shelf, place, cloud.ground_scale))
    _tell_of_empty(paths, empty)
    return _of_one_scale(_without_far(tiles))


def _of_one_scale(tiles: list[TileFile]) -> list[TileFile]:
    """Return the tiles with one scale of the map, so that they lie beside each other in meters on the ground, too.

    Raises:
        PointCloudFileError: The scale differs by more than some percent over the place.
    """
    scales = [tile.ground_scale or 1.0 for tile in tiles]
    low, high = np.argmin(scales), np.argmax(scales)
    if scales[high] > scales[low] * (1 + _SAME_SCALE):
        raise PointCloudFileError(
            f"{tiles[low].path}: a meter on the map is {scales[low]:.3g} m on the ground, and {scales[high]:.3g} m in "
            f"{tiles[high].path}; run parts of the site separately, or {REPROJECT}"
        )
    if scales[low] == scales[high]:
        return tiles
    middle = (scales[low] + scales[high]) / 2
    return [
        replace(tile, unit=tile.unit / scale * middle, ground_scale=middle)
        for tile, scale in zip(tiles, scales, strict=True)
    ]


def _check_same_unit(length: float, height: float, length_of_first: float, first: TileFile) -> None:
    for what, own, of_first in (("unit", length, length_of_first), ("unit of heights", height, first.height)):
        if abs(own / of_first - 1) > _SAME_UNIT:
            raise PointCloudError(
                f"a {what} of {own:g} m, and {first.path} has one of {of_first:g} m; use the same for all tiles of "
                "a site"
            )


def _on_map(cloud: PointCloudData) -> PlacedPoints:
    """Return the points on the map, in the unit of the file."""
    return PlacedPoints(cloud.points, np.ones(3), _offset_of(cloud))


def _offset_of(cloud: PointCloudData) -> np.ndarray:
    return np.zeros(3) if cloud.offset is None else cloud.offset


def _arrays_of(cloud: PointCloudData, columns: Sequence[str]) -> dict[str, np.ndarray]:
    """Return what the model reads of points, by names, and their labels."""
    arrays = {name: values for name in _ARRAYS if (values := getattr(cloud, name)) is not None}
    return arrays | {f"{_FURTHER}{name}": (cloud.further or {})[name] for name in columns}


def _without_far(tiles: Sequence[TileFile]) -> list[TileFile]:
    """Return the tiles of a place without small isolated ones, and warn about those."""
    if len(tiles) == 1:
        return list(tiles)
    boxes = np.array([tile.bounds * tile.unit for tile in tiles])
    is_far, gaps = far_groups(np.array([tile.count for tile in tiles]), boxes[:, 0], boxes[:, 1])
    for number in np.flatnonzero(is_far).tolist():
        tile = tiles[number]
        away = distance_in_words(gaps[number])
        text = f"{tile.path}: its {tile.count:,} points lie {away} away from all other tiles; skipped"
        warnings.warn(printable(text), stacklevel=3)
    return [tile for tile, far in zip(tiles, is_far, strict=True) if not far]


def with_points(paths: Sequence[str]) -> list[str]:
    """Return the files that have points, and warn about the others.

    Raises:
        PointCloudFileError: None has any.
    """
    empty = {path: _NO_POINTS for path in paths if has_no_points(path)}
    return _tell_of_empty(paths, empty)


def _tell_of_empty(paths: Sequence[str], empty: Mapping[str, str]) -> list[str]:
    if empty and len(empty) == len(paths):
        first, why = next(iter(empty.items()))
        names = first if len(empty) == 1 else f"{first} and {len(empty) - 1} more"
        raise PointCloudFileError(f"{names}: {why}; pass a tile with points")
    for path, why in empty.items():
        warnings.warn(printable(f"{path}: {why}; skipped"), stacklevel=4)
    return [path for path in paths if path not in empty]


def system_of_place(paths: Sequence[str]) -> str | None:
    """Return the system of x and y of tiles of one place, that of the first which names one.

    Raises:
        PointCloudFileError: Two tiles have different systems.
    """
    known: list[tuple[str, CoordinateSystem]] = []
    for path in paths:
        own = system_of(path)
        for other, system in known:
            if own.differs_from(system):
                raise PointCloudFileError(
                    f"{path}: its coordinate system is {own}, but {other} has {system}; reproject one, or run the "
                    "tiles of each system separately"
                )
        if str(own) and all(own != system for _, system in known):
            known.append((path, own))
    without = [path for path in paths if not str(system_of(path))]
    if known and without:
        text = f"{listed(without, 3)}: no coordinate system; assuming that of {known[0][0]}, {known[0][1]}"
        warnings.warn(printable(text), stacklevel=3)
    return next((system.flat for _, system in known if system.flat is not None), None)
