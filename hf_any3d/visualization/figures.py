"""Pictures of point clouds: what the viewer's page shows, as PNG."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_any3d.data.options import package
from hf_any3d.utils.atomic_files import atomic_write
from hf_any3d.utils.messages import printable
from hf_any3d.visualization.viewer import CloudView, height_colors, hex_color, in_space, label_colors, prepared_views

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DOTS = 110  # per inch of the picture; clouds are drawn with twice as many
_STATUS_COLORS = {"": "#5c6670", "right": "#1a7f37", "wrong": "#b42318"}
_STAGE = np.array([0.867, 0.886, 0.910])  # behind clouds with colors of their own, so that white points are visible


def new_figure(**settings: Any) -> Figure:
    """Return an empty figure of matplotlib."""
    return package("matplotlib.figure", "visuals").Figure(**settings)


def plot_point_clouds(
    clouds: Sequence[np.ndarray],
    path: str | os.PathLike,
    *,
    titles: Sequence[str] | None = None,
    heading: str | None = None,
    elevation: float = 18.0,
    cell: float = 2.0,
    **settings: Any,
) -> Path:
    """Draw point clouds, arrays `(points, 3 or 6)`, in a grid and write a PNG.

    Channels 4 to 6 are colors in [0, 1]; without them, height colors a cloud. `titles` stand above the clouds,
    `heading` above the grid. Other arguments are those of `plot_views`.
    """
    views = []
    for cloud, title in zip(map(np.asarray, clouds), titles or [""] * len(clouds), strict=True):
        views.append(CloudView(cloud[:, :3], colors=cloud[:, 3:6] if cloud.shape[1] >= 6 else None, title=title))
    return plot_views(views, path, title=heading or "", elevation=elevation, cell=cell, **settings)


def plot_views(
    clouds: Sequence[CloudView],
    path: str | os.PathLike,
    *,
    title: str = "",
    note: str = "",
    names: Sequence[str] = (),
    label_name: str = "label",
    value_name: str = "value",
    categories: Sequence[str] = (),
    palette: np.ndarray | None = None,
    legend: Mapping[str, Sequence[float]] | None = None,
    columns: int = 6,
    rows_share_frame: bool = False,
    up_axis: str = "y",
    elevation: float = 20.0,
    zoom: float = 1.0,
    cell: float | None = None,
    title_colors: Sequence[str] | None = None,
) -> Path:
    """Write a PNG of what `viewer_page` shows first; the arguments that both have are the same.

    A cloud is colored by its labels, own colors, values or height, the first that it has. The camera looks down by
    `elevation` degrees, `zoom` scales clouds in their cells, a `cell` has an edge of 2 inches by default, or 5 for a
    single cloud, and `title_colors` has a color for each title.
    """
    if any(cloud.boxes for cloud in clouds):
        raise ValueError("a cloud has boxes, which pages draw; expected none for a picture")
    clouds = prepared_views(clouds, names)
    cell = cell or (5.0 if len(clouds) == 1 else 2.0)
    columns = min(columns, len(clouds))
    # Floor division of the negative number rounds up.
    rows = -(-len(clouds) // columns)
    entries = dict(legend or {})
    colors = label_colors(len(names)) if palette is None else palette
    labels = [cloud.labels for cloud in clouds if cloud.labels is not None]
    if len(labels) == len(clouds):
        entries = {names[number]: colors[number].tolist() for number in map(int, np.unique(np.concatenate(labels)))}
    shown = [cloud.values for cloud in clouds if cloud.labels is None and cloud.colors is None]
    values = np.concatenate([values for values in shown if values is not None] or [np.zeros(0)])
    limits = (float(values.min()), float(values.max())) if len(values) else (0.0, 0.0)
    # A long list below the clouds would take more room than they.
    by_side = len(entries) > 8
    lists = -(-len(entries) // max(8, int(3.6 * (cell + 0.25) * rows))) if by_side else 0  # columns of the legend
    lines = 0.22 * max(bool(cloud.title) + bool(_below(cloud, categories)) for cloud in clouds)
    height = (cell + lines + 0.06) * rows + 0.3 * (bool(title) + bool(note)) + (0.45 if entries and not by_side else 0)
    figure = new_figure(figsize=(max(cell * columns, 3.0) + 1.7 * lists, height), dpi=_DOTS, layout="constrained")
    for number, cloud in enumerate(clouds):
        row = clouds[number // columns * columns :][:columns] if rows_share_frame else [cloud]
        axes = figure.add_subplot(rows, columns, number + 1)
        # Drawn here: matplotlib's own 3D plots are slow for large clouds, and do not shade by depth.
        picture = _render(
            cloud, row, limits, up_axis, np.radians(elevation), zoom, round(2 * _DOTS * cell), palette=palette
        )
        axes.imshow(picture)
        axes.set_axis_off()
        color = title_colors[number] if title_colors else "black"
        below = _below(cloud, categories)
        axes.set_title(_cut(printable(cloud.title), cell), fontsize=8, color=color, y=1.07 if below else 1.0)
        if below:
            place = {"transform": axes.transAxes, "ha": "center", "va": "bottom", "fontsize": 7.5}
            axes.text(0.5, 1.01, _cut(below, cell), color=_STATUS_COLORS[cloud.status], **place)
    if title or note:
        figure.suptitle("\n".join(filter(None, (printable(title, "\n"), note))), fontsize=11)
    if entries:
        from matplotlib.lines import Line2D

        marks: Any = [
            Line2D([], [], ls="", marker="o", color=hex_color(c), label=_plain(n)) for n, c in entries.items()
        ]
        place = "outside right center" if by_side else "outside lower center"
        settings = {"fontsize": 8, "frameon": False, "title": label_name if by_side and not legend else None}
        figure.legend(handles=marks, loc=place, ncols=lists or min(len(marks), 4 * columns), **settings)
    if len(values):
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        bar = ScalarMappable(Normalize(*limits), cmap="viridis")
        figure.colorbar(bar, ax=figure.axes, label=value_name, shrink=0.6, pad=0.02)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return Path(path)


def _below(cloud: CloudView, categories: Sequence[str]) -> str:
    return cloud.note or (categories[cloud.category] if cloud.category is not None else "")


def _cut(text: str, cell: float) -> str:
    """Shorten a line to the width of a cell; matplotlib would draw it over the next one."""
    most = max(8, int(13.5 * cell))
    return _plain(text if len(text) <= most else f"{text[: most - 1]}…")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # else matplotlib reads mathematics


def _render(
    cloud: CloudView,
    row: Sequence[CloudView],
    limits: tuple[float, float],
    up_axis: str,
    tilt: float,
    zoom: float,
    side: int,
    turn: float = 0.7,
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a cloud as discs with depth, and darken what nearer points cover: (side, side, 3) in [0, 1]."""
    is_flat = cloud.points.shape[1] == 2
    # Clouds of a row are compared, so they share center and scale.
    own, *placed = (in_space(each, up_axis)[:, : cloud.points.shape[1]] for each in (cloud, *row))
    together = np.concatenate(placed)
    low, high = together.min(axis=0), together.max(axis=0)
    center = (low + high) / 2
    reach = np.abs(together - center) if is_flat else np.linalg.norm(together - center, axis=1)
    points = (own - center) / max(float(reach.max()), np.finfo(np.float32).tiny)
    background = np.ones(3)
    if cloud.labels is not None:
        colors = (label_colors(int(cloud.labels.max()) + 1) if palette is None else palette)[cloud.labels]
    elif cloud.colors is not None:
        colors, background = cloud.colors.clip(0, 1), _STAGE
    elif cloud.values is not None:
        colors = height_colors(cloud.values, *limits)
    else:
        colors = height_colors(own[:, 1], low[1], high[1])
    scale = 0.48 * side * zoom
    if is_flat:
        across, up, depth = *points.T, np.zeros(len(points))
    else:
        x, y, z = points.T
        ahead = np.sin(turn) * x + np.cos(turn) * z
        across, up = np.cos(turn) * x - np.sin(turn) * z, np.cos(tilt) * y - np.sin(tilt) * ahead
        depth = ahead * np.cos(tilt) + np.sin(tilt) * y
    # Perspective of a camera 6 radii away.
    closer = 6 / (6 - depth)
    columns, lines = side / 2 + scale * across * closer, side / 2 - scale * up * closer
    # Discs of about the distance between points, so that surfaces look closed.
    size = float(np.clip(1.4 * scale / np.sqrt(len(points)), 1.2, side / (60 if is_flat else 90)))
    steps = np.arange(-int(size), int(size) + 1)
    disc = [(dx, dy) for dy in steps for dx in steps if dx * dx + dy * dy <= size * size]
    picture, nearest = np.tile(background, (side * side, 1)), np.full(side * side, -np.inf)
    ranks = np.argsort(depth, kind="stable")  # later, nearer points are drawn over earlier ones
    # In pieces from back to front, so that each pixel of a disc is one array operation, with little memory.
    for start in range(0, len(ranks), 20_000):
        chunk = ranks[start : start + 20_000]
        for dx, dy in disc:
            column, line = np.rint(columns[chunk]).astype(int) + dx, np.rint(lines[chunk]).astype(int) + dy
            inside = (column >= 0) & (column < side) & (line >= 0) & (line < side)
            place, kept = (line * side + column)[inside], chunk[inside]
            # The last of equal places is the nearest of this offset, but other offsets may have been nearer.
            closer_now = depth[kept] >= nearest[place]
            place, kept = place[closer_now], kept[closer_now]
            nearest[place], picture[place] = depth[kept], colors[kept]
    if not is_flat:
        picture *= _shade(nearest.reshape(side, side)).reshape(-1, 1)
    return picture.reshape(side, side, 3)


def _shade(depth: np.ndarray, step: int = 2) -> np.ndarray:
    """Return the brightness of pixels, less where nearer points are around (eye-dome lighting), (side, side)."""
    painted, total = np.isfinite(depth), np.zeros(depth.shape)
    for axis in (0, 1):
        for by in (-step, step):
            # The neighbor above, below, left or right.
            other = np.roll(depth, by, axis=axis)
            with np.errstate(invalid="ignore"):
                total += np.where(painted & np.isfinite(other), np.maximum(other - depth, 0), 0)
    return np.where(painted, 0.45 + 0.55 * np.exp(-3 * np.minimum(total, 2)), 1.0)
