"""ACT (arXiv 2212.08320): autoencoders as cross-modal teachers."""

from hf_any3d.modeling.act.codebook import gumbel_temperature, kl_weight
from hf_any3d.modeling.act.configuration_act import ActAutoencoderConfig, ActConfig
from hf_any3d.modeling.act.modeling_act import (
    ActForPartSegmentation,
    ActForPointCloudClassification,
    ActForPreTraining,
    ActForPreTrainingOutput,
    ActForSemanticSegmentation,
    ActModel,
    ActOutput,
    ActPreTrainedModel,
)
from hf_any3d.modeling.act.modeling_act_autoencoder import ActAutoencoder, ActAutoencoderOutput

__all__ = [
    "ActAutoencoder",
    "ActAutoencoderConfig",
    "ActAutoencoderOutput",
    "ActConfig",
    "ActForPartSegmentation",
    "ActForPointCloudClassification",
    "ActForPreTraining",
    "ActForPreTrainingOutput",
    "ActForSemanticSegmentation",
    "ActModel",
    "ActOutput",
    "ActPreTrainedModel",
    "gumbel_temperature",
    "kl_weight",
]
