"""Pipelines, one file a task, and the models that they open without a name."""

from pathlib import Path

# All are imported, since those of single model types register themselves with the pipeline of their task.
from hf_any3d.pipelines.local_features import LocalFeaturesSegmentationPipeline
from hf_any3d.pipelines.point_cloud_classification import PointCloudClassificationPipeline
from hf_any3d.pipelines.point_cloud_feature_extraction import PointCloudFeatureExtractionPipeline
from hf_any3d.pipelines.point_cloud_object_detection import PointCloudObjectDetectionPipeline
from hf_any3d.pipelines.point_cloud_reconstruction import PointCloudReconstructionPipeline
from hf_any3d.pipelines.point_cloud_segmentation import PointCloudSegmentationPipeline
from hf_any3d.pipelines.point_cloud_text_to_text import PointCloudTextToTextPipeline
from hf_any3d.pipelines.room_layouts import LayoutDetectionPipeline, LayoutTextPipeline
from hf_any3d.pipelines.scene_features import scene_features
from hf_any3d.pipelines.zero_shot_point_cloud_classification import ZeroShotPointCloudClassificationPipeline
from hf_any3d.pipelines.zero_shot_point_cloud_segmentation import ZeroShotPointCloudSegmentationPipeline

__all__ = [
    "DEFAULT_MODELS",
    "LayoutDetectionPipeline",
    "LayoutTextPipeline",
    "LocalFeaturesSegmentationPipeline",
    "PointCloudClassificationPipeline",
    "PointCloudFeatureExtractionPipeline",
    "PointCloudObjectDetectionPipeline",
    "PointCloudReconstructionPipeline",
    "PointCloudSegmentationPipeline",
    "PointCloudTextToTextPipeline",
    "ZeroShotPointCloudClassificationPipeline",
    "ZeroShotPointCloudSegmentationPipeline",
    "default_model",
    "scene_features",
]

# Task -> the model that opens if none is named.
DEFAULT_MODELS = {"point-cloud-classification": Path(__file__).parents[1] / "default_model"}


def default_model(task: str = "point-cloud-classification") -> str:
    """Return the directory of the model that comes with the package for a task.

    `transformers.pipeline(task)` opens it if no model is named, with a warning that names it.
    """
    return str(DEFAULT_MODELS[task])
