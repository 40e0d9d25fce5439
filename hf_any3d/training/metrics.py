"""Metrics of the training programs, as `evaluate` modules and as `compute_metrics` functions."""

from hf_any3d.evaluation.classification import (
    ConfusionMatrix,
    MeanClassAccuracy,
    OverallAccuracy,
    compute_classification_metrics,
)
from hf_any3d.evaluation.segmentation import (
    ComputePartMetrics,
    LabelPoints,
    MeanIoU,
    PartIoU,
    compute_semantic_metrics,
)

__all__ = [
    "ComputePartMetrics",
    "ConfusionMatrix",
    "LabelPoints",
    "MeanClassAccuracy",
    "MeanIoU",
    "OverallAccuracy",
    "PartIoU",
    "compute_classification_metrics",
    "compute_semantic_metrics",
]
