"""Evaluate models on point clouds: metrics of each task, and published protocols for models that answer questions.

Names are imported when first used, since `evaluate` and `datasets` take seconds to import.
"""

from hf_any3d.modeling.lazy_names import names_on_use

_MODULES = {
    "classification": ("compute_classification_metrics",),
    "confusion": ("class_accuracies", "confusion_matrix", "mean_class_accuracy", "overall_accuracy"),
    "detection": ("detection_metrics",),
    "layouts": ("score_layouts",),
    "metrics": ("ConfusionMatrix", "MeanClassAccuracy", "MeanIoU", "OverallAccuracy", "PartIoU"),
    "reconstruction": ("ComputeReconstructionMetrics",),
    "segmentation": ("ComputePartMetrics", "LabelPoints", "compute_semantic_metrics"),
    "unknown": ("UnknownScore", "is_none_of_these"),
    "voting": ("evaluate_by_voting",),
    "zero_shot": ("evaluate_class_names",),
}
__all__, __getattr__, __dir__ = names_on_use(__name__, _MODULES)
