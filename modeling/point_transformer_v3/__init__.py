"""Point Transformer V3 (arXiv 2312.10035) as Sonata, Concerto and Utonia pretrain it: encoders of scenes."""

from hf_any3d.modeling.point_transformer_v3.configuration_point_transformer_v3 import (
    PRESETS,
    PointTransformerV3Config,
)
from hf_any3d.modeling.point_transformer_v3.modeling_point_transformer_v3 import (
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3Model,
    PointTransformerV3Output,
    PointTransformerV3PreTrainedModel,
)

__all__ = [
    "PRESETS",
    "PointTransformerV3Config",
    "PointTransformerV3ForPointCloudClassification",
    "PointTransformerV3ForPointCloudSegmentation",
    "PointTransformerV3Model",
    "PointTransformerV3Output",
    "PointTransformerV3PreTrainedModel",
]
