"""DGCNN (arXiv 1801.07829): edge convolutions on graphs of neighbors, for shapes and for rooms."""

from hf_any3d.modeling.dgcnn.configuration_dgcnn import DgcnnConfig
from hf_any3d.modeling.dgcnn.modeling_dgcnn import (
    DgcnnForPointCloudClassification,
    DgcnnForSemanticSegmentation,
    DgcnnModel,
    DgcnnPreTrainedModel,
)

__all__ = [
    "DgcnnConfig",
    "DgcnnForPointCloudClassification",
    "DgcnnForSemanticSegmentation",
    "DgcnnModel",
    "DgcnnPreTrainedModel",
]
