"""Classification metrics as `evaluate` modules that live in the package, so that none is fetched from the hub."""

import datasets
import evaluate
import numpy as np
from transformers import EvalPrediction

from hf_any3d.evaluation import classification as scores

_INPUTS = """
Args:
    predictions: predicted classes, integers from 0.
    references: true classes, integers from 0.
"""


class _ClassificationMetric(evaluate.Metric):
    """What the three metrics share: pairs of integer classes in, a confusion matrix inside."""

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=type(self).__doc__ or "",
            citation="",
            inputs_description=_INPUTS,
            features=datasets.Features(
                {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
            ),
            format="numpy",
        )


class OverallAccuracy(_ClassificationMetric):
    """Share of all samples whose class is predicted right, in [0, 1]: `{"accuracy": float}`."""

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"accuracy": scores.overall_accuracy(scores.confusion_matrix(predictions, references))}


class MeanClassAccuracy(_ClassificationMetric):
    """Mean of the classes' own accuracies, in [0, 1]: `{"mean_class_accuracy": float}`.

    Classes that never occur in the references are left out of the mean.
    """

    def _compute(self, predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"mean_class_accuracy": scores.mean_class_accuracy(scores.confusion_matrix(predictions, references))}


class ConfusionMatrix(_ClassificationMetric):
    """Counts of true classes (rows) taken for predicted ones (columns): `{"confusion_matrix": array}`.

    `compute(num_classes=40)` fixes the size; otherwise the largest class seen does.
    """

    def _compute(
        self, predictions: np.ndarray, references: np.ndarray, num_classes: int | None = None
    ) -> dict[str, np.ndarray]:
        return {"confusion_matrix": scores.confusion_matrix(predictions, references, num_classes)}


def compute_classification_metrics(eval_prediction: EvalPrediction) -> dict[str, float]:
    """Overall and mean class accuracy of logits; a `compute_metrics` for Trainer.

    Args:
        eval_prediction: predictions (samples, num_classes), or a tuple that begins with them, and label_ids
            (samples,).

    Returns:
        `accuracy` and `mean_class_accuracy`, both in [0, 1].

    Raises:
        ValueError: logits of another shape or with NaN, whose largest entry would mean nothing.
    """
    logits = eval_prediction.predictions
    logits = np.asarray(logits[0] if isinstance(logits, tuple) else logits)
    if logits.ndim != 2:
        raise ValueError(f"logits have shape {logits.shape}; expected (samples, num_classes)")
    if np.isnan(logits).any():
        raise ValueError("logits have NaN; the model has diverged or its input was not finite")
    matrix = scores.confusion_matrix(logits.argmax(axis=1), eval_prediction.label_ids, num_classes=logits.shape[1])
    return {"accuracy": scores.overall_accuracy(matrix), "mean_class_accuracy": scores.mean_class_accuracy(matrix)}
