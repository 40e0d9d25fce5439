"""The page on which a person labels suggested points of a scan, one by one; it needs no network and no server."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial import KDTree

from hf_any3d.visualization.html_pages import html_page
from hf_any3d.visualization.viewer import CloudView, color_range, hex_color, label_colors, viewer_data

AROUND = 15.0
"""Meters around a point that are shown of a place, seen from above."""
MOST_POINTS = 400_000
"""Points of a page at most, as many as a laptop draws while it turns: only those around one point are drawn."""
# Points that are this share of the surroundings away are kept with half the probability of those next to the point.
_DENSE_SHARE = 0.3


@dataclass(frozen=True)
class AskedPoint:
    """A point whose class is asked for.

    Attributes:
        row: Number of the point in its file.
        place: Its coordinates as the file has them, in words.
        guess: Class that the model gives it.
        score: Probability of that class.
    """

    row: int
    place: tuple[str, str, str]
    guess: str
    score: float


def labeling_page(
    view: CloudView,
    asked: Sequence[AskedPoint],
    names: Sequence[str],
    *,
    tile: str,
    around: float = AROUND,
    palette: np.ndarray | None = None,
    value_name: str = "height above ground",
    most_points: int = MOST_POINTS,
    seed: int = 0,
) -> str:
    """Return the text of a page that flies from point to point and asks for the class of each.

    The person answers by buttons, or by the keys 1 to 9, space to skip and backspace to go back, and saves a table
    with the columns tile, row, x, y, z and class, which `hf-any3d train --from` reads. Of a large cloud only points
    near those that are asked for are on the page, and fewer of them the farther they are.

    Args:
        view: The cloud, z up: `points` (points, 3), and what colors them; `labels` are answers of the model.
        asked: The points to ask for, in order; their rows count the points of `view`.
        names: Names of the classes.
        tile: Name of the file, which is saved with the answers.
        around: How far the cloud is shown around each point, in the unit of its coordinates.
        palette: (names, 3) colors of the classes in [0, 1]; None for those of `label_colors`.
        value_name: What the values of the view are.
        most_points: Points of the page at most, besides those asked for.
        seed: Of the points that are left out.
    """
    rows = np.array([point.row for point in asked])
    points = np.asarray(view.points, dtype=np.float64)
    kept = _kept(points, rows, around, most_points, seed)
    # Row of the file -> place on the page
    at = np.searchsorted(kept, rows)
    shown = CloudView(
        points[kept],
        colors=None if view.colors is None else view.colors[kept],
        labels=None if view.labels is None else view.labels[kept],
        values=None if view.values is None else view.values[kept].clip(*color_range(view.values[kept])),
    )
    colors = label_colors(len(names)) if palette is None else palette
    title = f"Label {tile}"
    data = viewer_data(
        [shown],
        title=title,
        note="Which class is the point in the ring? Drag to turn.",
        names=names,
        label_name="model prediction",
        value_name=value_name,
        up_axis="z",
        palette=colors,
        most_points=len(kept),
    )
    # Of a file without colors of its own, things stand out by their heights.
    order = {"colors": 0, "values": 1, "labels": 2, "height": 3}
    data["colorings"].sort(key=lambda coloring: order[coloring["kind"]])
    # The viewer scales the cloud by the ball around it.
    center = (shown.points.min(axis=0) + shown.points.max(axis=0)) / 2
    radius = max(float(np.linalg.norm(shown.points - center, axis=1).max()), float(np.finfo(np.float32).tiny))
    data["ask"] = {
        "tile": tile,
        "file": f"{tile.rsplit('.', 1)[0]}_answers.csv",
        "reach": around / radius,
        "classes": [{"name": name, "color": hex_color(color)} for name, color in zip(names, colors, strict=True)],
        # For classes that the person adds
        "colors": [hex_color(color) for color in label_colors(len(names) + 12)],
        "points": [
            {
                "at": int(place),
                "row": point.row,
                "place": list(point.place),
                "guess": point.guess,
                "score": round(float(point.score), 3),
            }
            for place, point in zip(at, asked, strict=True)
        ],
    }
    return html_page("labeling.html", folder=Path(__file__).with_name("templates"), title=title, data=data)


def _kept(points: np.ndarray, rows: np.ndarray, around: float, most: int, seed: int) -> np.ndarray:
    """Return the sorted numbers of the points that are on the page, those of `rows` among them."""
    # Seen from above, as the page does.
    away, _ = KDTree(points[rows, :2]).query(points[:, :2], distance_upper_bound=around)
    near = np.flatnonzero(np.isfinite(away))
    if len(near) > most:
        weights = 1 / (1 + (away[near] / (_DENSE_SHARE * around)) ** 2)
        # The largest keys of weighted random numbers are a weighted sample without replacement
        # (Efraimidis and Spirakis 2006).
        keys = np.log(np.random.default_rng(seed).random(len(near))) / weights
        near = near[np.argpartition(-keys, most)[:most]]
    return np.union1d(near, rows)
