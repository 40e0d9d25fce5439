"""Any2Point (arXiv 2404.07989): point clouds as input of any frozen transformer."""

from hf_any3d.modeling.any2point.configuration_any2point import Any2PointConfig, PointTokenizerConfig
from hf_any3d.modeling.any2point.modeling_any2point import (
    Any2PointForPartSegmentation,
    Any2PointForPointCloudClassification,
    Any2PointForSemanticSegmentation,
    Any2PointModel,
    Any2PointOutput,
    Any2PointPreTrainedModel,
)
from hf_any3d.modeling.any2point.modeling_any2point_zero_shot import Any2PointForZeroShotPointCloudClassification
from hf_any3d.modeling.any2point.modeling_point_tokenizer import (
    PointTokenizerForPointCloudClassification,
    PointTokenizerModel,
    PointTokenizerPreTrainedModel,
)
from hf_any3d.modeling.any2point.point_index import PointIndexer
from hf_any3d.modeling.point_encoders.zero_shot import ZeroShotOutput as Any2PointZeroShotOutput

__all__ = [
    "Any2PointConfig",
    "Any2PointForPartSegmentation",
    "Any2PointForPointCloudClassification",
    "Any2PointForSemanticSegmentation",
    "Any2PointForZeroShotPointCloudClassification",
    "Any2PointModel",
    "Any2PointOutput",
    "Any2PointPreTrainedModel",
    "Any2PointZeroShotOutput",
    "PointIndexer",
    "PointTokenizerConfig",
    "PointTokenizerForPointCloudClassification",
    "PointTokenizerModel",
    "PointTokenizerPreTrainedModel",
]
