"""ACT (arXiv 2212.08320): autoencoders as cross-modal teachers."""

from hf_any3d.modeling.act.configuration_act import ActConfig
from hf_any3d.modeling.act.modeling_act import (
    ActForPointCloudClassification,
    ActModel,
    ActOutput,
    ActPreTrainedModel,
)
from hf_any3d.modeling.act.modeling_act_segmentation import ActForPartSegmentation, ActForSemanticSegmentation

__all__ = [
    "ActConfig",
    "ActForPartSegmentation",
    "ActForPointCloudClassification",
    "ActForSemanticSegmentation",
    "ActModel",
    "ActOutput",
    "ActPreTrainedModel",
]
