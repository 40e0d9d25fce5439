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
_MOST_BELOW = 8  # entries of a legend below the clouds
_PIECE = 20_000  # points that are drawn together
_STATUS_COLORS = {"": "#5c6670", "right": "#1a7f37", "wrong": "#b42318"}
_STAGE = np.array([0.867, 0.886, 0.910])  # behind clouds with colors of their own, so that white points are visible


def new_figure(**arguments: Any) -> Figure:
    """Return an empty figure of matplotlib."""
    return package("matplotlib.figure", "visuals").Figure(**arguments)


def plot_point_clouds(
    clouds: Sequence[np.ndarray],
    path: str | os.PathLike,
    *,
    titles: Sequence[str] | None = None,
    heading: str | None = None,
    elevation: float = 18.0,
    cell: float = 2.0,
    **arguments: Any,
) -> Path:
    """Draw point clouds, arrays `(points, 3 or 6)`, in a grid and write a PNG.

    Channels 4 to 6 are colors in [0, 1]; without them, height colors a cloud. `titles` stand above the clouds,
    `heading` above the grid. Other arguments are those of `plot_views`.
    """
    views = []
    for cloud, title in zip(map(np.asarray, clouds), titles or [""] * len(clouds), strict=True):
        colors = cloud[:, 3:6] if cloud.shape[1] >= 6 else None
        views.append(CloudView(cloud[:, :3], colors=colors, title=title))
    return plot_views(views, path, title=heading or "", elevation=elevation, cell=cell, **arguments)


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
    # Fewer clouds than columns would leave empty room beside them.
    columns = min(columns, len(clouds))
    rows = -(-len(clouds) // columns)  # floor division of the negative number rounds up
    entries = _entries_of_legend(clouds, names, legend, palette)
    lists = 0  # of the legend beside the clouds; a short one stands below them
    if len(entries) > _MOST_BELOW:
        # A long list below would take more room than the clouds; beside them a list is as long as the rows are high.
        lists = -(-len(entries) // max(_MOST_BELOW, int(3.6 * (cell + 0.25) * rows)))
    # One range for all clouds, so that the color bar holds for each
    limits = _limits_of_values(clouds)
    # The lines below the titles
    below = [cloud.note for cloud in clouds]
    for number, cloud in enumerate(clouds):
        if not cloud.note and cloud.category is not None:
            below[number] = categories[cloud.category]
    # Each row leaves room for the lines of the cloud that has most.
    lines = max(bool(cloud.title) + bool(text) for cloud, text in zip(clouds, below, strict=True))
    # In inches: cells with their lines, the heading, and the legend.
    height = (cell + 0.22 * lines + 0.06) * rows + 0.3 * (bool(title) + bool(note))
    if entries and not lists:
        height += 0.45
    width = max(cell * columns, 3.0) + 1.7 * lists
    figure = new_figure(figsize=(width, height), dpi=_DOTS, layout="constrained")
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
        line = below[number]
        axes.set_title(_cut(printable(cloud.title), cell), fontsize=8, color=color, y=1.07 if line else 1.0)
        if line:
            place = {"transform": axes.transAxes, "ha": "center", "va": "bottom"}
            axes.text(0.5, 1.01, _cut(line, cell), color=_STATUS_COLORS[cloud.status], fontsize=7.5, **place)
    heading = [line for line in (printable(title, "\n"), note) if line]
    if heading:
        figure.suptitle("\n".join(heading), fontsize=11)
    if entries:
        _add_legend(figure, entries, lists, columns, None if legend else label_name)
    if limits:
        from matplotlib.cm import ScalarMappable
        from matplotlib.colors import Normalize

        bar = ScalarMappable(Normalize(*limits), cmap="viridis")
        figure.colorbar(bar, ax=figure.axes, label=value_name, shrink=0.6, pad=0.02)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return Path(path)


def _entries_of_legend(
    clouds: Sequence[CloudView],
    names: Sequence[str],
    legend: Mapping[str, Sequence[float]] | None,
    palette: np.ndarray | None,
) -> dict[str, Sequence[float]]:
    """Return names and colors of the labels that occur, or, if a cloud has no labels, those of the legend."""
    labels = [cloud.labels for cloud in clouds if cloud.labels is not None]
    # Labels color the clouds only where all of them have some.
    if len(labels) < len(clouds):
        return dict(legend or {})
    colors = label_colors(len(names)) if palette is None else palette
    return {names[number]: colors[number].tolist() for number in map(int, np.unique(np.concatenate(labels)))}


def _limits_of_values(clouds: Sequence[CloudView]) -> tuple[float, float] | None:
    """Return the range of the values that color clouds; None if no cloud is colored by values."""
    values = []
    for cloud in clouds:
        # Values come after labels and own colors.
        if cloud.labels is None and cloud.colors is None and cloud.values is not None:
            values.append(cloud.values)
    if not values:
        return None
    together = np.concatenate(values)
    return float(together.min()), float(together.max())


def _add_legend(
    figure: Figure, entries: Mapping[str, Sequence[float]], lists: int, columns: int, heading: str | None
) -> None:
    """Explain colors by names, in a number of lists beside the clouds, or below them if there are none."""
    from matplotlib.lines import Line2D

    marks: Any = []
    for name, color in entries.items():
        marks.append(Line2D([], [], ls="", marker="o", color=hex_color(color), label=_plain(name)))
    place = "outside right center" if lists else "outside lower center"
    ncols = lists or min(len(marks), 4 * columns)
    title = heading if lists else None  # below the clouds it would take a line of its own
    figure.legend(handles=marks, loc=place, ncols=ncols, fontsize=8, frameon=False, title=title)


def _cut(text: str, cell: float) -> str:
    """Shorten a line to the width of a cell; matplotlib would draw it over the next one."""
    # About 13.5 characters of this font are an inch wide.
    most = max(8, int(13.5 * cell))
    return _plain(text if len(text) <= most else f"{text[: most - 1]}…")


def _plain(text: str) -> str:
    return text.replace("$", r"\$")  # else matplotlib reads mathematics


def _render(
    cloud: CloudView,
    row: Sequence[CloudView],
    limits: tuple[float, float] | None,
    up_axis: str,
    tilt: float,
    zoom: float,
    side: int,
    palette: np.ndarray | None = None,
) -> np.ndarray:
    """Draw a cloud as discs with depth, and darken what nearer points cover: (side, side, 3) in [0, 1]."""
    is_flat = cloud.points.shape[1] == 2
    places = in_space(cloud, up_axis)[:, : cloud.points.shape[1]]  # (points, 2 or 3)
    # Clouds of a row are compared, so they share center and scale.
    together = np.concatenate([in_space(each, up_axis)[:, : cloud.points.shape[1]] for each in row])
    low = together.min(axis=0)
    high = together.max(axis=0)
    center = (low + high) / 2
    # A map fills the square of the picture, a cloud the ball around it.
    reach = np.abs(together - center) if is_flat else np.linalg.norm(together - center, axis=1)
    points = (places - center) / max(float(reach.max()), np.finfo(np.float32).tiny)
    colors, background = _colors_of(cloud, limits, places[:, 1], (low[1], high[1]), palette)
    # The ball around the cloud fills nearly all of the picture.
    scale = 0.48 * side * zoom
    if is_flat:
        across, up = points.T
        depth = np.zeros(len(points))
    else:
        # Turned about the vertical axis, then tilted: right, up and towards the viewer
        turn = 0.7
        x, y, z = points.T
        ahead = np.sin(turn) * x + np.cos(turn) * z
        across = np.cos(turn) * x - np.sin(turn) * z
        up = np.cos(tilt) * y - np.sin(tilt) * ahead
        depth = ahead * np.cos(tilt) + np.sin(tilt) * y
    # Perspective of a camera 6 radii away.
    closer = 6 / (6 - depth)
    columns = side / 2 + scale * across * closer
    lines = side / 2 - scale * up * closer
    # Discs of about the distance between points, so that surfaces look closed.
    size = float(np.clip(1.4 * scale / np.sqrt(len(points)), 1.2, side / (60 if is_flat else 90)))
    picture, nearest = _paint(columns, lines, depth, colors, background, size, side)
    if not is_flat:
        picture *= _shade(nearest)[:, :, None]
    return picture


def _colors_of(
    cloud: CloudView,
    limits: tuple[float, float] | None,
    heights: np.ndarray,
    range_of_heights: tuple[float, float],
    palette: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the colors of points (points, 3) and of what is behind them (3,)."""
    if cloud.labels is not None:
        colors = label_colors(int(cloud.labels.max()) + 1) if palette is None else palette
        return colors[cloud.labels], np.ones(3)
    if cloud.colors is not None:
        return cloud.colors.clip(0, 1), _STAGE
    if cloud.values is not None and limits is not None:
        return height_colors(cloud.values, *limits), np.ones(3)
    return height_colors(heights, *range_of_heights), np.ones(3)


def _paint(
    columns: np.ndarray,
    lines: np.ndarray,
    depth: np.ndarray,
    colors: np.ndarray,
    background: np.ndarray,
    size: float,
    side: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Draw discs of a radius at places (points,) in pixels.

    Returns:
        The picture (side, side, 3), and the depth of the nearest point in each pixel (side, side), or -inf.
    """
    # Offsets of a disc's pixels from its center
    steps = np.arange(-int(size), int(size) + 1)
    disc = [(dx, dy) for dy in steps for dx in steps if dx * dx + dy * dy <= size * size]
    picture = np.tile(background, (side * side, 1))
    nearest = np.full(side * side, -np.inf)
    ranks = np.argsort(depth, kind="stable")  # later, nearer points are drawn over earlier ones
    # In pieces from back to front, so that each pixel of a disc is one array operation, with little memory.
    for start in range(0, len(ranks), _PIECE):
        piece = ranks[start : start + _PIECE]
        for dx, dy in disc:
            column = np.rint(columns[piece]).astype(int) + dx
            line = np.rint(lines[piece]).astype(int) + dy
            inside = (column >= 0) & (column < side) & (line >= 0) & (line < side)
            place = (line * side + column)[inside]
            kept = piece[inside]
            # The last of equal places is the nearest of this offset, but other offsets may have been nearer.
            closer = depth[kept] >= nearest[place]
            place = place[closer]
            kept = kept[closer]
            nearest[place] = depth[kept]
            picture[place] = colors[kept]
    return picture.reshape(side, side, 3), nearest.reshape(side, side)


def _shade(depth: np.ndarray, step: int = 2) -> np.ndarray:
    """Return the brightness of pixels, less where nearer points are around (eye-dome lighting), (side, side)."""
    painted = np.isfinite(depth)
    total = np.zeros(depth.shape)
    for axis in (0, 1):
        for by in (-step, step):
            # The neighbor above, below, left or right.
            other = np.roll(depth, by, axis=axis)
            # What comes around from the opposite border is no neighbor.
            around = slice(by) if by > 0 else slice(by, None)
            np.moveaxis(other, axis, 0)[around] = np.inf
            with np.errstate(invalid="ignore"):
                total += np.where(painted & np.isfinite(other), np.maximum(other - depth, 0), 0)
    # At most 55 % darker, so that colors can still be told
    return np.where(painted, 0.45 + 0.55 * np.exp(-3 * np.minimum(total, 2)), 1.0)
