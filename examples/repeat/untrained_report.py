"""Save the report of a step of a published table that trains nothing: pictures, questions, authors' weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hf_any3d.model_card.run_report import RunReport, Stopwatch, peak_memory


def save_untrained_report(
    folder: Path,
    stopwatch: Stopwatch,
    *,
    model: str,
    seed: int,
    data: dict[str, Any],
    metrics: Mapping[str, Mapping[str, float]],
    class_accuracy: Mapping[str, Mapping[str, float]] | None = None,
) -> RunReport:
    """Save metrics.json in the folder of a step, and return what it has.

    Args:
        folder: Of the step.
        stopwatch: Of the step; it is stopped here.
        model: Directory or hub name of the model that was asked or drawn.
        seed: Of the step.
        data: What the model was asked or drawn with.
        metrics: Figures by split; empty for a picture.
        class_accuracy: Figures of each class by split.
    """
    report = RunReport(
        data=data,
        encoder={},
        adapter={},
        trained_parameters=0,
        total_parameters=0,
        seconds=stopwatch.stop(),
        peak_memory=peak_memory(),
        metrics={split: dict(figures) for split, figures in metrics.items()},
        class_accuracy={split: dict(figures) for split, figures in (class_accuracy or {}).items()},
        selection={},
        training={"seed": seed},
        start={"model": model},
    )
    report.save(folder / "metrics.json")
    return report
