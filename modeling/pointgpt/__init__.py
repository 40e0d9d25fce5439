"""PointGPT (arXiv 2305.11487): a causal point transformer that generates each patch from those before it."""

from hf_any3d.modeling.pointgpt.configuration_pointgpt import PointGPTConfig
from hf_any3d.modeling.pointgpt.modeling_pointgpt import (
    PointGPTForPartSegmentation,
    PointGPTForPointCloudClassification,
    PointGPTForPreTraining,
    PointGPTForPreTrainingOutput,
    PointGPTForSemanticSegmentation,
    PointGPTModel,
    PointGPTOutput,
    PointGPTPreTrainedModel,
)

__all__ = [
    "PointGPTConfig",
    "PointGPTForPartSegmentation",
    "PointGPTForPointCloudClassification",
    "PointGPTForPreTraining",
    "PointGPTForPreTrainingOutput",
    "PointGPTForSemanticSegmentation",
    "PointGPTModel",
    "PointGPTOutput",
    "PointGPTPreTrainedModel",
]
