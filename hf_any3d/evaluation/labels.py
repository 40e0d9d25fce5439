"""Compare the labels of points with ground truth: two clouds of one scan, matched point by point.

`hf-any3d evaluate PREDICTED TRUTH` calls this for pairs of files.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from hf_any3d.data.checks.left_out_points import why_left_out
from hf_any3d.data.classes.las_classes import class_name
from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.frames.units import length_of_unit
from hf_any3d.utils.messages import counted, percent

# Distance within which two points are one, in meters; without a unit a share of the extent.
_TOLERANCE, _TOLERANCE_SHARE = 0.01, 1e-4
# Pairs of classes that are named as the most frequent confusions.
_MOST_CONFUSED = 5


def class_ious(matrix: np.ndarray) -> np.ndarray:
    """Compute intersection over union of each class from a confusion matrix (num_classes, num_classes).

    Returns:
        (num_classes,); NaN for a class that is neither true nor predicted anywhere.
    """
    intersection = np.diag(matrix)
    # Correct points are in both sums.
    union = matrix.sum(axis=0) + matrix.sum(axis=1) - intersection
    return np.divide(intersection, union, out=np.full(len(matrix), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Return the mean intersection over union of the classes that occur."""
    return float(np.nanmean(class_ious(matrix)))


@dataclass(frozen=True)
class Matches:
    """For each point of the truth its predicted point."""

    indices: np.ndarray  # (points of the truth,) int64, -1 for a point without one
    in_order: bool  # whether the points have the same places in the same order
    tolerance: float  # in the units of the files


def match_points(predicted: PointCloudData, truth: PointCloudData, tolerance: float | None = None) -> Matches:
    """Find the predicted point of each true one: the one of the same number, or else the nearest.

    Args:
        predicted: Cloud with predicted labels.
        truth: The same scan, perhaps with other points.
        tolerance: Largest distance of a match in the units of the files; by default a centimeter, and without a known
            unit 1/10,000 of the extent.

    Raises:
        PointCloudError: clouds in different units, or none of whose points are near each other.
    """
    # Of LAS without a coordinate system, meters
    other = length_of_unit(predicted)
    unit = length_of_unit(truth) or other
    # Feet and US survey feet differ by two millionths, and count as equal.
    if unit and other and not np.isclose(unit, other, rtol=1e-5):
        raise PointCloudError(f"a unit of {other:g} m, that of the truth has {unit:g} m; expected equal ones")
    places = _places(predicted)
    true_places = _places(truth)
    if tolerance is None:
        extent = float(np.ptp(true_places, axis=0).max())
        tolerance = _TOLERANCE / unit if unit else _TOLERANCE_SHARE * extent
    # Labels are mostly predicted for the points of the very file, so that no search is needed.
    if places.shape == true_places.shape and (np.abs(places - true_places).max(axis=1) <= tolerance).all():
        return Matches(np.arange(len(places)), True, tolerance)
    from scipy.spatial import KDTree

    # The bound itself does not belong to the search, but to the tolerance.
    distances, indices = KDTree(places).query(true_places, distance_upper_bound=np.nextafter(tolerance, np.inf))
    found = np.isfinite(distances)
    if not found.any():
        raise PointCloudError(
            f"none of the {len(places):,} points is within {tolerance:g} of one of the {len(true_places):,} of the "
            "truth; pass two files of the same scan"
        )
    return Matches(np.where(found, indices, -1).astype(np.int64), False, tolerance)


def points_that_count(cloud: PointCloudData) -> np.ndarray:
    """Return whether the label of each point (points,) is learned and judged, by the flags of LAS.

    Withheld points are deleted ones, which the standard leaves out of all processing. Synthetic points were not
    measured where they are, such as those of a water surface that a program has drawn, and lack what sensors measure.
    Where all points are synthetic, as in clouds of photographs, this tells nothing of single ones, and they count.
    """
    counts = np.ones(len(cloud), bool)
    for _, is_left_out in why_left_out(cloud):
        counts &= ~is_left_out
    return counts


def _places(cloud: PointCloudData) -> np.ndarray:
    # In double precision, in which offsets on the map keep their decimals
    places = cloud.points.astype(np.float64)
    return places if cloud.offset is None else places + cloud.offset


@dataclass
class LabelComparison:
    """Counts of true and predicted labels, of one pair of clouds or of several.

    Attributes:
        ignored: True labels that mean no class, whose points do not count.
        unclassified: Predicted labels that mean no class; they count as wrong, and are not classes.
        pairs: (true label, predicted label) -> number of points.
        not_counted: Ignored label -> number of points.
        unmatched: Points of the truth without a predicted one.
    """

    ignored: Collection[int] = ()
    unclassified: Collection[int] = ()
    pairs: Counter[tuple[int, int]] = field(default_factory=Counter)
    not_counted: Counter[int] = field(default_factory=Counter)
    unmatched: int = 0

    def add(self, predicted: np.ndarray, true: np.ndarray, matches: Matches) -> LabelComparison:
        """Count the labels of a pair of clouds, and return their counts alone."""
        # The counts of this pair alone, which are added to all others in the end
        own = LabelComparison(self.ignored, self.unclassified)
        found = matches.indices >= 0
        own.unmatched = int((~found).sum())
        # Labels as numbers of the rows and columns of a table of those that occur
        labels, rows = np.unique(true[found], return_inverse=True)
        answers, columns = np.unique(predicted[matches.indices[found]], return_inverse=True)
        # Each pair of labels as one number, which is many times faster than sorting pairs.
        counts = np.bincount(rows * len(answers) + columns, minlength=len(labels) * len(answers))
        for place in np.flatnonzero(counts).tolist():
            label = int(labels[place // len(answers)])
            answer = int(answers[place % len(answers)])
            count = int(counts[place])
            if self.is_ignored(label):
                own.not_counted[label] += count
            else:
                own.pairs[label, answer] += count
        self.merge(own)
        return own

    def merge(self, other: LabelComparison) -> None:
        """Add the counts of another comparison."""
        self.pairs += other.pairs
        self.not_counted += other.not_counted
        self.unmatched += other.unmatched

    def is_ignored(self, label: int) -> bool:
        """Return whether points of a true label do not count."""
        return label < 0 or label in self.ignored

    def has_no_class(self, label: int) -> bool:
        """Return whether a predicted label means that a point was not classified."""
        return label < 0 or label in self.unclassified

    def matrix(self) -> tuple[list[int], np.ndarray]:
        """Return the labels that occur, and the confusion matrix: rows are true, columns predicted."""
        labels = sorted({label for pair in self.pairs for label in pair})
        place = {label: number for number, label in enumerate(labels)}
        matrix = np.zeros((len(labels), len(labels)), np.int64)
        for (true, predicted), count in self.pairs.items():
            matrix[place[true], place[predicted]] = count
        return labels, matrix

    def figures(self, names: dict[int, str] | None = None) -> dict[str, Any]:
        """Return all figures: shares in [0, 1], None where nothing counts; `classes` has a row for each class."""
        labels, matrix = self.matrix()
        total = int(matrix.sum())
        right = np.diag(matrix)
        true = matrix.sum(axis=1)
        predicted = matrix.sum(axis=0)
        ious = class_ious(matrix)
        classes = [
            {
                "label": label,
                "name": class_name(label, names),
                "iou": float(ious[place]),
                "recall": _share(right[place], true[place]),
                "precision": _share(right[place], predicted[place]),
                "true_points": int(true[place]),
                "predicted_points": int(predicted[place]),
            }
            for place, label in enumerate(labels)
            # A label that means no class is one only where the truth has it.
            if true[place] or not self.has_no_class(label)
        ]
        # A class that the truth lacks has no recall.
        recalls = [row["recall"] for row in classes if row["recall"] is not None]
        return {
            "points": total + self.unmatched + sum(self.not_counted.values()),
            "counted": total,
            "unmatched": self.unmatched,
            "without_truth": {class_name(label, names): count for label, count in sorted(self.not_counted.items())},
            "never_classified": int(sum(predicted[n] for n, label in enumerate(labels) if self.has_no_class(label))),
            "accuracy": _share(right.sum(), total),
            "mean_iou": float(np.mean([row["iou"] for row in classes])) if classes else None,
            "mean_class_accuracy": float(np.mean(recalls)) if recalls else None,
            "classes": classes,
            "confusion": {"labels": labels, "counts": matrix.tolist()},
        }


def _share(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None


def not_counted_labels(whole: LabelComparison, names: dict[int, str]) -> str:
    """Return the true labels that do not count, with their points, as "12 of water"; "none" if there are none."""
    counts = whole.not_counted.most_common()
    return ", ".join(f"{count:,} of {class_name(label, names)}" for label, count in counts) or "none"


def _percent(share: float | None) -> str:
    return "     -" if share is None else f"{percent(share, 2):>6}"


def comparison_lines(
    figures: dict[str, Any],
    rows: list[dict[str, Any]],
    whole: LabelComparison,
    names: dict[int, str],
    not_counted: str = "without a true class",
) -> Iterator[str]:
    """Yield a table of the classes, with intervals where the figures have them, and the most frequent confusions."""
    # Files may have been matched in different ways, which the figures do not show.
    told = {"order": "equal coordinates in the same order", "nearest": "the nearest point within the tolerance"}
    for way, words in told.items():
        matched = [row for row in rows if row.get("matching") == way]
        if matched:
            total = sum(row["points"] for row in matched)
            found = total - sum(row["unmatched"] for row in matched)
            of_files = f" in {counted(len(matched), 'file')}" if len(rows) > 1 else ""
            yield f"matched by {words}: {found:,} of {total:,} points{of_files}"
    yield from _class_lines(figures)
    # By (true label, predicted label); equal ones are no confusion.
    wrong = Counter({pair: count for pair, count in whole.pairs.items() if pair[0] != pair[1]})
    if wrong:
        confused = [
            f"{class_name(true, names)} as {class_name(answer, names)} {count:,}"
            for (true, answer), count in wrong.most_common(_MOST_CONFUSED)
        ]
        yield f"most confused: {'; '.join(confused)}"
    if figures["never_classified"]:
        yield f"never classified by the prediction: {figures['never_classified']:,} points, which count as wrong"
    if whole.not_counted:
        yield f"{not_counted}, not counted: {not_counted_labels(whole, names)}"
    if figures["unmatched"]:
        yield f"without a predicted point within the tolerance, not counted: {figures['unmatched']:,} points"


def _class_lines(figures: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each class, and one for all."""
    width = max([len(row["name"]) for row in figures["classes"]] or [0])
    # Intervals are there for a model that was evaluated on several files.
    with_intervals = "mean_iou_low" in figures
    interval = "  95 % interval" if with_intervals else ""
    yield f"{'class':<{width}}     IoU{interval}  recall  precision  true points  predicted"
    for row in figures["classes"]:
        interval = f"  {_percent(row['iou_low'])} {_percent(row['iou_high'])}" if with_intervals else ""
        shares = f"{_percent(row['iou'])}{interval}  {_percent(row['recall'])}     {_percent(row['precision'])}"
        yield f"{row['name']:<{width}}  {shares}  {row['true_points']:>11,}  {row['predicted_points']:>9,}"
    mean = f"mean IoU {_percent(figures['mean_iou']).strip()} %"
    if with_intervals:
        low, high = (_percent(figures[name]).strip() for name in ("mean_iou_low", "mean_iou_high"))
        mean += f" (95 % interval {low} to {high} %)"
    yield (
        f"accuracy {_percent(figures['accuracy']).strip()} %   {mean}   "
        f"mean class {_percent(figures['mean_class_accuracy']).strip()} %   of {figures['counted']:,} points"
    )
