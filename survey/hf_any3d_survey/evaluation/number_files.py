"""Compare numbers of things in files with ground truth: pairs of files, rows of things, and a page of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.checks.left_out_points import count_left_out, left_out_words
from hf_any3d.data.files import PointCloudData, PointCloudFileError, file_errors
from hf_any3d.data.files.input_files import Cloud, InputFile
from hf_any3d.evaluation.label_files import FilePair
from hf_any3d.evaluation.labels import match_points, points_that_count
from hf_any3d.visualization.show import write_views
from hf_any3d.visualization.things import number_colors
from hf_any3d.visualization.viewer import CloudView
from hf_any3d_survey.evaluation.instances import InstanceComparison, compare_instances, instance_figures

_LEAST_MATCHED = 0.5  # share of the true points
# Names of what a page shows, by the numbers of its labels, and their colors.
_KINDS = ("no thing", "found", "missed", "invented")
_COLORS = np.array([[0.8, 0.8, 0.8], [0.17, 0.6, 0.29], [0.84, 0.23, 0.23], [0.91, 0.53, 0.16]])


@dataclass(frozen=True)
class ComparedNumbers:
    """A pair of clouds after their comparison."""

    name: str
    truth: PointCloudData
    comparison: InstanceComparison
    true: np.ndarray  # (points that are judged,) numbers
    answers: np.ndarray  # (points that are judged,) numbers
    found: np.ndarray  # (points of the truth,) which of them are judged

    @property
    def f1(self) -> float:
        """F1 of the things; 1 without any on either side, where there is nothing to see."""
        f1 = instance_figures([self.comparison])["f1"]
        return 1.0 if f1 is None else f1

    def rows_of_things(self) -> list[dict[str, Any]]:
        """Return a row for each true thing."""
        true = self.comparison.true
        columns = (true.numbers, true.points, self.comparison.found, true.best_ious, true.partners)
        return [
            {
                "file": self.name,
                "number": number,
                "points": points,
                "found": found,
                "best_iou": round(iou, 4),
                "predicted_number": partner,
            }
            for number, points, found, iou, partner in zip(*(column.tolist() for column in columns), strict=True)
        ]


def compare_numbers(
    pair: FilePair, column: str, true_column: str, tolerance: float | None = None, least_points: int = 10
) -> tuple[ComparedNumbers, dict[str, Any]]:
    """Compare a pair of files.

    Args:
        pair: The files.
        column: Column with the predicted number of each point's thing; 0 is none.
        true_column: The same of the truth.
        tolerance: Largest distance of matched points, see `match_points`.
        least_points: Things with fewer points do not count.

    Returns:
        The clouds after their comparison, and a row of figures.

    Raises:
        PointCloudFileError: A column has words, or fewer than half of the true points have a match.
    """
    predicted, answers = _read_numbers(pair.predicted, column)
    truth, true = _read_numbers(pair.truth, true_column)
    with file_errors(predicted.name):
        matches = match_points(predicted.data, truth.data, tolerance)
    matched = int((matches.indices >= 0).sum())
    if matched < _LEAST_MATCHED * len(truth.data):
        raise PointCloudFileError(
            f"{predicted.name}: {matched:,} of the {len(truth.data):,} points of {truth.name} have a predicted point "
            f"within {matches.tolerance:g}; expected at least half of them (--tolerance)"
        )
    # Withheld points are not judged, as in comparisons of labels.
    found = (matches.indices >= 0) & points_that_count(truth.data)
    answers = answers[matches.indices[found]]
    true = true[found]
    comparison = compare_instances(answers, true, least_points=least_points)
    row: dict[str, Any] = {
        "file": pair.name,
        "matching": "order" if matches.in_order else "nearest",
        "tolerance": matches.tolerance,
        "unmatched": len(truth.data) - matched,
        **instance_figures([comparison]),
    }
    warned = [*predicted.warnings, *truth.warnings]
    left_out = left_out_words(count_left_out(truth.data), len(truth.data))
    if left_out:
        warned.append(left_out)
    if row["unmatched"]:
        warned.append(f"{row['unmatched']:,} points of the truth have no predicted point within {matches.tolerance:g}")
    if warned:
        row["warnings"] = warned
    return ComparedNumbers(pair.name, truth.data, comparison, true, answers, found), row


def _read_numbers(path: Path, column: str) -> tuple[Cloud, np.ndarray]:
    """Return a cloud, and the numbers (points,) in a column of it."""
    cloud = InputFile(str(path), label_field=column).read()
    if cloud.data.labels is None or cloud.data.label_names is not None:
        raise PointCloudFileError(f"{cloud.name}: column {column!r} has words; expected numbers of things")
    return cloud, cloud.data.labels


def write_compared_numbers(page: Path, compared: Sequence[ComparedNumbers]) -> None:
    """Write a row for each scan: true things, which are found or missed, and predicted ones, right or invented."""
    no_thing, found, missed, invented = range(len(_KINDS))
    views = []
    for one in compared:
        points = one.truth.points[one.found]
        true, predicted = one.comparison.true, one.comparison.predicted
        # Things that are too small to count are shown as none.
        truth_kinds = np.where(np.isin(one.true, true.numbers), missed, no_thing)
        truth_kinds[np.isin(one.true, true.numbers[one.comparison.found])] = found
        answer_kinds = np.where(np.isin(one.answers, predicted.numbers), invented, no_thing)
        answer_kinds[np.isin(one.answers, predicted.numbers[one.comparison.right])] = found
        shown = {"truth": (one.true, truth_kinds), "prediction": (one.answers, answer_kinds)}
        for kind, (numbers, kinds) in shown.items():
            title = f"{one.name}: {kind}"
            own: dict[str, Any] = {"title": title, "color_name": "object", "up_axis": one.truth.up_axis}
            views.append(CloudView(points, number_colors(numbers), kinds, **own))
    # Both views of a scan have one frame, so that they can be compared.
    write_views(
        page,
        views,
        title="true and predicted things",
        columns=2,
        rows_share_frame=True,
        names=_KINDS,
        label_name="kind",
        palette=_COLORS,
    )
