"""Reconstructions beside what they were made from, as a page or a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.visualization import plot_point_clouds
from hf_any3d.web_page import write_clouds_page

ENDINGS = (".html", ".png")


def write_reconstructions(
    path: str | os.PathLike, answers: Sequence[Mapping[str, Any]], names: Sequence[str], *, up_axis: str = "y"
) -> Path:
    """Show clouds, their coarse and their fine reconstructions side by side, a row each.

    Args:
        path: Where to write: `.html` for a page to turn, without anything from the network, `.png` for a picture. The
            file is complete or not there.
        answers: Of `pipeline("point-cloud-reconstruction")`.
        names: What each cloud is called.
        up_axis: "x", "y" or "z".

    Raises:
        ValueError: If the path has another ending, there is no answer, or the numbers of answers and names differ.
        ImportError: If matplotlib is missing, for `.png`.
    """
    if len(answers) != len(names):
        raise ValueError(f"names: {len(names)} for {len(answers)} answers; expected one for each")
    clouds, titles = [], []
    for answer, name in zip(answers, names, strict=True):
        scores = f"CD-L1 {answer['chamfer_l1']:.4f}, F {answer['f_score']:.2f}"
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
    """Show clouds in rows as a page or a picture, as the ending of the path says.

    Args:
        path: Ends in `.html` or `.png`.
        clouds: Arrays `(points, 3 or 6)`, row after row; those of a row are drawn in one frame.
        titles: A line above each.
        columns: Clouds in a row.
        title: Of the page.
        up_axis: "x", "y" or "z".
        legend: What colours mean.

    Raises:
        ValueError: If the path has another ending, or a cloud cannot be drawn.
        ImportError: If matplotlib is missing, for `.png`.
    """
    path = Path(path)
    shared = {"titles": titles, "columns": columns, "up_axis": up_axis, "legend": legend}
    if path.suffix.lower() == ".html":
        return write_clouds_page(path, clouds, title=title, **shared)
    if path.suffix.lower() == ".png":
        return plot_point_clouds(clouds, path, rows_share_frame=True, cell=3.0, zoom=0.95, **shared)
    raise ValueError(f"{path}: file type {path.suffix!r}; expected one of {', '.join(ENDINGS)}")
