"""Pictures of a training run: its curves, the scores of the classes, and the confusion matrix."""

from __future__ import annotations

import html
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_any3d.atomic_files import atomic_write, write_text
from hf_any3d.messages import csv_text
from hf_any3d.visualization.web_page import hex_color, label_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, PICTURE, TABLE = "results.html", "results.png", "class_scores.csv"
"""Names of the files that `write_run_results` writes."""
Curves = dict[str, dict[str, tuple[list[float], list[float]]]]
"""Charts, each with its named lines: steps and values."""

_DRAWN = (".png", ".svg", ".pdf")
# Names and counts are left out of larger matrices.
_MOST_COUNTS, _MOST_NAMES = 30, 80
_NOT_DRAWN = ("runtime", "samples_per_second", "steps_per_second", "total_flos", "jit_compilation_time")
_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1c2127; --quiet: #5c6670; --line: #d5dae0; --back: #fff;
  --bar: 47, 111, 222; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e8eaed; --quiet: #a3acb6; --line: #3a4149; --back: #16191d;
  --bar: 96, 150, 255; }} }}
body {{ font: 14px/1.45 system-ui, sans-serif; margin: 0 auto; padding: 16px; max-width: 1180px; color: var(--text);
  background: var(--back); }}
h1 {{ font-size: 20px; overflow-wrap: anywhere; }} h2 {{ font-size: 16px; margin: 28px 0 8px; }}
p {{ color: var(--quiet); }}
.wide {{ overflow-x: auto; }} table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
th, td {{ padding: 3px 10px; border-bottom: 1px solid var(--line); text-align: right; font-weight: normal; }}
th:first-child, td.text {{ text-align: left; }} thead th {{ color: var(--quiet); }}
.charts {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); gap: 14px; }}
svg {{ width: 100%; height: auto; max-width: 560px; }}
svg text {{ fill: var(--quiet); font: 12px system-ui, sans-serif; }}
svg .title {{ fill: var(--text); font-weight: 600; }} svg .grid {{ stroke: var(--line); stroke-width: 1; }}
.matrix td {{ width: 2.3em; min-width: 2.3em; height: 2.1em; padding: 0 2px; text-align: center; font-size: 12px;
  border: 1px solid var(--line); }}
.matrix.small td {{ width: 9px; min-width: 9px; height: 9px; padding: 0; border: 0; }}
.matrix th {{ padding: 0 6px; border: 0; color: var(--text); text-align: right; white-space: nowrap; }}
.matrix thead th {{ writing-mode: vertical-rl; text-align: left; padding: 6px 0; }}
.matrix.small th {{ font-size: 9px; line-height: 9px; }}
.matrix td.full {{ color: #fff; }}
</style></head><body>
<h1>{title}</h1>
"""
_LEGEND = "<p>Rows: true class. Columns: predicted class. Shade: share of the row.</p>"


def write_run_results(
    folder: str | os.PathLike,
    *,
    title: str,
    history: Sequence[Mapping[str, Any]],
    metrics: Mapping[str, Mapping[str, float]],
    class_scores: Mapping[str, Mapping[str, float]],
    confusions: Mapping[str, tuple[np.ndarray, Sequence[str]]],
) -> list[Path]:
    """Write the results of a training run to its output directory.

    `results.html`, a page that needs nothing else, has the metrics, the training curves, a table of the classes and
    the confusion matrix of each split; `class_scores.csv` has the table, for programs with classes; and `results.png`
    has curves and the last split's matrix, if matplotlib is installed.

    Args:
        folder: The output directory.
        title: Headline.
        history: The trainer's `state.log_history`.
        metrics: Metrics of each split.
        class_scores: Score of each class, by name, of each split.
        confusions: For each split counts (classes, classes), row = true class, and the names of the classes.

    Returns:
        The files written.
    """
    folder, curves = Path(folder), training_curves(history)
    table = class_table(class_scores, confusions)
    written = [write_text(folder / PAGE, _page(title, curves, metrics, table, confusions))]
    if len(table) > 1:
        written.append(write_text(folder / TABLE, csv_text(table)))
    if (curves or confusions) and find_spec("matplotlib") is not None:
        with atomic_write(folder / PICTURE) as unfinished:
            _picture(title, curves, confusions).savefig(unfinished, format="png")
        written.append(folder / PICTURE)
    return written


def training_curves(history: Sequence[Mapping[str, Any]]) -> Curves:
    """Return the charts of a trainer's `state.log_history`.

    Returns:
        `loss` with the lines `training` and `evaluation`, one chart for each metric of the evaluation, and
        `learning rate`; charts without finite values are left out.
    """
    charts: Curves = {}
    for entry in history:
        step = entry.get("step")
        if step is None:
            continue
        for key, value in entry.items():
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                continue
            if key in ("loss", "learning_rate"):
                chart, line = key.replace("_", " "), "training"
            elif key.startswith("eval_") and not key.endswith(_NOT_DRAWN):
                chart, line = key.removeprefix("eval_").replace("_", " "), "evaluation"
            else:
                continue
            steps, values = charts.setdefault(chart, {}).setdefault(line, ([], []))
            if not steps or step > steps[-1]:
                steps.append(float(step))
                values.append(float(value))
    first = {name: number for number, name in enumerate(("loss", "accuracy", "mean iou"))}
    last = {"learning rate": 99}
    return dict(sorted(charts.items(), key=lambda item: first.get(item[0], last.get(item[0], 9))))


def class_table(
    class_scores: Mapping[str, Mapping[str, float]], confusions: Mapping[str, tuple[np.ndarray, Sequence[str]]]
) -> list[list[str]]:
    """Return the table of the classes: its head, and a row for each class with scores, samples and the usual mistake.

    Args:
        class_scores: Score of each class, by name, of each split.
        confusions: Counts and names of each split, see `write_run_results`.
    """
    names = list(dict.fromkeys(name for scores in class_scores.values() for name in scores))
    head = ["class"]
    for split in class_scores:
        head += [f"{split} score"] + (
            [f"{split} count", f"{split} most often taken for"] if split in confusions else []
        )
    rows = [head]
    for name in names:
        row = [name]
        for split, scores in class_scores.items():
            row.append(f"{scores[name]:.4f}" if name in scores else "")
            if split in confusions:
                row += _usual_mistake(*confusions[split], name)
        rows.append(row)
    return rows


def _usual_mistake(matrix: np.ndarray, names: Sequence[str], name: str) -> list[str]:
    counts = np.asarray(matrix)[list(names).index(name)].copy()
    total = int(counts.sum())
    counts[list(names).index(name)] = 0
    most = int(counts.argmax())
    return [str(total), f"{names[most]} ({counts[most] / total:.0%})" if counts[most] else ""]


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
    if suffix == ".html":
        page = _HEAD.format(title=html.escape(title)) + _LEGEND + _matrix_table(matrix, labels) + "</body></html>\n"
        return write_text(path, page)
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("matplotlib is needed to draw; `pip install matplotlib`, or name a file .html") from error
    side = _side(labels)
    figure = Figure(figsize=(side, side))
    _draw_matrix(figure.add_subplot(), matrix, labels, title)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format=suffix[1:], bbox_inches="tight")
    return path


def _page(
    title: str,
    curves: Curves,
    metrics: Mapping[str, Mapping[str, float]],
    table: list[list[str]],
    confusions: Mapping[str, tuple[np.ndarray, Sequence[str]]],
) -> str:
    parts = [_HEAD.format(title=html.escape(title))]
    if metrics:
        names = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
        rows = [["split", *names]]
        rows += [[split, *(_number(scores.get(name)) for name in names)] for split, scores in metrics.items()]
        parts.append(f"<h2>Metrics</h2>{_table(rows)}")
    if curves:
        charts = "".join(_chart(name, lines) for name, lines in curves.items())
        parts.append(f'<h2>Training</h2><div class="charts">{charts}</div>')
    if len(table) > 1:
        parts.append(f"<h2>Classes</h2>{_table(table)}")
    for split, (matrix, names) in confusions.items():
        heading = f"<h2>Confusion matrix: {html.escape(split)}</h2>"
        parts.append(heading + _LEGEND + _matrix_table(np.asarray(matrix), names))
    return "\n".join([*parts, "</body></html>\n"])


def _table(rows: list[list[str]]) -> str:
    """Return a table; scores of the classes are shown as bars too."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in rows[0])
    body = []
    for row in rows[1:]:
        cells = [f"<th>{html.escape(row[0])}</th>"]
        for name, cell in zip(rows[0][1:], row[1:], strict=True):
            style, kind = "", ""
            if name.endswith(" score") and cell:
                share = f"{100 * min(max(float(cell), 0), 1):.1f}%"
                style = (
                    f' style="background: linear-gradient(90deg, rgba(var(--bar), .28) {share}, transparent {share})"'
                )
            elif name.endswith("taken for"):
                kind = ' class="text"'
            cells.append(f"<td{kind}{style}>{html.escape(cell)}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>{"".join(body)}</tbody></table></div>'


def _matrix_table(matrix: np.ndarray, labels: Sequence[str]) -> str:
    names = [html.escape(str(label)) for label in labels]
    is_small = len(names) > _MOST_COUNTS
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    rows = []
    for name, counts, row in zip(names, matrix, shares, strict=True):
        cells = []
        for other, count, share in zip(names, counts, row, strict=True):
            full = ' class="full"' if share > 0.6 else ""
            shade = f' style="background: rgba(var(--bar), {share:.3f})"' if count else ""
            tip = f' title="{name} taken for {other}: {count:,}"' if count else ""
            cells.append(f"<td{full}{shade}{tip}>{count if count and not is_small else ''}</td>")
        rows.append(f"<tr><th>{name}</th>{''.join(cells)}</tr>")
    head = "".join(f"<th>{name}</th>" for name in names)
    kind = "matrix small" if is_small else "matrix"
    head, body = f"<thead><tr><th></th>{head}</tr></thead>", "\n".join(rows)
    return f'<div class="wide"><table class="{kind}">{head}<tbody>\n{body}\n</tbody></table></div>'


def _chart(name: str, lines: Mapping[str, tuple[list[float], list[float]]]) -> str:
    """Draw lines over steps as SVG."""
    width, height, left, right, top, bottom = 480, 270, 58, 12, 34, 30
    steps = [step for line in lines.values() for step in line[0]]
    values = [value for line in lines.values() for value in line[1]]
    (x0, x1), (y0, y1) = (min(steps), max(steps)), (min(values), max(values))
    x1, (y0, y1) = max(x1, x0 + 1), (y0 - 0.05 * (y1 - y0), y1 + 0.05 * (y1 - y0)) if y1 > y0 else (y0 - 0.5, y1 + 0.5)

    def place(step: float, value: float) -> tuple[float, float]:
        across = left + (step - x0) / (x1 - x0) * (width - left - right)
        return across, height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom)

    parts = [f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(name)} over steps">']
    parts.append(f'<text class="title" x="{left}" y="16">{html.escape(name)}</text>')
    for value in _ticks(y0, y1):
        _, y = place(x0, value)
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{width - right}"/>')
        parts.append(f'<text x="{left - 6}" y="{y + 4:.1f}" text-anchor="end">{value:.4g}</text>')
    for step, anchor in ((x0, "start"), (x1, "end")):
        x, _ = place(step, y0)
        parts.append(f'<text x="{x:.1f}" y="{height - 9}" text-anchor="{anchor}">step {step:,.0f}</text>')
    end = width - right
    for number, (line, (line_steps, line_values)) in enumerate(lines.items()):
        color = hex_color(label_colors(number + 1)[-1])
        points = [place(step, value) for step, value in zip(line_steps, line_values, strict=True)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        if len(points) <= 40:
            parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{color}"/>' for x, y in points]
        if len(lines) > 1:
            parts.append(f'<text x="{end}" y="16" text-anchor="end">{html.escape(line)}</text>')
            end -= 7 * len(line) + 8
            parts.append(f'<path d="M{end - 12} 12h14" stroke="{color}" stroke-width="3"/>')
            end -= 26
    return "".join([*parts, "</svg>"])


def _ticks(low: float, high: float) -> np.ndarray:
    """Return round numbers between two bounds, about five."""
    power = 10.0 ** math.floor(math.log10((high - low) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if (high - low) / (power * factor) <= 6)
    return np.arange(math.ceil(low / step), math.floor(high / step) + 1) * step


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"


def _side(labels: Sequence[str]) -> float:
    return float(np.clip((0.4 if len(labels) <= _MOST_COUNTS else 0.18) * len(labels), 4.0, 16.0))  # inches


def _draw_matrix(axes: Any, matrix: np.ndarray, labels: Sequence[str], title: str) -> None:
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title(title.replace("$", r"\$"))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= _MOST_NAMES:
        names = [str(label).replace("$", r"\$") for label in labels]
        size = 9 if len(labels) <= _MOST_COUNTS else 6
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    for row, column in np.argwhere(matrix > 0) if len(labels) <= _MOST_COUNTS else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        text = f"{matrix[row, column]}" if matrix[row, column] < 10_000 else f"{matrix[row, column]:.0e}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8 if len(text) < 4 else 5)


def _picture(title: str, curves: Curves, confusions: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> Figure:
    from matplotlib.figure import Figure

    charts = list(curves.items())[:4]
    last = list(confusions.items())[-1:]
    side = max(5.0, _side(last[0][1][1])) if last else 0.0
    figure = Figure(
        figsize=((5.5 if charts else 0) + side, max(side, 2.3 * len(charts))), dpi=100, layout="constrained"
    )
    figure.suptitle(title.replace("$", r"\$"))
    grid = figure.add_gridspec(
        max(len(charts), 1), 2 if charts and last else 1, width_ratios=[5.5, side] if charts and last else None
    )
    for number, (name, lines) in enumerate(charts):
        axes = figure.add_subplot(grid[number, 0])
        for line_number, (line, (steps, values)) in enumerate(lines.items()):
            color = tuple(label_colors(line_number + 1)[-1])
            axes.plot(steps, values, label=line, color=color, marker="." if len(steps) <= 40 else "")
        axes.set_title(name, fontsize=9, loc="left")
        axes.grid(alpha=0.3)
        if len(lines) > 1:
            axes.legend(fontsize=8, frameon=False)
        if number == len(charts) - 1:
            axes.set_xlabel("step")
    for split, (matrix, names) in last:
        _draw_matrix(figure.add_subplot(grid[:, -1]), np.asarray(matrix), names, split)
    return figure
