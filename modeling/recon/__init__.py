"""ReCon (arXiv 2302.02318): a point transformer with queries that learn from images and texts."""

from hf_any3d.modeling.recon.configuration_recon import ReconConfig
from hf_any3d.modeling.recon.modeling_recon import (
    ReconForPartSegmentation,
    ReconForPointCloudClassification,
    ReconForPreTraining,
    ReconForPreTrainingOutput,
    ReconForSemanticSegmentation,
    ReconForZeroShotPointCloudClassification,
    ReconModel,
    ReconPreTrainedModel,
)

__all__ = [
    "ReconConfig",
    "ReconForPartSegmentation",
    "ReconForPointCloudClassification",
    "ReconForPreTraining",
    "ReconForPreTrainingOutput",
    "ReconForSemanticSegmentation",
    "ReconForZeroShotPointCloudClassification",
    "ReconModel",
    "ReconPreTrainedModel",
]
