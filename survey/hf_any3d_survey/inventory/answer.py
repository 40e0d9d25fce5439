"""Answers of an inventory: its things with number, class, place and height."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np

from hf_any3d.data.files import PointCloudData
from hf_any3d.tasks.answers import Answers, Row, View
from hf_any3d.utils.messages import counted
from hf_any3d.visualization.viewer import CloudView, label_colors
from hf_any3d_survey.inventory.lengths import METERS
from hf_any3d_survey.inventory.tables import columns_of, row_of
from hf_any3d_survey.inventory.things import Thing

_NAMED = 20


class InventoryAnswers(Answers):
    """Things of a place; rows have a list of them, and points of each class."""

    column = "things"
    is_called_whole = True

    def value(self, result: dict[str, Any]) -> list[dict[str, Any]]:
        """Return number, class, place and sizes of each thing."""
        return rows_of(result["things"])

    def row(self, result: dict[str, Any]) -> dict[str, Any]:
        """Return the number of points, and the things."""
        return {"points": len(result["numbers"]), self.column: self.value(result)}

    def line(self, row: Row) -> str:
        """Return how many things of each class there are, and the highest of each."""
        return words_of(row[self.column]) or f"{row['points']:,} points, but no trees or buildings"

    def caption(self, row: Row) -> str:
        """Return how many things of each class there are."""
        return words_of(row[self.column])

    @staticmethod
    def cells(row: Row) -> Iterable[Row]:
        """Return a row for each thing."""
        return row.get("things") or ()

    @staticmethod
    def feature() -> Any:
        """Return the type of a list of things."""
        from datasets import List, Value

        kinds = {"number": "int32", "class": "string", "code": "int32", "points": "int64", "ground_guessed": "bool"}
        return List({name: Value(kinds.get(name, "float64")) for name in columns_of(METERS)})

    def view(self, cloud: PointCloudData, result: dict[str, Any]) -> View:
        """Return the cloud in a color for each thing, and the highest things in words."""
        del cloud
        numbers = result["numbers"]
        colors = np.vstack([[0.75, 0.75, 0.75], label_colors(max(1, int(numbers.max(initial=0))))])
        highest = sorted(result["things"], key=lambda thing: -thing.height)[:_NAMED]
        note = "; ".join(f"{thing.label} {thing.number}: {thing.height:.1f} m" for thing in highest)
        points = result["points"]
        if "far" in result:
            # A page that has them shows nothing else.
            points = points[~result["far"]]
            numbers = numbers[~result["far"]]
        points = points - points.mean(axis=0)
        return View([CloudView(points.astype(np.float32), colors[numbers])], note=note)


def rows_of(things: Iterable[Thing]) -> list[dict[str, Any]]:
    """Return a row of plain values for each thing, in meters whatever the unit of the scan: names are fixed."""
    return [row_of(thing) for thing in things]


def words_of(things: Iterable[Row]) -> str:
    """Return how many things of each class there are, and how high the highest is; empty without any."""
    counts: Counter[str] = Counter()
    highest: dict[str, float] = {}
    for thing in things:
        name = thing["class"]
        counts[name] += 1
        highest[name] = max(highest.get(name, 0.0), thing["height_m"])
    return ", ".join(f"{counted(number, name)} up to {highest[name]:.1f} m" for name, number in counts.items())
