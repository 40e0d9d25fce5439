"""Look at scans before they are learned: classes, counts, labels that may be mistakes, and near-duplicates."""

from __future__ import annotations

import hashlib
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset

from hf_any3d.processing import PointCloudProcessor

# Points of each half of a cloud by which near-duplicates are found, and how much farther apart than two halves of one
# cloud they may be: 574 embedded shapes have their near-duplicates in a column, from which this was chosen.
_HALF = 256
_FARTHER = 1.15
# Radii and extents of clouds in the unit sphere that differ by more are not compared point by point.
_UNLIKE = 0.06


@dataclass(frozen=True)
class Scans:
    """Labeled scans, as training sees them.

    Attributes:
        classes: Names of the classes that have scans.
        labels: Class of each scan, (scans,) int64.
        groups: Scans of one number are near-duplicates, or belong together by the data, (scans,) int64.
        digests: Checksum of each scan's points.
        names: File of each scan, or its row.
    """

    classes: list[str]
    labels: np.ndarray
    groups: np.ndarray
    digests: list[str]
    names: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """Number of scans of each class."""
        return {name: int((self.labels == number).sum()) for number, name in enumerate(self.classes)}

    @property
    def num_copies(self) -> int:
        """Number of scans that are near-duplicates of another one."""
        return len(self.groups) - len(set(self.groups.tolist()))


def look_at(
    rows: Dataset,
    processor: PointCloudProcessor,
    origin: str,
    *,
    group_column: str | None = None,
    allow_doubts: bool = False,
) -> Scans:
    """Look at scans that are to be learned.

    Args:
        rows: Rows with `points` and `label`, a ClassLabel.
        processor: Prepares the clouds that are compared.
        origin: Name of the data, for messages.
        group_column: Column whose equal values belong together, besides near-duplicates.
        allow_doubts: Warn of labels that are probably mistakes, instead of refusing them.

    Raises:
        ValueError: There is one scan or one class; or without `allow_doubts`, names of classes differ only in upper
            and lower case, or a scan has two labels.
    """
    feature = rows.features.get("label")
    if not isinstance(feature, ClassLabel):
        raise ValueError(f"{origin}: label is {feature}; expected a ClassLabel, text or whole numbers from 0")
    plain = rows.with_format(None)
    given = np.asarray(plain["label"][:], dtype=np.int64)
    counts = np.bincount(given, minlength=len(feature.names))
    names = file_names(rows)
    if len(rows) == 1:
        raise ValueError(f"{origin}: one scan, {names[0]}; expected scans of at least two classes")
    present = np.flatnonzero(counts)
    if len(present) == 1:
        only = feature.names[present[0]]
        raise ValueError(f"{origin}: all {len(rows)} scans are of one class, {only!r}; expected at least two classes")
    if empty := [name for number, name in enumerate(feature.names) if not counts[number]]:
        warnings.warn(f"{origin}: no scan of {', '.join(map(repr, empty))}; not learned", UserWarning, stacklevel=2)
    classes = [feature.names[number] for number in present]
    labels = np.searchsorted(present, given)
    _check_case(classes, counts[present], origin, allow_doubts)
    digests = [digest_of(row["points"]) for row in rows.with_format("numpy")]
    _check_twice(digests, labels, classes, names, origin, allow_doubts)
    clouds = processor(rows.with_format("numpy"), return_tensors="pt")["points"][..., :3]  # (scans, points, 3)
    ties = near_duplicates(clouds)
    ties += _equal(digests)
    column = group_column or ("group" if "group" in rows.column_names else None)
    if column is not None:
        if column not in rows.column_names:
            raise ValueError(f"{origin}: no column {column!r}; there are {', '.join(rows.column_names)}")
        ties += _equal(plain[column][:])
    return Scans(classes, labels, _joined(len(rows), ties), digests, names)


def file_names(rows: Dataset) -> list[str]:
    """Return the file of each row, or "row 3"."""
    if "file" in rows.column_names:
        return [str(name) for name in rows.with_format(None)["file"][:]]
    return [f"row {number}" for number in range(len(rows))]


def digest_of(points: Any) -> str:
    """Return a checksum of a cloud's points."""
    return hashlib.sha256(np.ascontiguousarray(points, dtype=np.float32).tobytes()).hexdigest()[:32]


def near_duplicates(clouds: torch.Tensor) -> list[tuple[int, int]]:
    """Find pairs of clouds that are as close to each other as two samples of one cloud.

    Copies that are turned are not found.

    Args:
        clouds: (clouds, points, 3), in the unit sphere.
    """
    clouds = clouds[:, : 2 * _HALF]
    first, second = clouds.chunk(2, dim=1)
    shares = torch.linspace(0.05, 0.95, 10)
    radii = torch.quantile(clouds.norm(dim=-1), shares, dim=1).T  # (clouds, 10)
    spread = clouds.std(dim=1)  # (clouds, 3)
    signature = torch.cat([radii, spread], dim=1)
    alike = torch.cdist(signature, signature, p=torch.inf) < _UNLIKE
    pairs = torch.triu(alike, diagonal=1).nonzero()
    if not len(pairs):
        return []
    within = _distance(first, second)  # (clouds,)
    found = []
    for part in pairs.split(512):
        one, other = part.T
        between = (_distance(first[one], second[other]) + _distance(second[one], first[other])) / 2
        close = between <= _FARTHER * torch.minimum(within[one], within[other]) + 1e-6
        found += part[close].tolist()
    return [(one, other) for one, other in found]


def _distance(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return the mean distance to the nearest point, in both directions, of clouds (clouds, points, 3)."""
    apart = torch.cdist(one, other)  # (clouds, points, points)
    return (apart.amin(1).mean(1) + apart.amin(2).mean(1)) / 2


def _check_case(classes: Sequence[str], counts: np.ndarray, origin: str, allow_doubts: bool) -> None:
    first: dict[str, int] = {}
    for number, name in enumerate(classes):
        other = first.setdefault(" ".join(name.casefold().replace("_", " ").split()), number)
        if other != number:
            text = (
                f"{origin}: classes {classes[other]!r} ({counts[other]} scans) and {name!r} ({counts[number]}) differ "
                "only in case or spaces; give them one name"
            )
            _doubt(text, allow_doubts)


def _check_twice(
    digests: Sequence[str],
    labels: np.ndarray,
    classes: Sequence[str],
    names: Sequence[str],
    origin: str,
    allow_doubts: bool,
) -> None:
    first: dict[str, int] = {}
    for number, digest in enumerate(digests):
        other = first.setdefault(digest, number)
        if labels[other] != labels[number]:
            text = (
                f"{origin}: {names[other]} and {names[number]} are the same scan with two labels, "
                f"{classes[labels[other]]!r} and {classes[labels[number]]!r}; remove one of them"
            )
            _doubt(text, allow_doubts)


def _doubt(text: str, allow_doubts: bool) -> None:
    if not allow_doubts:
        raise ValueError(f"{text}, or add --allow_doubts")
    warnings.warn(text, UserWarning, stacklevel=2)


def _equal(keys: Sequence[Any]) -> list[tuple[int, int]]:
    first: dict[Any, int] = {}
    return [(first[key], number) for number, key in enumerate(keys) if first.setdefault(key, number) != number]


def _joined(count: int, ties: Sequence[tuple[int, int]]) -> np.ndarray:
    """Return a number for each of `count` scans, (count,): equal for those that ties connect."""
    parent = list(range(count))

    def root(number: int) -> int:
        while parent[number] != number:
            number = parent[number]
        return number

    for one, other in ties:
        low, high = sorted((root(one), root(other)))
        parent[high] = low
    return np.array([root(number) for number in range(count)], dtype=np.int64)


def class_counts(counts: dict[str, int]) -> str:
    """Return the counts of classes as text: the same number "each", else from the least to the largest."""
    values = Counter(counts.values())
    if len(values) == 1:
        return f"{next(iter(values))} each"
    least, most = min(counts, key=lambda name: counts[name]), max(counts, key=lambda name: counts[name])
    return f"{counts[least]} ({least}) to {counts[most]} ({most})"
