"""Point Transformer V3 (arXiv 2312.10035): encoders of scenes, segmentation, and parts by name as of Find3D."""

from hf_any3d.modeling.point_transformer_v3.configuration_point_transformer_v3 import PRESETS, PointTransformerV3Config
from hf_any3d.modeling.point_transformer_v3.modeling_point_transformer_v3 import (
    PointTextOutput,
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3ForZeroShotPointCloudSegmentation,
    PointTransformerV3Model,
    PointTransformerV3Output,
    PointTransformerV3PreTrainedModel,
)

__all__ = [
    "PRESETS",
    "PointTextOutput",
    "PointTransformerV3Config",
    "PointTransformerV3ForPointCloudClassification",
    "PointTransformerV3ForPointCloudSegmentation",
    "PointTransformerV3ForZeroShotPointCloudSegmentation",
    "PointTransformerV3Model",
    "PointTransformerV3Output",
    "PointTransformerV3PreTrainedModel",
]
