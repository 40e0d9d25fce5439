"""Metrics of the training programs, which are in `hf_any3d.evaluation`: the names that earlier versions had here."""

from hf_any3d.evaluation import (
    ComputePartMetrics,
    ConfusionMatrix,
    LabelPoints,
    MeanClassAccuracy,
    MeanIoU,
    OverallAccuracy,
    PartIoU,
    compute_classification_metrics,
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
