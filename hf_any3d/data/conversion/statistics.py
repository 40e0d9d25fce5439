"""Counts, bounds and sizes of the clouds of a split."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from datasets import ClassLabel, Features


@dataclass
class SplitStatistics:
    """Statistics that are updated row by row and can be merged.

    Attributes:
        num_rows: number of clouds.
        num_points: points of all clouds together.
        fewest: points of the smallest cloud.
        most: points of the largest cloud.
        lower: smallest x, y and z of all points.
        upper: largest x, y and z of all points.
        labels: class name -> number of clouds, if there is a ClassLabel column `label`.
    """

    num_rows: int = 0
    num_points: int = 0
    fewest: int | None = None
    most: int | None = None
    lower: list[float] | None = None
    upper: list[float] | None = None
    labels: Counter = field(default_factory=Counter)

    def add(self, row: Mapping[str, object], features: Features) -> None:
        """Count one row.

        Args:
            row: with `points` (num_points, 3 or more) where the dataset has that column.
            features: the types of its columns.
        """
        one = SplitStatistics(num_rows=1)
        if "points" in row:
            points = np.asarray(row["points"])
            one.num_points = one.fewest = one.most = len(points)
            one.lower, one.upper = points[:, :3].min(0).tolist(), points[:, :3].max(0).tolist()
        feature = features.get("label")
        if isinstance(feature, ClassLabel):
            one.labels[feature.int2str(int(row["label"]))] = 1
        self.merge(one)

    def merge(self, other: "SplitStatistics") -> None:
        """Add the rows counted by `other`."""
        self.num_rows += other.num_rows
        self.num_points += other.num_points
        self.labels.update(other.labels)
        for name, choose in (("fewest", min), ("most", max)):
            known = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            setattr(self, name, choose(known) if known else None)
        for name, choose in (("lower", min), ("upper", max)):
            known = [value for value in (getattr(self, name), getattr(other, name)) if value is not None]
            setattr(self, name, [choose(values) for values in zip(*known, strict=True)] or None)

    def as_dict(self) -> dict:
        """Return the entry of a split in `meta/stats.json`."""
        described: dict = {"num_rows": self.num_rows}
        if self.fewest is not None:
            mean = round(self.num_points / self.num_rows, 3)
            described["points_per_cloud"] = {"min": self.fewest, "mean": mean, "max": self.most}
            described["num_points"] = self.num_points
            described["bounds"] = {"min": self.lower, "max": self.upper}
        if self.labels:
            described["labels"] = dict(sorted(self.labels.items()))
        return described

    @classmethod
    def from_dict(cls, described: Mapping) -> "SplitStatistics":
        """Restore statistics from `as_dict`."""
        sizes, bounds = described.get("points_per_cloud", {}), described.get("bounds", {})
        return cls(
            described["num_rows"],
            described.get("num_points", 0),
            sizes.get("min"),
            sizes.get("max"),
            bounds.get("min"),
            bounds.get("max"),
            Counter(described.get("labels", {})),
        )
