"""Pictures of point clouds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.atomic_files import atomic_write


def plot_point_clouds(
    clouds: Sequence[np.ndarray],
    path: str | os.PathLike,
    *,
    titles: Sequence[str] | None = None,
    title_colors: Sequence[str] | None = None,
    heading: str | None = None,
    legend: Mapping[str, Sequence[float]] | None = None,
    columns: int = 6,
    rows_share_frame: bool = False,
    up_axis: str = "y",
    elevation: float = 18.0,
    zoom: float = 1.0,
    cell: float = 2.0,
) -> Path:
    """Draw point clouds in a grid and write a PNG.

    Args:
        clouds: Arrays `(points, 3 or 6)`; channels 4 to 6 are colors in [0, 1]. Without colors, height colors them.
        path: File to write, atomically.
        titles: A line above each cloud.
        title_colors: Color of each of those lines.
        heading: A line above the grid.
        legend: Names and their colors, red, green and blue in [0, 1], below the grid.
        columns: Clouds per row.
        rows_share_frame: Draw the clouds of a row with the same center, scale and heights, to compare them.
        up_axis: "x", "y" or "z".
        elevation: Degrees by which the camera looks down.
        zoom: Scale of clouds in their cells.
        cell: Edge of a cell in inches.

    Raises:
        ImportError: matplotlib is missing.
        ValueError: There is no cloud to draw, or one is no `(points, 3 or more)` array.
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.patches import Patch
    except ImportError as error:
        raise ImportError("drawing point clouds needs matplotlib: pip install 'hf-any3d[visuals]'") from error
    if not len(clouds):
        raise ValueError("clouds is empty; expected at least one array (points, 3)")
    columns = min(columns, len(clouds))
    rows = -(-len(clouds) // columns)
    height = (cell + 0.25) * rows + (0.4 if heading else 0) + (0.5 if legend else 0)
    figure = Figure(figsize=(cell * columns, height), dpi=110, layout="constrained")
    order = {"x": (1, 2, 0), "y": (2, 0, 1), "z": (0, 1, 2)}[up_axis]
    clouds = [np.asarray(cloud, dtype=np.float32) for cloud in clouds]
    for number, cloud in enumerate(clouds):
        if cloud.ndim != 2 or cloud.shape[1] < 3:
            raise ValueError(f"cloud {number} has shape {cloud.shape}; expected (points, 3 or more)")
    for number, cloud in enumerate(clouds):
        row = number // columns * columns
        framed = clouds[row : row + columns] if rows_share_frame else [cloud]
        framed = np.concatenate([each[:, order] for each in framed])
        low, high = framed.min(axis=0), framed.max(axis=0)
        axes: Any = figure.add_subplot(rows, columns, number + 1, projection="3d")
        across, deep, up = cloud[:, order].T
        heights = {"c": up, "cmap": "viridis", "vmin": low[2], "vmax": high[2]}
        paint = {"c": cloud[:, 3:6].clip(0, 1)} if cloud.shape[1] >= 6 else heights
        axes.scatter(across, deep, up, s=0.5 * cell**2, linewidths=0, **paint)
        # As large as the cell allows; flat clouds need a box with some extent.
        reach = np.maximum((high - low) / 2, 0.1 * (high - low).max() + 1e-6)
        axes.set_box_aspect(reach, zoom=zoom)
        for limit, middle, half in zip(
            (axes.set_xlim, axes.set_ylim, axes.set_zlim), (low + high) / 2, reach, strict=True
        ):
            limit(middle - half, middle + half)
        axes.view_init(elev=elevation, azim=35)
        axes.set_axis_off()
        if titles is not None:
            axes.set_title(titles[number], fontsize=8, color=title_colors[number] if title_colors else "black")
    if heading:
        figure.suptitle(heading, fontsize=11)
    if legend:
        patches = [Patch(color=(red, green, blue), label=name) for name, (red, green, blue) in legend.items()]
        figure.legend(handles=patches, loc="outside lower center", ncols=min(len(patches), 8), fontsize=8)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return Path(path)
