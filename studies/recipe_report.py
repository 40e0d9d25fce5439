"""Effects of the changes that `recipe` tries, and its tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import date
from typing import Any

import numpy as np

from studies.runs import machine, over_seeds, percent

FIGURES = ("accuracy", "mean_class_accuracy", "loss")
WAYS = {"last": "last weights", "averaged": "averaged weights", "votes": "ten votes", "both": "averaged, ten votes"}
"""How each run is evaluated."""
Run = tuple[tuple[str, ...], int]
"""Changes and seed of a run."""

Factors = dict[str, tuple[str, dict[str, Any]]]
"""Title and settings of each change."""


def effects(values: np.ndarray, runs: list[Run], factors: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Estimate the effect of each change, by least squares next to a mean for each seed.

    Args:
        values: `(runs,)` a figure of each run.
        runs: Changes and seed of each run, as in `design`.
        factors: Names of the changes.

    Returns:
        Effect and its standard error by name; the error is NaN where there are no more runs than unknowns.
    """
    factors, seeds = list(factors), sorted({seed for _, seed in runs})
    columns = [[seed == own for own in seeds] + [name in changes for name in factors] for changes, seed in runs]
    matrix = np.array(columns, dtype=float)  # (runs, seeds + factors)
    unknowns = np.linalg.matrix_rank(matrix)
    if unknowns < matrix.shape[1]:
        raise ValueError(f"{len(runs)} runs do not separate {matrix.shape[1]} unknowns; all of a round do")
    found = np.linalg.lstsq(matrix, values, rcond=None)[0]
    free = len(runs) - unknowns
    variance = np.sum((values - matrix @ found) ** 2) / free if free else np.nan
    errors = np.sqrt(variance * np.diag(np.linalg.inv(matrix.T @ matrix)))
    return {name: (float(found[i]), float(errors[i])) for i, name in enumerate(factors, start=len(seeds))}


def summarize(stored: list[dict[str, Any]], factors: Factors) -> dict[str, Any]:
    """Compute effects of a round's changes on the figures of each way, and of the ways over all runs."""
    runs = [(tuple(run["changes"]), run["seed"]) for run in stored]
    figures = {way: {name: np.array([run[way][name] for run in stored]) for name in FIGURES} for way in WAYS}
    costs = np.array([run["cpu_seconds"] for run in stored])
    ways = [
        {"way": way, "title": title, **gains([run[way] for run in stored], [run["last"] for run in stored])}
        for way, title in WAYS.items()
    ]
    kinds = [
        {"title": kind, **gains([run["other_votes"][kind] for run in stored], [run["votes"] for run in stored])}
        for kind in stored[0].get("other_votes", {})
    ]
    found = {way: {name: effects(figures[way][name], runs, factors) for name in FIGURES} for way in WAYS}
    spent = effects(costs, runs, factors)
    rows = [
        {
            "change": change,
            "title": factors[change][0],
            "cpu_seconds": spent[change][0],
            **{way: {name: found[way][name][change] for name in FIGURES} for way in WAYS},
        }
        for change in factors
    ]
    return {
        "date": date.today().isoformat(),
        "machine": machine(),
        "runs": len(stored),
        "looks": len(stored) * (len(WAYS) + len(kinds)),
        "mean_cpu_seconds": float(costs.mean()),
        "ways": ways,
        "other_votes": kinds,
        "rows": rows,
    }


def gains(runs: list[dict[str, float]], others: list[dict[str, float]]) -> dict[str, float]:
    """Compute the mean of each of `FIGURES`, its gain over another way of the same runs, and the gain's error."""
    row = {}
    for name in FIGURES:
        values = np.array([run[name] for run in runs])
        gained = values - [other[name] for other in others]
        row |= {name: float(values.mean()), f"{name}_gain": float(gained.mean())}
        row[f"{name}_gain_error"] = float(gained.std(ddof=1) / len(gained) ** 0.5)
    return row


def table(summary: Mapping[str, Any]) -> str:
    """Format the summary as Markdown: effects of the changes, then of the ways, each ± its standard error."""

    def cell(found: tuple[float, float], unit: float, digits: int) -> str:
        return f"{unit * found[0]:+.{digits}f} ± {unit * found[1]:.{digits}f}"

    titles = [f"{WAYS[way]}: {text}" for way in ("last", "both") for text in ("accuracy, points", "cross-entropy")]
    head = ["change", *titles, "CPU seconds of a run"]
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for row in summary["rows"]:
        cells = [
            cell(row[way][name], *style)
            for way in ("last", "both")
            for name, style in (("accuracy", (100, 1)), ("loss", (1, 3)))
        ]
        lines.append(f"| {' | '.join([row['title'], *cells, format(row['cpu_seconds'], '+.0f')])} |")
    for first, rows in (("way", summary["ways"]), ("votes, and gain over ten votes", summary["other_votes"])):
        if rows:
            head = [first, "accuracy, %", "gain, points", "cross-entropy", "gain"]
            lines += ["", f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
        for row in rows:
            gained = [(row[f"{name}_gain"], row[f"{name}_gain_error"]) for name in ("accuracy", "loss")]
            cells = [percent(row, "accuracy"), cell(gained[0], 100, 1), f"{row['loss']:.3f}", cell(gained[1], 1, 3)]
            lines.append(f"| {' | '.join([row['title'], *cells])} |")
    lines += ["", f"{summary['runs']} runs; validation parts were looked at {summary['looks']} times."]
    return "\n".join(lines) + "\n"


def compare(stored: list[dict[str, Any]], recipes: Mapping[str, tuple[str, ...]]) -> dict[str, Any]:
    """Compute figures on the test shapes, and differences from the first recipe, seed by seed.

    Args:
        stored: Runs of all recipes with the same seeds in the same order.
        recipes: Changes of each recipe, by title.
    """
    runs_of = [[run for run in stored if tuple(run["changes"]) == changes] for changes in recipes.values()]
    rows = []
    for title, runs in zip(recipes, runs_of, strict=True):
        for way, way_title in WAYS.items():
            gained = [
                run[way]["accuracy"] - first["last"]["accuracy"] for run, first in zip(runs, runs_of[0], strict=True)
            ]
            figures = over_seeds([run[way] for run in runs], FIGURES)
            gain = {"gain": float(np.mean(gained)), "gain_std": float(np.std(gained, ddof=1))}
            rows.append({"title": f"{title}, {way_title}", "gains": gained, **figures, **gain})
    seconds = [float(np.mean([run["cpu_seconds"] for run in runs])) for runs in runs_of]
    about = {"date": date.today().isoformat(), "machine": machine(), "seeds": [run["seed"] for run in runs_of[0]]}
    return {**about, "recipes": recipes, "cpu_seconds": seconds, "rows": rows}


def comparison(summary: Mapping[str, Any]) -> str:
    """Format figures on the test shapes as Markdown."""
    lines = ["| recipe | accuracy, % | class accuracy, % | cross-entropy | gain, points |", "|---" * 5 + "|"]
    for row in summary["rows"]:
        cells = [percent(row, "accuracy"), percent(row, "mean_class_accuracy")]
        cells += [
            f"{row['loss']:.3f} ± {row['loss_std']:.3f}",
            f"{100 * row['gain']:+.1f} ± {100 * row['gain_std']:.1f}",
        ]
        lines.append(f"| {row['title']} | {' | '.join(cells)} |")
    seeds = ", ".join(map(str, summary["seeds"]))
    seconds = ", ".join(f"{one:.0f}" for one in summary["cpu_seconds"])
    lines += ["", f"Seeds {seeds}; {seconds} CPU seconds of training a run."]
    return "\n".join(lines) + "\n"
