"""Tables and plot of `compare_adapters.py`."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from act_adapter_methods import ACT_METHODS
from adapter_methods import find_method

from hf_any3d.atomic_files import atomic_write

_AVERAGED = (
    "accuracy",
    "mean_class_accuracy",
    "loss",
    "step_seconds",
    "step_cpu_seconds",
    "peak_memory",
    "training_memory",
    "saved_activations",
    "stored_bytes",
    "trained_parameters",
    "encoder_parameters",
    "seconds",
    "cpu_seconds",
)


def summarise(found: dict[str, Any]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation of every method and ablation over its seeds."""
    rows = []
    for name in (*found["methods"], *found["ablations"]):
        own = [run for run in found["runs"] if run["settings"]["method"] == name]
        method = find_method(name) if found["settings"].get("base") is None else ACT_METHODS[name]
        row: dict[str, Any] = {"method": name, "title": method.title, "about": method.about, "runs": len(own)}
        row["encoder_learning_rate"] = own[0]["settings"]["encoder_learning_rate"] if method.own else None
        for key in _AVERAGED:
            values = [run[key] for run in own]
            if None in values:
                row[key] = row[f"{key}_std"] = None
                continue
            row[key] = statistics.fmean(values)
            row[f"{key}_std"] = statistics.stdev(values) if len(values) > 1 else 0.0
        rows.append(row)
    return rows


def markdown(summary: dict[str, Any]) -> str:
    """Both tables and what each row means."""
    rows = {row["method"]: row for row in summary["rows"]}
    parts = [_table([rows[name] for name in summary["methods"]])]
    if summary["ablations"]:
        kept = [rows[name] for name in (*(["guided"] if "guided" in rows else []), *summary["ablations"])]
        parts += ["Ablations of the guided adapter:\n", _table(kept)]
    parts.append("".join(f"- **{row['title']}**: {row['about']}.\n" for row in summary["rows"]))
    return "\n".join(parts)


def _table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| method | trained | of it in the encoder | its learning rate | test accuracy, % | class accuracy, % | "
        "CPU s a step | wall s a step | peak memory, MB | saved for backward, MB | stored, MB |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        rate = "–" if row["encoder_learning_rate"] is None else f"{row['encoder_learning_rate']:g}"
        cells = [
            row["title"],
            f"{row['trained_parameters']:,.0f}",
            f"{row['encoder_parameters']:,.0f}",
            rate,
            _spread(row, "accuracy", 100, 1),
            _spread(row, "mean_class_accuracy", 100, 1),
            _spread(row, "step_cpu_seconds", 1, 3),
            _spread(row, "step_seconds", 1, 3),
            "?" if row["peak_memory"] is None else _spread(row, "peak_memory", 1e-6, 0),
            f"{row['saved_activations'] / 1e6:.0f}",
            f"{row['stored_bytes'] / 1e6:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _spread(row: dict[str, Any], key: str, scale: float, digits: int) -> str:
    return f"{scale * row[key]:.{digits}f} ± {scale * row[f'{key}_std']:.{digits}f}"


def plot(summary: dict[str, Any], path: Path) -> None:
    """Accuracy against trained parameters, one point a method, bars of one standard deviation; PNG."""
    from matplotlib.figure import Figure

    rows = {row["method"]: row for row in summary["rows"]}
    figure = Figure(figsize=(8, 5), dpi=120)
    axes = figure.add_subplot()
    for number, name in enumerate(summary["methods"]):
        row = rows[name]
        place = row["trained_parameters"], 100 * row["accuracy"]
        color = "tab:red" if name == "guided" else "tab:blue"
        axes.errorbar(*place, yerr=100 * row["accuracy_std"], fmt="o", capsize=3, color=color)
        # Methods of nearly equal size stand in a column: their names take turns on both sides.
        left = number % 2 == 1
        axes.annotate(
            row["title"],
            place,
            xytext=(-7 if left else 7, 3),
            textcoords="offset points",
            ha="right" if left else "left",
            fontsize=9,
        )
    axes.set_xscale("log")
    axes.margins(x=0.25)
    axes.set_xlabel("trained parameters")
    axes.set_ylabel("test accuracy, %")
    axes.grid(alpha=0.3)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png", bbox_inches="tight")
