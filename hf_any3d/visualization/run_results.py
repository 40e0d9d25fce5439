"""Pictures of a training run: its curves, the scores of the classes, and the confusion matrix."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_any3d.utils.atomic_files import atomic_write, write_text
from hf_any3d.utils.messages import csv_text, percent
from hf_any3d.utils.metric_names import metric_name, metric_value
from hf_any3d.visualization.figures import new_figure
from hf_any3d.visualization.html_pages import html_page
from hf_any3d.visualization.viewer import hex_color, label_colors

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PAGE, PICTURE, TABLE = "results.html", "results.png", "class_scores.csv"
"""Names of the files that `write_run_results` writes."""
Curves = dict[str, dict[str, tuple[list[float], list[float]]]]
"""Charts, each with its named lines: steps and values."""

# Names and counts are left out of larger matrices.
_MOST_COUNTS, _MOST_NAMES = 30, 80
_NOT_DRAWN = ("runtime", "samples_per_second", "steps_per_second", "total_flos", "jit_compilation_time")


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

    `history` is the trainer's `state.log_history`, `metrics` and `class_scores` are of each split, and `confusions`
    has for each split counts (classes, classes), a row for each true class, and the names of the classes.
    """
    folder = Path(folder)
    curves = training_curves(history)
    # Page and table show the same rows.
    table = class_table(class_scores, confusions)
    written = [write_text(folder / PAGE, _page(title, curves, metrics, table, confusions))]
    if len(table) > 1:
        written.append(write_text(folder / TABLE, csv_text(table)))
    # The page needs no matplotlib; the picture is for places that show no HTML.
    if (curves or confusions) and find_spec("matplotlib") is not None:
        with atomic_write(folder / PICTURE) as unfinished:
            _picture(title, curves, confusions).savefig(unfinished, format="png")
        written.append(folder / PICTURE)
    return written


def training_curves(history: Sequence[Mapping[str, Any]]) -> Curves:
    """Return the charts of a trainer's `state.log_history`: loss, metrics of the evaluation, and learning rate.

    Charts without finite values are left out.
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
                chart = key.replace("_", " ")
                line = "training"
            elif key.startswith("eval_") and not key.endswith(_NOT_DRAWN):
                chart = key.removeprefix("eval_").replace("_", " ")
                line = "evaluation"
            else:
                continue
            steps, values = charts.setdefault(chart, {}).setdefault(line, ([], []))
            # A resumed run logs some steps again.
            if not steps or step > steps[-1]:
                steps.append(float(step))
                values.append(float(value))
    # What people look for comes first, and the learning rate last.
    order = {"loss": 0, "accuracy": 1, "mean iou": 2, "learning rate": 99}
    return dict(sorted(charts.items(), key=lambda item: order.get(item[0], 9)))


def class_table(
    class_scores: Mapping[str, Mapping[str, float]], confusions: Mapping[str, tuple[np.ndarray, Sequence[str]]]
) -> list[list[str]]:
    """Return the table of the classes: its head, and a row for each with scores, samples and the usual mistake."""
    # Each class once, though splits may have different ones
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
                matrix, classes = confusions[split]
                counts = np.asarray(matrix)[list(classes).index(name)].copy()
                total = int(counts.sum())
                # Without the right answers, the largest count is the most frequent mistake.
                counts[list(classes).index(name)] = 0
                most = int(counts.argmax())
                row += [str(total), f"{classes[most]} ({percent(counts[most] / total)} %)" if counts[most] else ""]
        rows.append(row)
    return rows


def plot_confusion_matrix(
    matrix: np.ndarray, labels: Sequence[str], path: str | os.PathLike, *, title: str = "Confusion matrix"
) -> Path:
    """Draw a confusion matrix with its counts, shaded by the share of each true class.

    `matrix` (num_classes, num_classes) has a row for each true class and a column for each predicted one. `.png`,
    `.svg` and `.pdf` files need matplotlib, `.html` does not.
    """
    matrix = np.asarray(matrix)
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".html":
        return write_text(path, _page(title, {}, {}, [], {"": (matrix, labels)}))
    side = _side(labels)
    figure = new_figure(figsize=(side, side))
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
    return html_page(
        "results.html",
        title=title,
        metrics=metrics_table(metrics),
        charts=[chart_of(name, lines) for name, lines in curves.items()],
        classes=table,
        matrices=matrices_of(confusions),
    )


def metrics_table(metrics: Mapping[str, Mapping[str, float]]) -> list[list[str]]:
    """Return the table of the metrics of each split, its head first; empty without metrics."""
    names = list(dict.fromkeys(name for scores in metrics.values() for name in scores))
    rows = []
    for split, scores in metrics.items():
        rows.append([split, *(metric_value(name, scores[name]) if name in scores else "" for name in names)])
    return [["split", *map(metric_name, names)], *rows] if metrics else []


def matrices_of(confusions: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> list[dict[str, Any]]:
    """Return what a page shows of confusion matrices: counts, and their shares of the true class."""
    matrices = []
    for split, (matrix, labels) in confusions.items():
        # For each class its counts, and their shares of the row. A class without samples has a row of zeros.
        counts = np.asarray(matrix)
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        cells = [list(zip(*row, strict=True)) for row in zip(counts.tolist(), shares.tolist(), strict=True)]
        shown = {"names": list(map(str, labels)), "rows": list(zip(map(str, labels), cells, strict=True))}
        matrices.append({"split": split, "is_small": len(labels) > _MOST_COUNTS, **shown})
    return matrices


def chart_of(
    name: str,
    lines: Mapping[str, tuple[list[float], list[float]]],
    step_text: str = "{}",
    *,
    steps_are: str = "step",
    value_range: tuple[float, float] | None = None,
) -> dict[str, Any]:
    """Return the places of lines over steps in a drawing.

    `step_text` is how the first and last step are written, `steps_are` what is written between them, and `value_range`
    the lowest and highest value of the drawing, by default those of the lines.
    """
    # In units of the drawing, with its margins
    width = 480
    height = 270
    left = 58
    right = 12
    top = 34
    bottom = 30
    steps = [step for line in lines.values() for step in line[0]]
    values = [value for line in lines.values() for value in line[1]]
    x0 = min(steps)
    x1 = max(steps)
    y0 = min(values)
    y1 = max(values)
    # A single step or a constant line would divide by 0; other lines keep a little distance to the frame.
    x1 = max(x1, x0 + 1)
    margin = 0.05 * (y1 - y0) if y1 > y0 else 0.5
    y0, y1 = value_range or (y0 - margin, y1 + margin)

    def place(step: float, value: float) -> tuple[float, float]:
        across = left + (step - x0) / (x1 - x0) * (width - left - right)
        return across, height - bottom - (value - y0) / (y1 - y0) * (height - top - bottom)

    # About five ticks at round numbers: the first step of which there are six at most.
    power = 10.0 ** math.floor(math.log10((y1 - y0) / 4))
    step = next(power * factor for factor in (1, 2, 5, 10) if (y1 - y0) / (power * factor) <= 6)
    ticks = np.arange(math.ceil(y0 / step), math.floor(y1 / step) + 1) * step
    # Names are written above the lines from right to left, each with the mark of its line before it.
    drawn = []
    end = width - right
    for number, (line, coordinates) in enumerate(lines.items()):
        points = [place(step, value) for step, value in zip(*coordinates, strict=True)]
        # A character is about 7 units wide.
        mark = end - 7 * len(line) - 20  # left of the line's name
        color = hex_color(label_colors(number + 1)[-1])
        drawn.append({"name": line, "color": color, "points": points, "end": end, "mark": mark})
        end = mark - 14
    return {
        "name": name,
        "width": width,
        "height": height,
        "left": left,
        "right": width - right,
        "steps_are": steps_are,
        "ticks": [(place(x0, value)[1], value) for value in ticks],
        "ends": [
            (place(step, y0)[0], step_text.format(f"{step:,.0f}"), anchor)
            for step, anchor in ((x0, "start"), (x1, "end"))
        ],
        "lines": drawn,
    }


def _side(labels: Sequence[str]) -> float:
    return float(np.clip((0.4 if len(labels) <= _MOST_COUNTS else 0.18) * len(labels), 4.0, 16.0))  # inches


def _draw_matrix(axes: Any, matrix: np.ndarray, labels: Sequence[str], title: str) -> None:
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    axes.set(xlabel="predicted class", ylabel="true class")
    # Between dollar signs matplotlib would read mathematics.
    axes.set_title(title.replace("$", r"\$"))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    if len(labels) <= _MOST_NAMES:
        names = [str(label).replace("$", r"\$") for label in labels]
        size = 9 if len(labels) <= _MOST_COUNTS else 6
        axes.set_xticks(range(len(names)), names, rotation=90, fontsize=size)
        axes.set_yticks(range(len(names)), names, fontsize=size)
    # Counts of many classes would not be readable in their cells.
    for row, column in np.argwhere(matrix > 0) if len(labels) <= _MOST_COUNTS else ():
        color = "white" if shares[row, column] > 0.5 else "black"
        # A count of five digits would not fit into its cell.
        text = f"{matrix[row, column]}" if matrix[row, column] < 10_000 else f"{matrix[row, column]:.0e}"
        axes.text(column, row, text, ha="center", va="center", color=color, fontsize=8 if len(text) < 4 else 5)


def _picture(title: str, curves: Curves, confusions: Mapping[str, tuple[np.ndarray, Sequence[str]]]) -> Figure:
    # More of them would make the picture very high.
    charts = list(curves.items())[:4]
    # The split that was evaluated last, which is the test where there is one.
    last = list(confusions.items())[-1:]
    side = max(5.0, _side(last[0][1][1])) if last else 0.0
    figure = new_figure(
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
