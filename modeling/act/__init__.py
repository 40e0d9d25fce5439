"""ACT (arXiv 2212.08320): autoencoders as cross-modal teachers.

Names are imported when first used, since the network of a classifier alone opens in half the time.
"""

from hf_any3d.modeling.lazy_names import names_on_use

_MODULES = {
    "codebook": ("gumbel_temperature", "kl_weight"),
    "configuration_act": ("ActAutoencoderConfig", "ActConfig"),
    "modeling_act": (
        "ActForPartSegmentation",
        "ActForPointCloudClassification",
        "ActForPreTraining",
        "ActForPreTrainingOutput",
        "ActForSemanticSegmentation",
        "ActModel",
        "ActOutput",
        "ActPreTrainedModel",
    ),
    "modeling_act_autoencoder": ("ActAutoencoder", "ActAutoencoderOutput"),
    "modeling_point_bert": (
        "PointBERTForPartSegmentation",
        "PointBERTForPreTraining",
        "PointBERTForPreTrainingOutput",
    ),
    "modeling_point_mae": ("PointMAEForPreTraining",),
}
__all__, __getattr__, __dir__ = names_on_use(__name__, _MODULES)
