"""Tables of `few_scans.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from studies.generated_shapes.families import OTHERS

SHOTS = (1, 2, 5, 10)
COPIES = 8
BINS = 10
"""Of the calibration error."""


def interval(values: Sequence[float]) -> float:
    """Return the half width of the 95 % interval of a mean over draws; NaN of one draw."""
    count = len(values)
    return (
        float(stats.t.ppf(0.975, count - 1) * np.std(values, ddof=1) / np.sqrt(count)) if count > 1 else float("nan")
    )


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Compute the expected calibration error: accuracy against score in `BINS` bins of the score."""
    score, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.minimum((score * BINS).astype(int), BINS - 1)
    return float(sum(abs(right[bins == b].sum() - score[bins == b].sum()) for b in range(BINS)) / len(labels))


def select(runs: Sequence[dict[str, Any]], **wanted: Any) -> list[dict[str, Any]]:
    """Return the runs with these values."""
    return [run for run in runs if all(run[key] == value for key, value in wanted.items())]


def accuracy_table(runs: Sequence[dict[str, Any]], set_name: str) -> str:
    """Format accuracies by way and number of shots, with 95 % intervals, and the CPU seconds at the largest."""
    lines = [
        "| way | " + " | ".join(f"k = {shots}" for shots in SHOTS) + " | CPU s at the largest k | draws |",
        "|---|" + "---|" * (len(SHOTS) + 2),
    ]
    ways = dict.fromkeys((run["arm"], run["head"], run["copies"]) for run in runs)
    for arm, head, copies in ways:
        own = select(runs, set=set_name, arm=arm, head=head, copies=copies)
        if not own or head == "shipped":
            continue
        title = arm + (", forest" if head == "forest" else "") + (f", {copies} copies" if copies > 1 else "")
        cells, last = [], max(run["shots"] for run in own)
        for shots in SHOTS:
            values = [run["accuracy"] for run in select(own, shots=shots)]
            half = f" ± {100 * interval(values):.1f}" if len(values) > 1 else ""
            cells.append(f"{100 * np.mean(values):.1f}{half}" if values else "–")
        seconds = np.mean([run["cpu_seconds"] for run in select(own, shots=last)])
        lines.append(f"| {title} | {' | '.join(cells)} | {seconds:.1f} | {len({run['draw'] for run in own})} |")
    return "\n".join(lines)


def doubt_table(runs: Sequence[dict[str, Any]], set_name: str, arm: str, copies: int) -> str:
    """Format what the shipped way knows of its errors, by number of shots."""
    lines = [
        "| k | accuracy | estimated | calibration error | score minus accuracy | other classes | "
        + " | ".join(OTHERS)
        + " | known: flagged |",
        "|---|" + "---|" * (6 + len(OTHERS)),
    ]
    for shots in SHOTS:
        own = select(runs, set=set_name, arm=arm, head="shipped", copies=copies, shots=shots)
        if not own:
            continue

        def mean(name: str, factor: float = 1.0, digits: int = 2, own: list[dict[str, Any]] = own) -> str:
            values = [run[name] for run in own if run.get(name) is not None]
            return f"{factor * np.mean(values):.{digits}f}" if values else "–"

        cells = [mean("accuracy", 100, 1), mean("estimated", 100, 1)]
        cells += [f"{mean('calibration_error_before', 1, 3)}, {mean('calibration_error', 1, 3)}"]
        cells += [mean("over_confidence", 1, 3), f"{mean('other classes, without a bank')}, {mean('other classes')}"]
        banks = (", without a bank", ", without its kind", "")
        cells += [", ".join(mean(f"{kind}{bank}") for bank in banks) for kind in OTHERS]
        cells += [mean("known, flagged")]
        lines.append(f"| {shots} | {' | '.join(cells)} |")
    return "\n".join(lines)


def report(runs: list[dict[str, Any]]) -> str:
    """Format all tables."""
    parts = []
    for set_name in ("embedded", "generated"):
        parts += [f"## Accuracy, {set_name} set, %", accuracy_table(runs, set_name)]
        for arm in dict.fromkeys(run["arm"] for run in runs):
            if not select(runs, set=set_name, arm=arm, head="shipped"):
                continue
            parts += [f"### {set_name}: {arm}, {COPIES} copies", doubt_table(runs, set_name, arm, COPIES)]
    return "\n\n".join(parts) + "\n"
