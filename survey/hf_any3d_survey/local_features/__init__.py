"""Numbers of the surroundings of each point, which need no training, and a small network on them: for a few tiles.

Names are imported when first used, since the network alone opens in half the time of a model of transformers.
"""

from hf_any3d.modeling.lazy_names import names_on_use

_MODULES = {
    "configuration_local_features": ("LocalFeaturesConfig",),
    "modeling_local_features": (
        "LocalFeaturesForPointCloudSegmentation",
        "LocalFeaturesModel",
        "LocalFeaturesPreTrainedModel",
    ),
    "network": ("LocalFeaturesOutput",),
}
__all__, __getattr__, __dir__ = names_on_use(__name__, _MODULES)
