"""A picture of a confusion matrix: PNG, SVG or PDF with matplotlib, or an HTML page without it."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from hf_any3d.atomic_files import atomic_write, write_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_DRAWN = (".png", ".svg", ".pdf")
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 2em }}
table {{ border-collapse: collapse }}
td {{ width: 2.2em; height: 2.2em; text-align: center; border: 1px solid #ddd }}
th {{ font-weight: normal; padding: 0 .5em; text-align: right }}
thead th {{ writing-mode: vertical-rl; text-align: left; padding: .5em 0 }}
</style>
<h1>{title}</h1>
<p>Rows: true class. Columns: predicted class. Shade: share of the row.</p>
<table><thead><tr><th></th>{head}</tr></thead><tbody>
{body}
</tbody></table></html>
"""


def plot_confusion_matrix(
    matrix: np.ndarray, labels: Sequence[str], path: str | os.PathLike, *, title: str = "Confusion matrix"
) -> Path:
    """Draw a confusion matrix with its counts, shaded by the share of each true class.

    Args:
        matrix: (num_classes, num_classes) counts; row = true class, column = predicted class.
        labels: Names of the classes in the matrix's order.
        path: File to write; `.png`, `.svg` and `.pdf` need matplotlib, `.html` does not.
        title: Headline.

    Returns:
        The path written.

    Raises:
        ValueError: The matrix is not square, the number of labels differs, or the file type is unknown.
        ImportError: A picture is requested and matplotlib is not installed.
    """
    matrix, path = np.asarray(matrix), Path(path)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"matrix has shape {matrix.shape}; expected (num_classes, num_classes)")
    if len(labels) != len(matrix):
        raise ValueError(f"there are {len(labels)} labels for {len(matrix)} classes")
    suffix = path.suffix.lower()
    if suffix not in (*_DRAWN, ".html"):
        raise ValueError(f"{path}: file type {path.suffix!r} is unknown; expected .html, {', '.join(_DRAWN)}")
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    if suffix == ".html":
        return write_text(path, _html(matrix, shares, labels, title))
    figure = _draw(matrix, shares, labels, title)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format=suffix[1:], bbox_inches="tight")
    return path


def _html(matrix: np.ndarray, shares: np.ndarray, labels: Sequence[str], title: str) -> str:
    names = [html.escape(str(label)) for label in labels]
    rows = []
    for name, counts, row in zip(names, matrix, shares, strict=True):
        cells = "".join(
            f'<td style="background: rgba(31, 119, 180, {share:.3f})" title="{name} taken for {other}">'
            f"{count if count else ''}</td>"
            for other, count, share in zip(names, counts, row, strict=True)
        )
        rows.append(f"<tr><th>{name}</th>{cells}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    return _PAGE.format(title=html.escape(title), head=head, body="\n".join(rows))


def _draw(matrix: np.ndarray, shares: np.ndarray, labels: Sequence[str], title: str) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is needed to draw; `pip install matplotlib`, or name a file .html") from error
    side = max(4.0, 0.4 * len(matrix))  # inches
    figure = Figure(figsize=(side, side))
    axes = figure.add_subplot(xlabel="predicted class", ylabel="true class", title=title)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(labels)), labels, rotation=90)
    axes.set_yticks(range(len(labels)), labels)
    for row, column in np.argwhere(matrix > 0):
        color = "white" if shares[row, column] > 0.5 else "black"
        axes.text(column, row, str(matrix[row, column]), ha="center", va="center", color=color, fontsize=8)
    return figure
