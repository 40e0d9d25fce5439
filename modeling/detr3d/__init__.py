"""3DETR (arXiv 2109.08141): a detection transformer, from a point cloud to boxes."""

from hf_any3d.modeling.detr3d.configuration_detr3d import Detr3DConfig
from hf_any3d.modeling.detr3d.modeling_detr3d import (
    Detr3DForPointCloudObjectDetection,
    Detr3DModel,
    Detr3DPreTrainedModel,
)

__all__ = ["Detr3DConfig", "Detr3DForPointCloudObjectDetection", "Detr3DModel", "Detr3DPreTrainedModel"]
