"""Report of an inventory: figures of the place, accuracy of its ground, and the cells that a person should check.

Tiles are added one by one while they are in memory; only sums of cells are kept.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.checks.left_out_points import left_out_words
from hf_any3d.data.classes.las_classes import FAMILIES
from hf_any3d.data.options import one_of
from hf_any3d.utils.atomic_files import write_json, write_text
from hf_any3d.utils.messages import percent
from hf_any3d_survey.inventory.checkpoints import Checkpoints, error_statistics
from hf_any3d_survey.inventory.place import BUILDING, GROUND, VEGETATION, Copies, Rejected
from hf_any3d_survey.inventory.seen import Doubt, Seen
from hf_any3d_survey.inventory.things import TREE, Thing
from hf_any3d_survey.inventory.tile_files import TileFile
from hf_any3d_survey.local_features.map_index import blocks

ENDINGS = (".html", ".json")
"""Endings of reports."""
CANOPY = 2.0
"""Meters above the ground from which on vegetation is canopy."""
LEAST_CHECKPOINTS = 30
"""Checkpoints that the ASPRS Positional Accuracy Standards, Edition 2 (2023), ask for at least."""
NUM_TO_CHECK = 10
# Fine cells, of which areas are counted: meters at least, spacings of points, and how many there are at most.
_FINE, _SPACINGS, _MOST_FINE = 1.0, 2.0, 1 << 26
# Cells of the map: fine cells along an edge at least, and how many there are at most.
_EDGE, _MOST_CELLS = 20, 5000
_FILLED, _CANOPY, _GUESSED = 1, 2, 4
# Share of a cell that must have points for it to be checked: at the rim, few points decide.
_LEAST_FILLED = 0.25
# Doubt from which on a cell stands out, and what adds so much to it is named among the reasons.
_LEAST_DOUBT, _LEAST_REASON = 0.2, 0.05
# Meters by which ground points scatter that raise the doubt to 1 - 1/e. Chosen with one place left out, of 0.05 to 1:
# the AUC for cells that are wrong is then 0.94 on the mean of seven places; 0.88 without the scatter.
_SCATTER = 1.0
# Meters from the next point beyond which the terrain says nothing about a checkpoint.
_REACH = 10.0


@dataclass(frozen=True)
class About:
    """Origin of an inventory: files, model, settings.

    Attributes:
        files: Paths of the tiles.
        left_out: Paths of files that are no tiles of the place, with the reason.
        model: Name of the model.
        settings: Settings by their names.
        command: The command line; empty for a call in Python.
        coordinate_system: Name of the coordinate system; None where the files have none.
        map_unit_m: Length of a unit of x and y on the ground in meters.
        elevation_unit_m: The same of elevations.
    """

    files: Sequence[str]
    left_out: Mapping[str, str]
    model: str
    settings: Mapping[str, Any]
    command: str
    coordinate_system: str | None
    map_unit_m: float
    elevation_unit_m: float


@dataclass
class _Errors:
    """Errors of the terrain in meters, in the open and under vegetation."""

    in_the_open: list[np.ndarray] = field(default_factory=list)
    vegetated: list[np.ndarray] = field(default_factory=list)

    def content(self) -> dict[str, Any]:
        none = np.zeros(0)
        in_the_open = np.concatenate([none, *self.in_the_open])
        vegetated = np.concatenate([none, *self.vegetated])
        return {
            "non_vegetated": error_statistics(in_the_open),
            "vegetated": error_statistics(vegetated),
            "all": error_statistics(np.concatenate([in_the_open, vegetated])),
        }


class PlaceReport:
    """Figures of a place, gathered tile by tile.

    Args:
        tiles: All tiles of the place.
        checkpoints: Places with known elevations.
    """

    def __init__(self, tiles: Sequence[TileFile], checkpoints: Checkpoints | None = None):
        self._unit = tiles[0].unit
        boxes = np.array([tile.bounds for tile in tiles]) * self._unit
        self._low, self._high = boxes[:, 0].min(axis=0), boxes[:, 1].max(axis=0)
        self._left_out = _left_out_counts(tiles)
        self._reasons = sum((tile.left_out.reasons for tile in tiles if tile.left_out is not None), Counter())
        self._checkpoints = checkpoints
        # (points,) error of the terrain at each checkpoint in meters, and whether it is guessed there
        count = 0 if checkpoints is None else len(checkpoints.points)
        self._checked = np.full(count, np.nan)
        self._guessed = np.zeros(count, bool)
        self._errors = _Errors()
        self._doubts: list[tuple[str, Doubt]] = []
        self._class_counts = np.zeros(256, np.int64)
        self._grid: _Grid | None = None

    def add(self, tile: TileFile, seen: Seen, copies: Copies) -> None:
        """Add a tile; `copies` are its points that an earlier one has, too, and that count once."""
        if self._grid is None:
            self._grid = _Grid(self._low, self._high, seen.spacing)
        is_new = np.ones(seen.count, bool)
        is_new[copies.rows] = False
        self._grid.add(seen, is_new)
        self._class_counts += np.bincount(seen.classes[: seen.count][is_new], minlength=256)
        self._doubts += [(tile.path, doubt) for doubt in seen.doubts]
        is_plant = np.isin(seen.classes, VEGETATION) & (seen.heights >= CANOPY)
        vegetated = seen.terrain.cells_with(seen.points.part(np.flatnonzero(is_plant)))
        above = seen.terrain.held_out_errors(vegetated, seen.bounds)
        # An error is the terrain less what is true, as surveyors have it.
        self._errors.in_the_open.append(-above[0])
        self._errors.vegetated.append(-above[1])
        self._check(seen)

    def correct(self, rejected: Sequence[Rejected]) -> None:
        """Take back roofs that are none, which are known when all tiles are."""
        for part in rejected:
            self._class_counts += part.class_counts
            self._class_counts[BUILDING] -= part.class_counts.sum()
            if self._grid is not None:
                self._grid.correct(part)

    def _check(self, seen: Seen) -> None:
        """Measure the error of the terrain at the checkpoints of a tile."""
        if self._checkpoints is None or self._grid is None:
            return
        points = self._checkpoints.points * [self._unit, self._unit, seen.factor[2]]
        low, high = seen.bounds[:, :2]
        inside = ((points[:, :2] >= low) & (points[:, :2] <= high)).all(axis=1) & np.isnan(self._checked)
        rows = np.flatnonzero(inside)
        rows = rows[self._grid.has_points_near(points[rows], _REACH)]
        self._checked[rows] = -seen.terrain.heights_above(points[rows])
        self._guessed[rows] = seen.terrain.guessed_at(points[rows])

    def content(self, things: Sequence[Thing], about: About, doubts: Sequence[Doubt] = ()) -> dict[str, Any]:
        """Return the report as plain values; lengths are in meters, and x and y are map coordinates.

        Args:
            things: All things of the place.
            about: How it was made.
            doubts: About the place as a whole.
        """
        assert self._grid is not None, "a place has a tile"
        area = self._grid.area
        cells = self._grid.rows(things, self._unit)
        ground = int(self._class_counts[GROUND])
        noise = int(self._class_counts[list(FAMILIES["noise"])].sum())
        total = int(self._class_counts.sum())
        left_out = self._left_out
        return {
            "version": _versions(),
            **asdict(about),
            "left_out": [{"file": name, "reason": reason} for name, reason in about.left_out.items()],
            "points": total + sum(left_out.values()),
            "noise_points": noise + left_out["noise"],
            "withheld_points": left_out["withheld"],
            "left_out_points": left_out_words(self._reasons, total + sum(left_out.values())),
            "far_points": left_out["far"],
            "ground_points": ground,
            "area_ha": round(area / 1e4, 4),
            "points_per_m2": round((total - noise) / area, 2),
            "ground_points_per_m2": round(ground / area, 3),
            "ground_guessed_share": round(self._grid.share(_GUESSED), 4),
            "ground_cross_check": self._errors.content(),
            "checkpoints": self._checkpoint_content(),
            "least_checkpoints": LEAST_CHECKPOINTS,
            "trees": self._tree_content(things, area),
            "buildings": _building_content(things),
            "doubts": [
                {"file": file, "name": doubt.name, "text": doubt.text}
                for file, doubt in [*self._doubts, *((None, doubt) for doubt in doubts)]
            ],
            "cell_width_m": self._grid.cell,
            "check_by_hand": to_check(cells),
            "cells": cells,
        }

    def _checkpoint_content(self) -> dict[str, Any] | None:
        if self._checkpoints is None:
            return None
        is_checked = ~np.isnan(self._checked)
        vegetated = self._checkpoints.vegetated
        errors = _Errors([self._checked[is_checked & ~vegetated]], [self._checked[is_checked & vegetated]])
        rows = []
        for at, (x, y, z) in enumerate(self._checkpoints.points.tolist()):
            row = {"x": x, "y": y, "z": z, "vegetated": bool(vegetated[at]), "error_m": None, "ground_guessed": None}
            if is_checked[at]:
                row |= {"error_m": round(float(self._checked[at]), 3), "ground_guessed": bool(self._guessed[at])}
            rows.append(row)
        return {**errors.content(), "outside": int((~is_checked).sum()), "rows": rows}

    def _tree_content(self, things: Sequence[Thing], area: float) -> dict[str, Any]:
        assert self._grid is not None
        trees = [thing for thing in things if thing.label == TREE]
        heights = np.array([tree.height for tree in trees])
        found = {
            "trees": len(trees),
            "trees_per_ha": round(len(trees) / area * 1e4, 1),
            "crown_cover_share": round(self._grid.share(_CANOPY), 4),
            "guessed_ground_trees": sum(tree.ground_guessed for tree in trees),
            "height_m": None,
            "crown_diameter_m": None,
        }
        if trees:
            width = _bin_width(float(heights.max()))
            counts = np.bincount((heights / width).astype(int))
            found["height_m"] = {
                **_distribution(heights),
                "histogram": {"bin_width": width, "trees": counts.tolist()},
            }
            found["crown_diameter_m"] = _distribution(np.array([tree.crown_diameter for tree in trees]))
        return found


def _left_out_counts(tiles: Sequence[TileFile]) -> dict[str, int]:
    """Return how many points were left out before the ground was found, by the reason."""
    found = {"noise": 0, "withheld": 0, "far": 0}
    for tile in tiles:
        if tile.left_out is not None:
            withheld = int(tile.left_out.is_withheld.sum())
            found["withheld"] += withheld
            found["noise"] += len(tile.left_out.rows) - withheld
            if tile.left_out.far is not None:
                found["far"] += int(tile.left_out.far.is_far.sum())
    return found


class _Grid:
    """Sums of the points in cells of a place.

    Areas are counted by fine cells that have points; the cells of the map are whole numbers of these.

    Args:
        low: (2,) lowest place in meters.
        high: (2,) highest place.
        spacing: Usual distance of neighboring points.
    """

    def __init__(self, low: np.ndarray, high: np.ndarray, spacing: float):
        fine = _FINE
        while fine < _SPACINGS * spacing or np.prod((high - low) / fine + 2 * _EDGE) > _MOST_FINE:
            fine *= 2
        self.fine = fine
        self._edge = _EDGE
        while np.prod((high - low) / (fine * self._edge) + 2) > _MOST_CELLS:
            self._edge *= 2
        self.cell = fine * self._edge
        # At multiples of a cell, so that cells of neighboring places are those of one map
        self._corner = np.floor(low / self.cell) * self.cell
        shape = np.floor((high - self._corner) / self.cell).astype(int) + 1
        self._shape = (int(shape[0]), int(shape[1]))
        self._flags = np.zeros(shape * self._edge, np.uint8)
        self._sums = {name: np.zeros(np.prod(shape)) for name in ("points", "ground", "squares", "noise", "scores")}
        self._canopy = np.zeros(np.prod(shape), np.float32)

    @property
    def area(self) -> float:
        """Square meters of the fine cells that have points."""
        return float(np.count_nonzero(self._flags & _FILLED)) * self.fine**2

    def share(self, flag: int) -> float:
        """Return which share of the fine cells with points has a flag."""
        return float(np.count_nonzero(self._flags & flag)) / max(1, np.count_nonzero(self._flags & _FILLED))

    def add(self, seen: Seen, is_new: np.ndarray) -> None:
        """Add the own points of a tile that are new (points,)."""
        size = len(self._canopy)
        for block in blocks(seen.count):
            rows = block.start + np.flatnonzero(is_new[block])
            column, row = self._places(seen.points[rows]).T
            cells = column // self._edge * self._shape[1] + row // self._edge
            classes = seen.classes[rows]
            heights = seen.heights[rows]
            is_noise = np.isin(classes, FAMILIES["noise"])
            self._sums["noise"] += np.bincount(cells, is_noise, size)
            self._sums["points"] += np.bincount(cells, ~is_noise, size)
            self._sums["ground"] += np.bincount(cells, classes == GROUND, size)
            squares = np.where(classes == GROUND, heights, 0).astype(np.float64) ** 2
            self._sums["squares"] += np.bincount(cells, squares, size)
            self._sums["scores"] += np.bincount(cells, np.where(is_noise, 0, seen.scores[rows]), size)
            is_canopy = np.isin(classes, VEGETATION) & (heights >= CANOPY)
            np.maximum.at(self._canopy, cells[is_canopy], heights[is_canopy])
            self._flags[column[~is_noise], row[~is_noise]] |= _FILLED
            self._flags[column[is_canopy], row[is_canopy]] |= _CANOPY
        self._add_guessed(seen)

    def correct(self, rejected: Rejected) -> None:
        """Add ground and canopy that were taken for roofs."""
        column, row = self._places(rejected.middles).T
        cells = column // self._edge * self._shape[1] + row // self._edge
        self._sums["ground"] += np.bincount(cells, rejected.ground, len(self._canopy))
        self._sums["squares"] += np.bincount(cells, rejected.squares, len(self._canopy))
        is_canopy = rejected.canopy >= CANOPY
        np.maximum.at(self._canopy, cells[is_canopy], rejected.canopy[is_canopy])
        self._flags[column[is_canopy], row[is_canopy]] |= _CANOPY

    def _add_guessed(self, seen: Seen) -> None:
        low, high = self._places(seen.bounds)
        column, row = np.nonzero(self._flags[low[0] : high[0] + 1, low[1] : high[1] + 1] & _FILLED)
        column, row = column + low[0], row + low[1]
        is_guessed = seen.terrain.guessed_at(self._corner + (np.stack([column, row], axis=1) + 0.5) * self.fine)
        self._flags[column[is_guessed], row[is_guessed]] |= _GUESSED

    def _places(self, points: np.ndarray) -> np.ndarray:
        """Return column and row (points, 2) of fine cells."""
        places = np.floor((points[:, :2] - self._corner) / self.fine).astype(np.int64)
        return places.clip(0, np.array(self._flags.shape) - 1)

    def has_points_near(self, points: np.ndarray, reach: float) -> np.ndarray:
        """Return which places (points, 2 or more) have points of the scan within some meters, (points,) bool."""
        steps = int(np.ceil(reach / self.fine))
        found = np.zeros(len(points), bool)
        for at, (column, row) in enumerate(self._places(points)):
            window = np.s_[max(0, column - steps) : column + steps + 1, max(0, row - steps) : row + steps + 1]
            found[at] = (self._flags[window] & _FILLED).any()
        return found

    def rows(self, things: Sequence[Thing], unit: float) -> list[dict[str, Any]]:
        """Return the cells that have points, from the one with the highest doubt down; `unit` is that of the map."""
        filled = self._counts(_FILLED)
        trees = [thing for thing in things if thing.label == TREE]
        places = np.array([[tree.x, tree.y] for tree in trees]).reshape(-1, 2) * unit
        column, row = (self._places(places) // self._edge).T
        tree_cells = column * self._shape[1] + row
        num_trees = np.bincount(tree_cells, minlength=len(filled))
        tree_scores = np.bincount(tree_cells, [tree.score for tree in trees], len(filled))
        guessed, canopy = self._counts(_GUESSED), self._counts(_CANOPY)
        found = []
        for at in np.flatnonzero(filled):
            x, y = (self._corner + (np.array(divmod(int(at), self._shape[1])) + 0.5) * self.cell) / unit
            points, noise = self._sums["points"][at], self._sums["noise"][at]
            area = filled[at] * self.fine**2
            scatter = np.sqrt(self._sums["squares"][at] / max(1.0, self._sums["ground"][at]))
            parts = {
                "ground_scatter_m": float(scatter),
                "ground_guessed_share": float(guessed[at] / filled[at]),
                "class_score_mean": float(self._sums["scores"][at] / points),
                "noise_share": float(noise / (points + noise)),
            }
            found.append(
                {
                    "x": round(float(x), 2),
                    "y": round(float(y), 2),
                    "filled_share": round(float(filled[at]) / self._edge**2, 3),
                    "points": int(points),
                    "points_per_m2": round(float(points / area), 2),
                    "ground_points_per_m2": round(float(self._sums["ground"][at] / area), 3),
                    **{name: round(value, 3) for name, value in parts.items()},
                    "crown_cover_share": round(float(canopy[at] / filled[at]), 3),
                    "canopy_height_m": round(float(self._canopy[at]), 1),
                    "trees": int(num_trees[at]),
                    "tree_score_mean": round(float(tree_scores[at] / num_trees[at]), 3) if num_trees[at] else None,
                    "doubt": round(doubt_of(**parts), 3),
                    "reasons": _reasons(**parts),
                }
            )
        return sorted(found, key=lambda row: -row["doubt"])

    def _counts(self, flag: int) -> np.ndarray:
        """Return how many fine cells of each cell have a flag, (cells,)."""
        shape = (self._shape[0], self._edge, self._shape[1], self._edge)
        return ((self._flags & flag) > 0).reshape(shape).sum(axis=(1, 3)).ravel()


def doubt_of(
    ground_scatter_m: float, ground_guessed_share: float, class_score_mean: float, noise_share: float
) -> float:
    """Return the doubt about a cell, 0 to 1.

    It rises with the share of its area that has a guessed ground, the share of noise, the mean probability that a
    class is wrong, and the root mean square of the heights of ground points above the terrain.
    """
    is_sure = (1 - ground_guessed_share) * class_score_mean * (1 - noise_share)
    return 1 - is_sure * float(np.exp(-ground_scatter_m / _SCATTER))


def _reasons(
    ground_scatter_m: float, ground_guessed_share: float, class_score_mean: float, noise_share: float
) -> list[str]:
    """Return why a cell is in doubt, the main reason first."""
    reasons = {
        f"ground points scatter by {ground_scatter_m:.2f} m": 1 - np.exp(-ground_scatter_m / _SCATTER),
        f"ground guessed on {percent(ground_guessed_share, 1)} %": ground_guessed_share,
        f"classes unsure (mean probability {class_score_mean:.2f})": 1 - class_score_mean,
        f"{percent(noise_share, 1)} % noise": noise_share,
    }
    weights = {text: weight for text, weight in reasons.items() if weight >= _LEAST_REASON}
    return sorted(weights, key=lambda text: -weights[text])


def to_check(cells: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the cells that a person should check first: those of the highest doubt that are not at the rim."""
    inside = [cell for cell in cells if cell["filled_share"] >= _LEAST_FILLED and cell["doubt"] >= _LEAST_DOUBT]
    return inside[:NUM_TO_CHECK]


def _distribution(values: np.ndarray) -> dict[str, float]:
    low, median, high = np.quantile(values, (0.05, 0.5, 0.95)).tolist()
    found = {"mean": values.mean(), "median": median, "percentile_5": low, "percentile_95": high, "max": values.max()}
    return {name: round(float(value), 2) for name, value in found.items()}


def _bin_width(highest: float) -> float:
    """Return a round width of bins of which there are 25 at most."""
    return next(width for width in (1.0, 2.0, 5.0, 10.0, 50.0) if highest / width <= 25 or width == 50)


def _building_content(things: Sequence[Thing]) -> dict[str, Any]:
    buildings = [thing for thing in things if thing.label != TREE]
    highest = max((building.height for building in buildings), default=None)
    return {
        "buildings": len(buildings),
        "area_m2": round(sum(building.area for building in buildings), 1),
        "highest_m": None if highest is None else round(highest, 2),
    }


def _versions() -> dict[str, str]:
    from hf_any3d.version import __version__ as core
    from hf_any3d_survey.version import __version__ as survey

    return {"hf_any3d": core, "hf_any3d_survey": survey}


def check_report(path: str | os.PathLike) -> None:
    """Raise an error if a report cannot have this ending."""
    one_of("ending of the report", Path(path).suffix.lower(), ENDINGS)


def write_report(path: str | os.PathLike, content: Mapping[str, Any]) -> None:
    """Write the content of a report: a page (.html) or plain values (.json)."""
    if Path(path).suffix.lower() == ".json":
        write_json(path, content)
        return
    from hf_any3d_survey.visualization.place_report import report_page

    write_text(path, report_page(content))
