"""The page of an evaluation: figures, what goes wrong, the scores of the answers, and the worst scans in 3D."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.utils.atomic_files import write_text
from hf_any3d.visualization.html_pages import html_page
from hf_any3d.visualization.run_results import chart_of, class_table, matrices_of, metrics_table
from hf_any3d.visualization.viewer import CloudView, label_colors, viewer_page

Confusions = Mapping[str, tuple[np.ndarray, Sequence[str]]]
MOST_WORST = 24
"""Clouds of a classifier that a page shows at most."""
_MOST_CONFUSED = 3
# A curve of fewer scans is a staircase.
_FEWEST_OF_A_CURVE = 10
_GRAY = (0.62, 0.62, 0.62)


def write_evaluation_page(
    path: str | os.PathLike,
    *,
    title: str,
    summary: str = "",
    metrics: Mapping[str, Mapping[str, float]],
    class_scores: Mapping[str, Mapping[str, float]],
    confusions: Confusions,
    scans: Sequence[Mapping[str, Any]] = (),
    cloud: Callable[[int], CloudView] | None = None,
    labels_of_points: Mapping[int, tuple[np.ndarray, np.ndarray]] | None = None,
) -> Path:
    """Write the page of an evaluation.

    Args:
        path: File to write, `.html`.
        title: What was evaluated on what.
        summary: A sentence that says how good it is.
        metrics: Metrics of each split.
        class_scores: Score of each class of each split.
        confusions: Counts (classes, classes) of each split, a row for each true class, and the names of the classes.
        scans: Rows of the split's scans, see `ScanScores`.
        cloud: Returns how the scan of a row is shown; without it, the page has no clouds.
        labels_of_points: True and predicted labels (points,) of the scans that are shown, by their numbers; -100 for
            points that do not count.
    """
    worst = []
    settings: dict[str, Any] = {}
    if cloud is not None and labels_of_points:
        ((_, names), *_) = confusions.values()
        worst = _labeled_views(cloud, labels_of_points, names)
        named = [*names, "equal", "not counted"]
        palette = np.concatenate([label_colors(len(names)), [_GRAY, (0.85, 0.85, 0.85)]])
        settings = {"names": named, "label_name": "class", "palette": palette, "columns": 3, "rows_share_frame": True}
    elif cloud is not None and scans and "answer" in scans[0]:
        worst = [_marked(cloud(number), scans[number]) for number in worst_first(scans)[:MOST_WORST]]
        settings = {"columns": 4, "given_order": "worst first"}
    charts = []
    if len(scans) >= _FEWEST_OF_A_CURVE and "answer" in scans[0]:
        shares, accuracies = coverage_curve(scans)
        charts = [
            chart_of(
                "accuracy in %",
                {"right": (shares, accuracies)},
                "{} %",
                steps_are="share of answers kept",
                # A few wrong answers must not look like many.
                value_range=(min(90.0, 10 * math.floor(min(accuracies) / 10)), 100.0),
            )
        ]
    classes = class_table(class_scores, confusions)
    # With one split, its name says nothing.
    if len(metrics) == 1:
        (split,) = metrics
        classes[0] = [head.removeprefix(f"{split} ") for head in classes[0]]
    page = html_page(
        "evaluation.html",
        title=title,
        answers=[summary, *_mistakes(confusions)] if summary else _mistakes(confusions),
        metrics=metrics_table(metrics),
        charts=charts,
        classes=classes,
        matrices=matrices_of(confusions),
        # Where clouds can be put in another order, a list names it.
        worst_heading="Scans" if "given_order" in settings else "Scans, worst first",
        worst=viewer_page(worst, title="worst first", **settings) if worst else "",
        data=None,
    )
    return write_text(path, page)


def worst_first(scans: Sequence[Mapping[str, Any]]) -> list[int]:
    """Return the numbers of the scans: wrong ones by falling score, then right ones by rising score."""

    def badness(number: int) -> tuple[bool, float]:
        scan = scans[number]
        is_right = scan["answer"] == scan["true"]
        return is_right, scan["score"] if is_right else -scan["score"]

    return sorted(range(len(scans)), key=badness)


def coverage_curve(scans: Sequence[Mapping[str, Any]]) -> tuple[list[float], list[float]]:
    """Return shares of the scans, those with the highest scores first, and how many of them are right, in percent."""
    surest = sorted(scans, key=lambda scan: -scan["score"])
    right = np.cumsum([scan["answer"] == scan["true"] for scan in surest])
    counts = np.arange(1, len(surest) + 1)
    # About a hundred places of a curve are as many as can be seen, without the noise of the first few answers.
    start = max(len(surest) // 10, 5) - 1
    places = np.unique(np.linspace(start, len(surest) - 1, 100).astype(int))
    return (100 * counts[places] / len(surest)).tolist(), (100 * right[places] / counts[places]).tolist()


def _mistakes(confusions: Confusions) -> list[str]:
    """Return the most frequent mistakes in a sentence for each split."""
    sentences = []
    for matrix, names in confusions.values():
        wrong = np.asarray(matrix) - np.diag(np.diag(matrix))
        texts = []
        for place in np.argsort(-wrong, axis=None, kind="stable")[:_MOST_CONFUSED].tolist():
            true, other = divmod(place, len(names))
            if wrong[true, other]:
                texts.append(f"{names[true]} predicted as {names[other]} ({wrong[true, other]:,})")
        if texts:
            sentences.append(f"Most frequent mistakes: {', '.join(texts)}.")
    return sentences


def _marked(view: CloudView, scan: Mapping[str, Any]) -> CloudView:
    """Return the view of a scan with its answer, marked as right or wrong."""
    is_right = scan["answer"] == scan["true"]
    answer = scan["answer"] if is_right else f"{scan['true']} predicted as {scan['answer']}"
    note = f"{'✓' if is_right else '✗'} {answer}, score {scan['score']:.2f}"
    status = "right" if is_right else "wrong"
    return replace(view, title=scan["scan"], note=note, status=status, score=scan["score"], labels=None)


def _labeled_views(
    cloud: Callable[[int], CloudView], labels: Mapping[int, tuple[np.ndarray, np.ndarray]], names: Sequence[str]
) -> list[CloudView]:
    """Return true labels, predicted ones, and those that differ, of each scan."""
    equal, not_counted = len(names), len(names) + 1
    views = []
    for number, (true, predicted) in labels.items():
        view = replace(cloud(number), colors=None, values=None, note="")
        differences = np.where(true == predicted, equal, predicted)
        shown = {
            "true classes": np.where(true < 0, not_counted, true),
            "answers": predicted,
            "answers that differ": np.where(true < 0, not_counted, differences),
        }
        for kind, values in shown.items():
            views.append(replace(view, labels=values, title=f"{view.title}: {kind}"))
    return views
