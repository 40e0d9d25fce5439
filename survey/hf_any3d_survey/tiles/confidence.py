"""Estimate the IoUs of a model of a few tiles at places that it has not learned, with an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from hf_any3d.evaluation.segmentation import class_ious
from hf_any3d.utils.markdown import inline
from hf_any3d.utils.messages import percent

_DRAWS = 2000


@dataclass(frozen=True)
class TilesEstimate:
    """Confusion of points in tiles that were held out.

    Attributes:
        matrices: (units, classes, classes) counts of labeled points, row = true class, for each unit: site or tile.
        classes: Names of the classes.
        how: Where the answers come from.
        unit: What a unit is, "site" or "tile".
    """

    matrices: np.ndarray
    classes: list[str]
    how: str
    unit: str

    @property
    def count_name(self) -> str:
        """Name of the number of units in saved results, which count sites as places."""
        return "places" if self.unit == "site" else f"{self.unit}s"

    @property
    def matrix(self) -> np.ndarray:
        """Counts of all units together, (classes, classes)."""
        return self.matrices.sum(axis=0)

    @property
    def judged(self) -> list[int]:
        """Numbers of the classes that have points."""
        return np.flatnonzero(self.matrix.sum(axis=1)).tolist()

    @property
    def ious(self) -> np.ndarray:
        """IoU of each class over all units, (classes,)."""
        return class_ious(self.matrix)

    @property
    def mean_iou(self) -> float:
        """Mean over the classes that have points."""
        return float(np.mean(self.ious[self.judged]))

    def intervals(self, seed: int = 0, numbers: Sequence[int] | None = None) -> np.ndarray | None:
        """Return lowest and highest IoU of each class, and of their mean as the last, (classes + 1, 2).

        Units are drawn again with replacement, since points of one site are not independent; None for one unit.
        The mean is that of the classes `numbers`, by default of those that have points.

        Source: Efron, "Bootstrap methods" (1979), percentiles of 95 %.
        """
        count = len(self.matrices)
        if count < 2:
            return None
        # (draws, units), which units a draw consists of
        drawn = np.random.default_rng(seed).integers(count, size=(_DRAWS, count))
        # (draws, classes)
        ious = np.stack([class_ious(matrix) for matrix in self.matrices[drawn].sum(axis=1)])
        # A draw may lack a class, whose IoU is NaN in it and left out of mean and percentiles.
        with np.errstate(all="ignore"):
            both = np.column_stack([ious, np.nanmean(ious[:, self.judged if numbers is None else numbers], axis=1)])
            return np.nanpercentile(both, (2.5, 97.5), axis=0).T

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a report."""
        metrics = {"mean_iou": self.mean_iou, "accuracy": float(np.trace(self.matrix) / self.matrix.sum())}
        # A single unit has no interval; then the bounds are missing, not 0.
        intervals = self.intervals()
        if intervals is not None:
            metrics |= {"mean_iou_low": float(intervals[-1, 0]), "mean_iou_high": float(intervals[-1, 1])}
        return metrics | {self.count_name: float(len(self.matrices))}

    def class_ious(self) -> dict[str, float]:
        """Return the IoU of each class that was judged."""
        return {self.classes[number]: float(self.ious[number]) for number in self.judged}

    def lines(self) -> list[str]:
        """Return the mean and each class in words."""
        intervals = self.intervals()
        lines = [f"mean IoU: {_percent(self.mean_iou, None if intervals is None else intervals[-1])}, by {self.how}"]
        for number in self.judged:
            interval = None if intervals is None else intervals[number]
            line = f"  {self.classes[number]}: {_percent(self.ious[number], interval)}"
            predicted = self._mostly_predicted(number)
            lines.append(f"{line}, mostly predicted as {predicted}" if predicted else line)
        return lines

    def section(self) -> str:
        """Return the Markdown of a card's section."""
        intervals = self.intervals()
        lines = [f"Mean IoU {_percent(self.mean_iou, None if intervals is None else intervals[-1])}, by {self.how}."]
        lines += ["", "| class | points | IoU | 95 % interval | mostly predicted as |", "|---|---|---|---|---|"]
        for number in self.judged:
            interval = "unknown" if intervals is None else f"{intervals[number, 0]:.2f} to {intervals[number, 1]:.2f}"
            points = int(self.matrix[number].sum())
            # Names come from files, and could break the table.
            predicted = inline(self._mostly_predicted(number) or "none")
            lines.append(
                f"| {inline(self.classes[number])} | {points:,} | {self.ious[number]:.2f} | {interval} | {predicted} |"
            )
        return "\n".join(lines)

    def _mostly_predicted(self, number: int) -> str:
        """Return the class that most wrong points of a class get, and their share; empty below a hundredth."""
        wrong = self.matrix[number].astype(float)
        # Right answers are no confusion.
        wrong[number] = 0
        share = wrong.max() / max(self.matrix[number].sum(), 1)
        if share < 0.01:
            return ""
        return f"{self.classes[int(wrong.argmax())]} ({percent(share)} %)"


@dataclass(frozen=True)
class Judged:
    """Judgment of models on tiles that they had not learned.

    Attributes:
        estimate: IoUs.
        temperature: Divisor of the logits that calibrates them.
        terms: Terms (rows,) of the unknown score, by their fields in the config.
        folds: (rows,) fold of each row.
    """

    estimate: TilesEstimate
    temperature: float
    terms: dict[str, torch.Tensor]
    folds: np.ndarray


def _percent(value: float, interval: np.ndarray | None) -> str:
    text = f"{percent(value)} %"
    if interval is None:
        return text
    return f"{text} (95 % interval {percent(interval[0])} to {percent(interval[1])} %)"
