"""Pipelines, one file a task."""

from hf_any3d.pipelines.point_cloud_classification import PointCloudClassificationPipeline
from hf_any3d.pipelines.point_cloud_feature_extraction import PointCloudFeatureExtractionPipeline
from hf_any3d.pipelines.point_cloud_reconstruction import PointCloudReconstructionPipeline
from hf_any3d.pipelines.point_cloud_segmentation import PointCloudSegmentationPipeline
from hf_any3d.pipelines.point_cloud_text_to_text import PointCloudTextToTextPipeline
from hf_any3d.pipelines.zero_shot_point_cloud_classification import ZeroShotPointCloudClassificationPipeline

__all__ = [
    "PointCloudClassificationPipeline",
    "PointCloudFeatureExtractionPipeline",
    "PointCloudReconstructionPipeline",
    "PointCloudSegmentationPipeline",
    "PointCloudTextToTextPipeline",
    "ZeroShotPointCloudClassificationPipeline",
]
