"""The viewer: point clouds on one HTML page that needs no network, prepared for `templates/viewer.html`."""

from __future__ import annotations

import base64
import colorsys
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.utils.atomic_files import write_text
from hf_any3d.visualization.html_pages import html_page

# Chosen one after another, each as far as possible from all before it in OKLab, among colors that are readable on
# white and on dark gray. The closest two of the first 24 differ three times as much as with evenly spaced hues.
_DISTINCT = """
2f6fde e8862a 2c9a4b d63a3a 9257c9 17b3b8 ff80ff 87d700 685838 9f0068 ef40af 978fff d7afbf a7808f 5830c7 00608f
9f7000 007800 68c7ff 97af58 488087 a72800 ff7897 48d7af 975870 00bf10 c71097 0097ef dfb760 8f00af cf60f7 ff5040
70488f 97a7c7 7870ff cf87cf 7080bf 107060 709780 c75887 bfa7ff 9f8f00 0050df ff9778 af70c7 c77048 b79778 607838
bf1050 10bf80 a7bf9f 6068a7 6848e7 c740cf 874050 40afff 0897af af5020 f73070 ff60cf 9f388f 70a718 d77887 f797d7
""".split()


# Corners of a box that an edge joins, as `box_corners` orders them.
_EDGES = ((0, 1), (1, 2), (2, 3), (3, 0), (4, 5), (5, 6), (6, 7), (7, 4), (0, 4), (1, 5), (2, 6), (3, 7))


def box_edges(corners: np.ndarray, count: int = 100) -> np.ndarray:
    """Return points (12 * count, 3) along the edges of a box, as `BoxView` has its corners, to draw it in a cloud."""
    corners = np.asarray(corners, dtype=np.float64)
    steps = np.linspace(0, 1, count)[:, None]
    return np.concatenate([corners[start] + steps * (corners[end] - corners[start]) for start, end in _EDGES])


def label_colors(num_labels: int) -> np.ndarray:
    """Return a color for each label; the first 64 are clearly distinct on light and dark backgrounds.

    Returns:
        (num_labels, 3) float32 in [0, 1]; the first colors do not depend on the number.
    """
    colors = [[int(text[start : start + 2], 16) / 255 for start in (0, 2, 4)] for text in _DISTINCT[:num_labels]]
    # Steps of the golden ratio never repeat a hue; two levels of brightness separate similar ones.
    colors += [
        list(colorsys.hsv_to_rgb((0.6 + 0.61803399 * number) % 1, 0.75, 0.9 if number % 2 else 0.65))
        for number in range(len(_DISTINCT), num_labels)
    ]
    return np.array(colors, dtype=np.float32).reshape(num_labels, 3)


def colors_of(config: Any, num_labels: int) -> np.ndarray:
    """Return the colors of a model's labels, `(num_labels, 3)` in [0, 1]: those of its config, if it names any."""
    named = getattr(config, "label_colors", None)
    # Colors for another number of labels are those of other classes.
    if not named or len(named) != num_labels:
        return label_colors(num_labels)
    return np.stack([parse_color(text) for text in named])


def parse_color(text: str) -> np.ndarray:
    """Return a color "#rrggbb" as (3,) float32 in [0, 1]."""
    return np.array([int(text[start : start + 2], 16) / 255 for start in (1, 3, 5)], np.float32)


def hex_color(color: Sequence[float]) -> str:
    """Format a color (red, green, blue in [0, 1]) as "#rrggbb"."""
    return "#" + "".join(f"{round(255 * float(channel)):02x}" for channel in color)


MOST_POINTS = 200_000
"""Points of a page at most: more turn slowly, and a random sample looks the same."""
LOWEST_BOX = 0.05
"""Score of the boxes of a page at least: of hundreds of queries, most have lower ones."""


@dataclass
class BoxView:
    """A box around an object: corners (8, 3), four of the bottom, then those above them; the name of its class.

    It is hidden by its score, from 0 to 1; None shows it always.
    """

    corners: np.ndarray
    label: str
    score: float | None = None


@dataclass
class CloudView:
    """A point cloud as the viewer shows it.

    Args:
        points: (points, 3), or (points, 2) for places in a plane, which are moved instead of turned.
        colors: (points, 3) red, green and blue in [0, 1], or None.
        labels: (points,) label numbers from 0, or None.
        values: (points,) numbers, shown from dark (low) to bright (high), or None.
        title: A line below the cloud.
        note: A second line, in gray.
        status: "right" and "wrong" print the note in green and red.
        category: Class number of the whole cloud, by which a grid can be filtered.
        score: Score of the answer about the cloud, by which a grid can be sorted.
        texts: A name for each point, shown under the pointer.
        legend: Names and their colors (red, green, blue in [0, 1]) that explain its own colors, or None.
        color_name: What its own colors stand for, for the list of colorings.
        up_axis: "x", "y" or "z" for a cloud with another axis up than the others; None for that of the page.
        boxes: Boxes in the frame of the points, or None.
    """

    points: np.ndarray
    colors: np.ndarray | None = None
    labels: np.ndarray | None = None
    values: np.ndarray | None = None
    title: str = ""
    note: str = ""
    status: str = ""
    category: int | None = None
    score: float | None = None
    texts: Sequence[str] | None = None
    legend: Mapping[str, Sequence[float]] | None = None
    color_name: str = "own colors"
    up_axis: str | None = None
    boxes: Sequence[BoxView] | None = None


def viewer_page(clouds: Sequence[CloudView], *, title: str = "point clouds", **settings: Any) -> str:
    """Return the text of a self-contained page that shows clouds next to each other and turns them together.

    Points are colored by label, by their own colors, by value or by height, whichever all clouds have; a list on the
    page switches between them, and a button turns another axis up. A click on a label hides its points, a click on a
    category its clouds. Boxes are drawn by their edges, dashed behind points; a slider hides those with lower scores,
    and a click on a class its boxes. The page follows the dark or light setting of the device and fits phones. All
    texts are escaped. Beyond 200,000 points in all, each cloud is represented by a random sample, and the page states
    how many points are shown.

    Args:
        clouds: The clouds.
        title: Title of the page.
        **settings: Further arguments of `viewer_data`.
    """
    return html_page("viewer.html", title=title, data=viewer_data(clouds, title=title, **settings))


def viewer_data(
    clouds: Sequence[CloudView],
    *,
    title: str = "point clouds",
    note: str = "",
    names: Sequence[str] = (),
    label_name: str = "label",
    value_name: str = "value",
    categories: Sequence[str] = (),
    legend: Mapping[str, Sequence[float]] | None = None,
    columns: int = 6,
    rows_share_frame: bool = False,
    up_axis: str = "y",
    box_names: Sequence[str] = (),
    threshold: float = 0.5,
    palette: np.ndarray | None = None,
    most_points: int = MOST_POINTS,
    given_order: str = "as listed",
) -> dict[str, Any]:
    """Return what the script of the viewer reads.

    Args:
        clouds: The clouds.
        title: Title of the page.
        note: A line beside it.
        names: Names of the labels of points.
        label_name: What the labels are, for the list of colorings.
        value_name: What the values are.
        categories: Names of the categories of clouds.
        legend: Names and their colors (red, green, blue in [0, 1]) that explain the clouds' own colors.
        columns: Clouds per row at most; a phone shows fewer, except with `rows_share_frame`.
        rows_share_frame: Draw the clouds of a row with the same center and scale, to compare them.
        up_axis: "x", "y" or "z".
        box_names: Names of the classes of boxes; the same number has the same color on every page.
        threshold: Score below which boxes are hidden at first.
        palette: (names, 3) colors of the labels in [0, 1]; None for those of `label_colors`.
        most_points: Points beyond which clouds are represented by random samples.
        given_order: Name of the order in which the clouds are given, among those that a list on the page offers.
    """
    total = sum(len(cloud.points) for cloud in clouds)
    shown = prepared_views(clouds, names, most_points)
    count = sum(len(cloud.points) for cloud in shown)
    if count < total:
        drawn = f"{count:,} of {total:,} points, drawn at random"
        note = f"{note} · {drawn}" if note else drawn
    columns = min(columns, len(shown))
    data: dict[str, Any] = {"title": title, "note": note, "columns": columns, "rows": rows_share_frame}
    data["order"] = given_order
    data["panels"], data["points"] = _panels(shown, columns if rows_share_frame else 1, up_axis, box_names)
    if any(cloud.boxes is not None for cloud in shown):
        colors = list(map(hex_color, label_colors(len(box_names))))
        data["boxes"] = {"names": list(box_names), "colors": colors, "edges": _EDGES, "threshold": threshold}
    # Names of one cloud may be those of others in another color.
    if len(shown) == 1 and legend is None:
        legend = shown[0].legend
    data["colorings"] = _colorings(shown, names, label_name, value_name, legend, palette)
    if any(cloud.category is not None for cloud in shown):
        data["classes"] = {"names": list(categories), "colors": list(map(hex_color, label_colors(len(categories))))}
    return data


def write_clouds_page(path: str | os.PathLike, clouds: Sequence[np.ndarray], **arguments: Any) -> Path:
    """Write the page of `clouds_page`, which has the same arguments, to a file, atomically."""
    return write_text(path, clouds_page(clouds, **arguments))


def clouds_page(
    clouds: Sequence[np.ndarray],
    *,
    titles: Sequence[str] | None = None,
    boxes: Sequence[Sequence[BoxView]] | None = None,
    marks: Sequence[tuple[str, str, float | None]] | None = None,
    columns: int = 3,
    rows_share_frame: bool = True,
    up_axis: str = "y",
    **arguments: Any,
) -> str:
    """Return the text of a page that shows clouds, arrays (points, 3 or 6), in a grid; turning one turns all.

    Channels 4 to 6 are colors in [0, 1]; without them, height colors points. There is a title and a list of boxes for
    each cloud, and of `marks` the note, the status and the score, see `CloudView`. With `rows_share_frame` the clouds
    of a row are drawn in one frame and with one range of heights, to compare them. Further arguments are those of
    `viewer_page`.
    """
    clouds = [np.asarray(cloud, dtype=np.float64) for cloud in clouds]
    # In a row of clouds with and without colors, those without are colored by height.
    with_colors = any(cloud.shape[1] >= 6 for cloud in clouds)
    width = (min(columns, len(clouds)) or 1) if rows_share_frame else 1
    up = "xyz".index(up_axis)
    views = []
    titles = titles or [""] * len(clouds)
    boxes_of_clouds = boxes or [None] * len(clouds)
    marks = marks or [("", "", None)] * len(clouds)
    of_clouds = zip(clouds, titles, boxes_of_clouds, marks, strict=True)
    for number, (cloud, title, cloud_boxes, (note, status, score)) in enumerate(of_clouds):
        # All clouds of this one's frame, which are colored by one range of heights.
        row = np.concatenate([each[:, up] for each in clouds[number // width * width :][:width]])
        colors = cloud[:, 3:6] if cloud.shape[1] >= 6 else height_colors(cloud[:, up], *color_range(row))
        view = CloudView(cloud[:, :3], colors if with_colors else None, title=title, boxes=cloud_boxes)
        views.append(replace(view, note=note, status=status, score=score))
    return viewer_page(views, columns=columns, rows_share_frame=rows_share_frame, up_axis=up_axis, **arguments)


def color_range(values: np.ndarray) -> tuple[float, float]:
    """Return the values (points,) of the darkest and the brightest color: few outliers would make all others alike."""
    low = float(np.quantile(values, _OUTLIERS, method="lower"))
    return low, float(np.quantile(values, 1 - _OUTLIERS, method="higher"))


# Share of the points at each end that may be brighter or darker than a color range tells.
_OUTLIERS = 0.01
# Colors from low to high points, for clouds without colors: viridis, as in templates/viewer.js.
_HEIGHTS = np.array([[68, 1, 84], [59, 82, 139], [33, 145, 140], [94, 201, 98], [253, 231, 37]]) / 255


def height_colors(height: np.ndarray, low: float, high: float) -> np.ndarray:
    """Return colors (points, 3) from dark at `low` to bright at `high` for heights or other values (points,)."""
    # Where all are equal, the range is 0.
    relative = np.clip((height - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
    stops = np.linspace(0, 1, len(_HEIGHTS))
    return np.stack([np.interp(relative, stops, channel) for channel in _HEIGHTS.T], axis=1)


def prepared_views(
    clouds: Sequence[CloudView], names: Sequence[str] = (), most_points: int = MOST_POINTS
) -> list[CloudView]:
    """Return clouds with arrays instead of lists, and at most so many points in all, drawn at random."""
    # Every cloud gets the same share, and a page always the same sample.
    most = most_points // len(clouds)
    generator = np.random.default_rng(0)
    prepared = []
    for number, cloud in enumerate(clouds):
        points = np.asarray(cloud.points, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] not in (2, 3) or not np.isfinite(points).all() or not len(points):
            raise ValueError(f"cloud {number}: points have shape {points.shape}; expected finite (points, 3)")
        count = len(points)
        arrays: dict[str, np.ndarray | None] = {}
        for name in ("colors", "labels", "values"):
            values = getattr(cloud, name)
            arrays[name] = None if values is None else np.asarray(values)
        labels = arrays["labels"]
        if labels is not None and (labels.min() < 0 or labels.max() >= len(names)):
            raise ValueError(f"labels run from {labels.min()} to {labels.max()}; there are {len(names)} names")
        for name, array in arrays.items():
            shape = (count, 3) if name == "colors" else (count,)
            if array is not None and array.shape != shape:
                raise ValueError(f"cloud {number}: {name} have shape {array.shape}; expected {shape}")
        arrays["points"] = points
        texts = cloud.texts
        if len(points) > most:
            # Sorted, so that points keep their order
            kept = np.sort(generator.choice(len(points), most, replace=False))
            arrays = {name: None if array is None else array[kept] for name, array in arrays.items()}
            if texts is not None:
                texts = [texts[index] for index in kept]
        prepared.append(replace(cloud, texts=texts, **arrays))
    return prepared


def _panels(
    clouds: Sequence[CloudView], columns: int, up_axis: str, box_names: Sequence[str]
) -> tuple[list[dict[str, Any]], str]:
    """Return what is drawn where, and all points in units of a ball around each row of clouds, 16 bits each."""
    panels = []
    placed = []
    start = 0
    is_flat = all(cloud.points.shape[1] == 2 for cloud in clouds)
    for first in range(0, len(clouds), columns):
        row = clouds[first : first + columns]
        points_of_row = [in_space(cloud, up_axis) for cloud in row]
        together = np.concatenate(points_of_row)
        low = together.min(axis=0)
        high = together.max(axis=0)
        center = (low + high) / 2
        moved = together - center
        reach = np.abs(moved) if is_flat else np.linalg.norm(moved, axis=1)
        radius = max(reach.max(), np.finfo(np.float32).tiny)
        # How far the row reaches sidewards, however it is turned about the vertical axis, and upwards.
        sidewards = np.abs(moved[:, 0]) if is_flat else np.linalg.norm(moved[:, [0, 2]], axis=1)
        # With these the page can draw flat or narrow clouds larger than the ball around them allows.
        fit = [round(float(sidewards.max() / radius), 4), round(float((high - low)[1] / 2 / radius), 4)]
        lowest, highest = color_range(moved[:, 1] / radius)
        for cloud, points in zip(row, points_of_row, strict=True):
            panel = {
                "start": start,
                "count": len(points),
                "title": cloud.title,
                "note": cloud.note,
                "up": cloud.up_axis or up_axis,
                "low": round(lowest, 4),
                "high": round(highest, 4),
                "fit": fit,
                "flat": cloud.points.shape[1] == 2,
                "status": cloud.status,
                "class": cloud.category,
                "score": cloud.score,
                "texts": None if cloud.texts is None else list(map(str, cloud.texts)),
            }
            if cloud.boxes is not None:
                # (8 * boxes, 3), which are moved and scaled like the points
                corners = np.array([box.corners for box in cloud.boxes], dtype=np.float64).reshape(-1, 3)
                places = (in_space(replace(cloud, points=corners), up_axis) - center) / radius
                # Class, score and corners of each box, in the units of the points, but not limited to their range
                rows = []
                for box, numbers in zip(cloud.boxes, places.reshape(-1, 24).round(5).tolist(), strict=True):
                    score = None if box.score is None else round(float(box.score), 4)
                    rows.append([box_names.index(box.label), score, numbers])
                panel["boxes"] = rows
            panels.append(panel)
            placed.append((points - center) / radius)
            start += len(points)
    # 16 bits are finer than a pixel, and half the size of float32.
    return panels, _base64(np.rint(32767 * np.concatenate(placed)), "<i2")


def in_space(cloud: CloudView, up_axis: str) -> np.ndarray:
    """Return points as (right, up, towards the viewer); a cloud's own `up_axis` comes before that of the page."""
    if cloud.points.shape[1] == 2:
        return np.pad(cloud.points, ((0, 0), (0, 1)))
    # Axes change places in a circle, since a cloud must not be mirrored.
    return np.roll(cloud.points, "yxz".index(cloud.up_axis or up_axis), axis=1)


def _colorings(
    clouds: Sequence[CloudView],
    names: Sequence[str],
    label_name: str,
    value_name: str,
    legend: Mapping[str, Sequence[float]] | None,
    palette: np.ndarray | None = None,
) -> list[dict[str, Any]]:
    colorings: list[dict[str, Any]] = []
    labels = [cloud.labels for cloud in clouds if cloud.labels is not None]
    # A coloring that some of the clouds lack is not offered.
    if len(labels) == len(clouds):
        colors = [hex_color(color) for color in (label_colors(len(names)) if palette is None else palette)]
        values = _base64(np.concatenate(labels), "<u2")
        colorings.append(
            {"name": label_name, "kind": "labels", "values": values, "names": list(names), "colors": colors}
        )
    colors = [cloud.colors for cloud in clouds if cloud.colors is not None]
    if len(colors) == len(clouds):
        levels = np.rint(255 * np.concatenate(colors).astype(np.float64).clip(0, 1))
        explained = {name: hex_color(color) for name, color in (legend or {}).items()}
        name = clouds[0].color_name
        colorings.append({"name": name, "kind": "colors", "values": _base64(levels, "<u1"), "legend": explained})
    numbers = [cloud.values for cloud in clouds if cloud.values is not None]
    if len(numbers) == len(clouds):
        # NaN has no level of brightness.
        together = np.nan_to_num(np.concatenate(numbers).astype(np.float64))
        low = float(together.min())
        high = float(together.max())
        levels = np.rint(255 * (together - low) / max(high - low, np.finfo(np.float32).tiny))
        colorings.append(
            {"name": value_name, "kind": "values", "values": _base64(levels, "<u1"), "low": low, "high": high}
        )
    # Maps lie in a plane, without heights.
    if any(cloud.points.shape[1] == 3 for cloud in clouds):
        colorings.append({"name": "height", "kind": "height"})
    # The page needs a coloring, of maps without labels and values, too.
    return colorings or [{"name": "plain", "kind": "height"}]


def _base64(values: np.ndarray, dtype: str) -> str:
    return base64.b64encode(np.ascontiguousarray(values, dtype=dtype).tobytes()).decode("ascii")
