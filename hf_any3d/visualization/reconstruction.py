"""Show reconstructions by an autoencoder beside what they reconstruct."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.options import one_of
from hf_any3d.visualization.figures import plot_point_clouds
from hf_any3d.visualization.viewer import write_clouds_page


def write_reconstructions(
    path: str | os.PathLike, answers: Sequence[Mapping[str, Any]], names: Sequence[str], *, up_axis: str = "y"
) -> Path:
    """Show clouds, their coarse and their fine reconstructions side by side, a row each.

    `answers` are results of `pipeline("point-cloud-reconstruction")`; the suffix of the path is `.html` or `.png`.
    """
    clouds = []
    titles = []
    for answer, name in zip(answers, names, strict=True):
        scores = f"CD-L1 {answer['chamfer_l1']:.4f}, F {answer['f_score']:.2f}"
        # Three clouds make a row of the grid.
        clouds += [answer["points"], answer["coarse"], answer["reconstruction"]]
        titles += [name, f"coarse: {len(answer['coarse'])} points", f"fine: {scores}"]
    return write_rows(path, clouds, titles, columns=3, title="reconstructions", up_axis=up_axis)


def write_rows(
    path: str | os.PathLike,
    clouds: Sequence[np.ndarray],
    titles: Sequence[str],
    *,
    columns: int,
    title: str,
    up_axis: str = "y",
    legend: Mapping[str, Sequence[float]] | None = None,
) -> Path:
    """Show clouds in rows on a page or in a picture, depending on the suffix.

    `clouds` are arrays `(points, 3 or 6)`, row by row; those of a row are drawn in one frame, with `titles` above
    them. `title` is that of the page, and `legend` has names and their colors.
    """
    path = Path(path)
    shared = {"titles": titles, "columns": columns, "up_axis": up_axis, "legend": legend}
    if one_of(f"file type of {path}", path.suffix.lower(), (".html", ".png")) == ".html":
        return write_clouds_page(path, clouds, title=title, **shared)
    return plot_point_clouds(clouds, path, rows_share_frame=True, cell=3.0, zoom=0.95, **shared)
