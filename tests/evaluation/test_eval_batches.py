"""Metrics are the same, however the rows of an evaluation are handed over."""

import numpy as np
import pytest
import torch
from transformers import EvalPrediction

from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.evaluation.reconstruction import METRICS, ComputeReconstructionMetrics
from hf_any3d.evaluation.segmentation import ComputePartMetrics, compute_semantic_metrics
from hf_any3d.evaluation.zero_shot import compute_zero_shot_metrics

DRAWN = np.random.default_rng(0)
LOGITS = DRAWN.standard_normal((7, 4)).astype(np.float32)
CLASSES = DRAWN.integers(0, 4, 7)
SEVERAL = DRAWN.integers(0, 2, (7, 4)).astype(np.float32)
POINTS, TRUE = DRAWN.integers(0, 4, (2, 7, 9))
# Clouds of several sizes, filled up as by Trainer.
POINTS[2, 5:], TRUE[2, 5:] = -100, -100
SCORES = DRAWN.random((7, len(METRICS)))
CODES = DRAWN.integers(0, 5, (7, 3))
CATEGORIES = DRAWN.integers(0, 2, 7)
METRICS_OF = {
    "classes": (compute_classification_metrics, LOGITS, CLASSES),
    "classes beside other outputs": (compute_classification_metrics, (LOGITS, SCORES), CLASSES),
    "several classes": (compute_classification_metrics, LOGITS, SEVERAL),
    "regression": (compute_classification_metrics, LOGITS[:, :1], LOGITS[:, 1]),
    "unseen classes": (compute_zero_shot_metrics([1, 3]), LOGITS, CLASSES),
    "points": (compute_semantic_metrics, POINTS, TRUE),
    "parts": (ComputePartMetrics([[0, 1], [2, 3]]), POINTS, (TRUE, CATEGORIES)),
    "reconstruction": (ComputeReconstructionMetrics(), (SCORES, CODES), None),
}


def batches(values, size, make):
    """Batches of the rows, as Trainer keeps them apart; of tuples, a tuple each."""
    if values is None:
        return None
    parts = values if isinstance(values, tuple) else (values,)
    found = [tuple(make(part[start : start + size]) for part in parts) for start in range(0, 7, size)]
    return found if isinstance(values, tuple) else [batch for (batch,) in found]


def one_by_one(values):
    """Lists of rows, without what fills them up."""
    if values is None or isinstance(values, tuple):
        return None if values is None else tuple(map(one_by_one, values))
    return [row[row != -100].tolist() if row.ndim else row.item() for row in values]


def objects(values):
    """Arrays of objects, as numpy makes of rows of several lengths."""
    if values is None or isinstance(values, tuple):
        return None if values is None else tuple(map(objects, values))
    found = np.empty(len(values), dtype=object)
    found[:] = [row[row != -100] if row.ndim else row for row in values]
    return found


def unfilled(batch):
    """A batch without the columns that only fill it up."""
    return batch if batch.ndim < 2 or batch.dtype.kind == "f" else batch[:, : (batch != -100).sum(axis=1).max()]


FORMS = {
    "batches of 3": lambda values: batches(values, 3, np.array),
    "batches of 1": lambda values: batches(values, 1, unfilled),
    "one batch": lambda values: batches(values, 7, np.array),
    "batches of tensors": lambda values: batches(values, 4, torch.tensor),
    "batches of lists": lambda values: batches(values, 2, np.ndarray.tolist),
    "lists": one_by_one,
    "objects": objects,
}


@pytest.mark.parametrize("kind", METRICS_OF)
def test_metrics_are_those_of_joined_arrays(kind):
    compute, predictions, labels = METRICS_OF[kind]
    expected = compute(EvalPrediction(predictions, labels))
    for name, form in FORMS.items():
        found = compute(EvalPrediction(form(predictions), form(labels)))
        assert found == pytest.approx(expected, abs=1e-6), name
