"""Pipelines: from files to answers, one file a task."""

from hf_any3d.pipelines.point_cloud_classification import PointCloudClassificationPipeline

__all__ = ["PointCloudClassificationPipeline"]
