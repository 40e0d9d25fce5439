"""Scans with their classes, as they are learned: near-duplicates among them, and doubts about their labels."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from hf_any3d.data.checks.clouds import names_for_one_class
from hf_any3d.data.checks.near_duplicates import MOST_COMPARED, SAMPLE, groups_of, near_duplicates
from hf_any3d.data.checks.scan_checksums import checksum_of_points
from hf_any3d.data.inputs import to_cloud
from hf_any3d.data.options import require_columns
from hf_any3d.data.tables.numpy_rows import numpy_rows
from hf_any3d.evaluation.scan_scores import file_names
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training.rows import class_names
from hf_any3d.utils.messages import printable


@dataclass(frozen=True)
class LabeledScans:
    """Scans with their classes, and the features that distinguish them."""

    classes: list[str]  # that have scans
    labels: np.ndarray  # (scans,) int64
    groups: np.ndarray  # (scans,) int64; scans of one number are near-duplicates, or belong together by the data
    digests: list[str]  # checksums of the points
    names: list[str]  # files, or rows

    @property
    def counts(self) -> dict[str, int]:
        """Number of scans of each class."""
        return {name: int((self.labels == number).sum()) for number, name in enumerate(self.classes)}

    @property
    def num_copies(self) -> int:
        """Number of scans that are near-duplicates of another one."""
        return len(self.groups) - len(set(self.groups.tolist()))

    @property
    def twins(self) -> list[tuple[int, int]]:
        """Numbers of scans that are near-duplicates: the first of its group, and each other one."""
        return equal(self.groups.tolist())

    def check(self, origin: str, allow_doubts: bool = False) -> None:
        """Refuse scans of one class; and without `allow_doubts`, which only warns, those that may have wrong labels.

        These are names of classes that differ only in case or spaces, and scans with two labels.
        """
        if len(self.classes) == 1:
            raise ValueError(f"{origin}: all scans are in one class, {self.classes[0]!r}; add scans of a second class")
        doubts = [*names_for_one_class(self.counts)]
        for first, second in equal(self.digests):
            label, other_label = (self.classes[self.labels[number]] for number in (first, second))
            if label != other_label:
                doubts.append(
                    f"{self.names[first]} and {self.names[second]} are the same scan with different labels, "
                    f"{label!r} and {other_label!r}; remove one of them"
                )
        for text in doubts:
            if not allow_doubts:
                raise ValueError(f"{origin}: {text}, or add --allow_doubts to train anyway")
            warnings.warn(printable(f"{origin}: {text}"), stacklevel=2)


def look_at(rows: Dataset, origin: str, group_column: str | None = None) -> LabeledScans:
    """Look at scans that are to be learned, rows with `points` and a ClassLabel `label`; messages name their origin.

    Equal values of `group_column` belong together, as near-duplicates do.
    """
    names = class_names(rows, origin)
    plain = rows.with_format(None)
    labels = np.asarray(plain["label"][:], dtype=np.int64)
    counts = np.bincount(labels, minlength=len(names))
    present = np.flatnonzero(counts)
    empty = [name for number, name in enumerate(names) if not counts[number]]
    if empty:
        warnings.warn(
            printable(f"{origin}: no scan of {', '.join(map(repr, empty))}; the class is not in the model"),
            stacklevel=2,
        )
    digests = []
    clouds = []
    processor = PointCloudProcessor(num_points=SAMPLE)
    for row in numpy_rows(rows):
        digests.append(checksum_of_points(to_cloud(row, ("xyz",)).points))
        if len(rows) <= MOST_COMPARED:
            # Repeated points of a smaller cloud make it unlike all but equal ones.
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)
                clouds.append(processor([row], return_tensors="pt")["points"][0])
    ties = equal(digests) + (near_duplicates(torch.stack(clouds)) if clouds else [])
    if group_column is not None:
        require_columns([group_column], rows.column_names)
    column = group_column or ("group" if "group" in rows.column_names else None)
    if column is not None:
        ties += equal(plain[column][:])
    return LabeledScans(
        classes=[names[number] for number in present],
        # Numbers of the classes that have scans, without gaps.
        labels=np.searchsorted(present, labels),
        groups=np.array(groups_of(len(rows), ties), dtype=np.int64),
        digests=digests,
        names=file_names(rows),
    )


def joined(earlier: LabeledScans, later: LabeledScans) -> tuple[LabeledScans, np.ndarray]:
    """Add scans to earlier ones, and return which of these are kept, (earlier scans,) bool; they are the first.

    Scans of equal points are one, with the later label. Classes are in alphabetical order.
    """
    kept = ~np.isin(earlier.digests, later.digests)
    classes = sorted({*(earlier.classes[label] for label in earlier.labels[kept]), *later.classes})
    labels = [classes.index(earlier.classes[label]) for label in earlier.labels[kept]]
    labels += [classes.index(later.classes[label]) for label in later.labels]
    numbers = np.flatnonzero(kept)
    # Numbers of groups are arbitrary; those of the later scans must only differ from the earlier ones.
    groups = np.concatenate([earlier.groups[kept], later.groups + len(earlier.labels) + 1])
    together = LabeledScans(
        classes=classes,
        labels=np.array(labels, dtype=np.int64),
        groups=groups.astype(np.int64),
        digests=[earlier.digests[number] for number in numbers] + later.digests,
        names=[earlier.names[number] for number in numbers] + later.names,
    )
    return together, kept


def equal(keys: Sequence[Any]) -> list[tuple[int, int]]:
    """Return pairs of places with equal keys: the first one, and each later one."""
    first: dict[Any, int] = {}
    return [(first[key], number) for number, key in enumerate(keys) if first.setdefault(key, number) != number]
