"""PointNet (arXiv 1612.00593) and PointNet++ (arXiv 1706.02413): baselines that are trained from scratch."""

from hf_any3d.modeling.pointnet.configuration_pointnet import PointNet2Config, PointNetConfig
from hf_any3d.modeling.pointnet.modeling_pointnet import (
    PointNet2ForPointCloudClassification,
    PointNet2Model,
    PointNet2PreTrainedModel,
    PointNetForPointCloudClassification,
    PointNetModel,
    PointNetPreTrainedModel,
)

__all__ = [
    "PointNet2Config",
    "PointNet2ForPointCloudClassification",
    "PointNet2Model",
    "PointNet2PreTrainedModel",
    "PointNetConfig",
    "PointNetForPointCloudClassification",
    "PointNetModel",
    "PointNetPreTrainedModel",
]
