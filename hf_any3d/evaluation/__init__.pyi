"""Public names for type checkers, written by `python -m docs.tools.stubs`."""

from hf_any3d.evaluation.classification import compute_classification_metrics as compute_classification_metrics
from hf_any3d.evaluation.confusion import (
    class_accuracies as class_accuracies,
    confusion_matrix as confusion_matrix,
    mean_class_accuracy as mean_class_accuracy,
    overall_accuracy as overall_accuracy,
)
from hf_any3d.evaluation.detection import detection_metrics as detection_metrics
from hf_any3d.evaluation.layouts import score_layouts as score_layouts
from hf_any3d.evaluation.metrics import (
    ConfusionMatrix as ConfusionMatrix,
    MeanClassAccuracy as MeanClassAccuracy,
    MeanIoU as MeanIoU,
    OverallAccuracy as OverallAccuracy,
    PartIoU as PartIoU,
)
from hf_any3d.evaluation.reconstruction import ComputeReconstructionMetrics as ComputeReconstructionMetrics
from hf_any3d.evaluation.segmentation import (
    ComputePartMetrics as ComputePartMetrics,
    LabelPoints as LabelPoints,
    compute_semantic_metrics as compute_semantic_metrics,
)
from hf_any3d.evaluation.unknown import UnknownScore as UnknownScore, is_none_of_these as is_none_of_these
from hf_any3d.evaluation.voting import evaluate_by_voting as evaluate_by_voting
from hf_any3d.evaluation.zero_shot import evaluate_class_names as evaluate_class_names
