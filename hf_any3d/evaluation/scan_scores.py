"""Scores of single scans, which evaluations record so that runs can be compared on the same scans."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_any3d.data.checks.scan_checksums import checksum_of_points
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.tables.numpy_rows import column_of, numpy_rows
from hf_any3d.utils.atomic_files import write_json

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import Trainer

FILE = "_scan_scores.json"
"""File of a run's output directory with the scores of the scans of each split; it is not pushed to the hub."""


@dataclass(frozen=True)
class ScanScores:
    """Scores of the scans of a split.

    Attributes:
        metric: Name of the metric that follows from them: `accuracy`, `mean_iou`, or that of a number of each scan.
        scans: A row for each scan: `scan`, its file or row; `digest`, a checksum of its points; and its score.
            For `accuracy`, the score is `true`, `answer` and the answer's `score`; for `mean_iou`, `classes` with the
            `points`, `answered` and `right` points of each; for others, a `value`, and the `group` of those that are
            averaged first.
    """

    metric: str
    scans: list[dict[str, Any]]

    @classmethod
    def of_classes(
        cls, answers: np.ndarray, labels: np.ndarray, scores: np.ndarray, names: Sequence[str]
    ) -> ScanScores:
        """Return the scores of answers (scans,), true classes (scans,) and the scores of the answers (scans,)."""
        scans = []
        for answer, label, score in zip(answers.tolist(), labels.tolist(), scores.tolist(), strict=True):
            scans.append({"true": names[label], "answer": names[answer], "score": round(score, 6)})
        return cls("accuracy", scans)

    @classmethod
    def of_points(cls, matrices: Sequence[np.ndarray], names: Sequence[str]) -> ScanScores:
        """Return the scores of the confusion matrix (classes, classes) of each scan's points."""
        scans = []
        for matrix in matrices:
            counts = zip(names, matrix.sum(axis=1), matrix.sum(axis=0), np.diag(matrix), strict=True)
            classes = {
                name: {"points": int(true), "answered": int(answered), "right": int(right)}
                for name, true, answered, right in counts
                if true or answered
            }
            scans.append({"classes": classes})
        return cls("mean_iou", scans)

    @classmethod
    def of_values(cls, metric: str, values: Sequence[float], groups: Sequence[str] | None = None) -> ScanScores:
        """Return the scores of a number for each scan, averaged within the groups first if there are any."""
        scans: list[dict[str, Any]] = [{"value": float(value)} for value in values]
        if groups is not None:
            for scan, group in zip(scans, groups, strict=True):
                scan["group"] = group
        return cls(metric, scans)

    def of_rows(self, rows: Dataset) -> ScanScores:
        """Return the scores with the names and checksums of the rows that they are of, in the same order."""
        digests = [checksum_of_points(to_cloud(row, ("xyz",)).points) for row in numpy_rows(rows)]
        return self.named(file_names(rows), digests)

    def named(self, names: Sequence[str], digests: Sequence[str]) -> ScanScores:
        """Return the scores with the names of the scans, and the checksums of their points."""
        named = []
        for name, digest, scan in zip(names, digests, self.scans, strict=True):
            named.append({"scan": name, "digest": digest, **scan})
        return ScanScores(self.metric, named)


def file_names(rows: Dataset) -> list[str]:
    """Return the file of each row, or "row 3"."""
    if "file" in rows.column_names:
        return [str(name) for name in column_of(rows, "file")]
    return [f"row {number}" for number in range(len(rows))]


def probabilities(logits: np.ndarray) -> np.ndarray:
    """Return the softmax of logits (scans, classes)."""
    # Exponentials of large logits do not overflow.
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    return shares / shares.sum(axis=1, keepdims=True)


def record_scans(trainer: Trainer, split: str, scores: ScanScores) -> None:
    """Keep the scores of a split's scans with the trainer, for its output directory."""
    vars(trainer).setdefault("scan_scores", {})[split] = scores


def recorded_scans(trainer: Trainer, splits: Mapping[Any, Dataset]) -> dict[str, ScanScores]:
    """Return what `record_scans` kept, with the names of the scans, which are the rows of the splits."""
    recorded: dict[str, ScanScores] = getattr(trainer, "scan_scores", {})
    return {split: scores.of_rows(splits[split]) for split, scores in recorded.items()}


def save_scan_scores(folder: str | os.PathLike, scores: Mapping[str, ScanScores]) -> None:
    """Write the scores of the scans of each split into the output directory of a run; those of an earlier run go."""
    if scores:
        write_json(Path(folder) / FILE, to_json(scores))
    else:
        (Path(folder) / FILE).unlink(missing_ok=True)


def to_json(scores: Mapping[str, ScanScores]) -> dict[str, Any]:
    """Return the scores of the scans of each split as values of JSON."""
    return {split: asdict(of_split) for split, of_split in scores.items()}
