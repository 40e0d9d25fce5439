"""The accuracy of a classifier on scans that it did not learn from, in numbers and words."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hf_any3d.evaluation.classification import by_name
from hf_any3d.evaluation.confusion import class_accuracies, confusion_matrix, mean_class_accuracy, overall_accuracy
from hf_any3d.evaluation.scan_scores import ScanScores, probabilities
from hf_any3d.evaluation.statistics import share_at_most, wilson_interval
from hf_any3d.registry import NONE_OF_THESE
from hf_any3d.utils.markdown import inline
from hf_any3d.utils.messages import percent

_MOST_PAIRS = 3


@dataclass(frozen=True)
class Estimate:
    """Accuracy of a classifier on scans that it did not learn from."""

    matrix: np.ndarray  # (classes, classes) counts; row = true class, column = predicted class
    classes: list[str]  # also "none of these" if that is an answer
    loss: float  # mean cross-entropy
    how: str  # where the predictions come from, such as "cross-validation in 5 folds"
    counted: np.ndarray  # (rows,) bool, the rows that have an answer
    scans: ScanScores  # of the rows that have an answer

    @classmethod
    def from_logits(
        cls, logits: np.ndarray, labels: np.ndarray, classes: list[str], how: str, refused: np.ndarray | None = None
    ) -> Estimate:
        """Judge logits (rows, classes) by labels (rows,); rows of NaN do not count.

        The model calls the rows where `refused` (rows,) is true none of its classes.
        """
        # Rows that no fold holds out have no answer.
        counted = np.asarray(~np.isnan(logits).any(axis=1))
        logits, labels, answers = logits[counted], labels[counted], logits[counted].argmax(axis=1)
        if refused is not None and refused[counted].any():
            # A refusal is an answer of its own, in a last column.
            answers = np.where(refused[counted], len(classes), answers)
            classes = [*classes, NONE_OF_THESE]
        # (classes, classes), with a last row and column for refusals if there are any
        matrix = confusion_matrix(answers, labels, len(classes))
        # The loss stays the same, and exponentials of large logits do not overflow.
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[np.arange(len(labels)), labels]
        scans = ScanScores.of_classes(answers, labels, probabilities(logits).max(axis=1), classes)
        return cls(matrix, classes, float(losses.mean()), how, counted, scans)

    @property
    def total(self) -> int:
        """Scans that were judged."""
        return int(self.matrix.sum())

    @property
    def right(self) -> int:
        """Scans whose class was predicted."""
        return int(np.trace(self.matrix))

    @property
    def accuracy(self) -> float:
        """Share of right scans."""
        return overall_accuracy(self.matrix)

    @property
    def interval(self) -> tuple[float, float]:
        """Interval that holds the accuracy on further scans of this kind with a probability of 95 %."""
        return wilson_interval(self.right, self.total)

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a report."""
        low, high = self.interval
        return {
            "accuracy": self.accuracy,
            "mean_class_accuracy": mean_class_accuracy(self.matrix),
            "loss": self.loss,
            "accuracy_low": low,
            "accuracy_high": high,
            "clouds": float(self.total),
        }

    def class_accuracy(self) -> dict[str, float]:
        """Return the accuracy of each class that was judged."""
        return by_name(self.classes, class_accuracies(self.matrix))

    @property
    def refused(self) -> int:
        """Scans that were called none of these."""
        # Refusals are the last column.
        return int(self.matrix[:, -1].sum()) if NONE_OF_THESE in self.classes else 0

    @property
    def refused_at_most(self) -> float:
        """Share of further scans of this kind that are called none of these at most, with a confidence of 95 %."""
        return share_at_most(self.refused, self.total)

    def confused(self) -> list[tuple[str, str, int]]:
        """Return pairs of classes that were confused, (true, predicted, times), the most frequent first."""
        # The diagonal holds what was right.
        wrong = self.matrix - np.diag(np.diag(self.matrix))
        pairs = [
            (self.classes[true], self.classes[other], int(wrong[true, other]))
            for true, other in np.argwhere(wrong > 0).tolist()
        ]
        return sorted(pairs, key=lambda pair: -pair[2])

    def text(self) -> str:
        """Return accuracy, counts and interval in words."""
        low, high = self.interval
        return (
            f"{percent(self.accuracy)} % ({self.right} of {self.total} scans; 95 % interval {percent(low)} to "
            f"{percent(high)} %)"
        )

    def confusion_text(self) -> str:
        """Return which classes were confused, and which needs scans most, in words."""
        # Not to answer is no confusion.
        pairs = [pair for pair in self.confused() if pair[1] != NONE_OF_THESE]
        if not pairs and not self.refused:
            return "no classes confused"
        shown = ", ".join(f"{true} predicted as {other} ({times})" for true, other, times in pairs[:_MOST_PAIRS])
        shown = shown or "no classes confused"
        more = f" and {len(pairs) - _MOST_PAIRS} more pairs" if len(pairs) > _MOST_PAIRS else ""
        more += f"; {self.refused} called {NONE_OF_THESE}" if self.refused else ""
        # The class with the lowest accuracy gains most from further scans.
        scores = self.class_accuracy()
        name = min(scores, key=lambda name: scores[name])
        number = self.classes.index(name)
        right = int(self.matrix[number, number])
        total = int(self.matrix[number].sum())
        return f"{shown}{more}; more scans of {name} would help most ({right} of {total} correct)"

    def section(self) -> str:
        """Return the Markdown of a card's section."""
        lines = [f"Accuracy {self.text()}, by {self.how}."]
        rows = []
        for number, name in enumerate(self.classes):
            scans = int(self.matrix[number].sum())
            # No scan is of the class "none of these", which has no row.
            if scans:
                taken = [f"{inline(other)} {times}" for true, other, times in self.confused() if true == name]
                right = int(self.matrix[number, number])
                rows.append(f"| {inline(name)} | {scans} | {right} | {', '.join(taken)} |")
        return "\n".join([*lines, "", "| class | scans | correct | predicted as |", "|---|---|---|---|", *rows])
