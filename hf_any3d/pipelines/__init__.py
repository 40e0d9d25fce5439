"""Pipelines of all tasks, which are in the folders of `hf_any3d.tasks`, and the models that open without a name."""

import importlib
from pathlib import Path

from hf_any3d.extensions import EXTENSIONS
from hf_any3d.tasks.chat.pipeline import PointCloudTextToTextPipeline
from hf_any3d.tasks.classification.pipeline import PointCloudClassificationPipeline
from hf_any3d.tasks.detection.pipeline import PointCloudObjectDetectionPipeline
from hf_any3d.tasks.detection.room_layouts import LayoutDetectionPipeline, LayoutTextPipeline
from hf_any3d.tasks.features.pipeline import PointCloudFeatureExtractionPipeline
from hf_any3d.tasks.features.scene_features import scene_features
from hf_any3d.tasks.parts_by_name.pipeline import ZeroShotPointCloudSegmentationPipeline
from hf_any3d.tasks.reconstruction.pipeline import PointCloudReconstructionPipeline

# All are imported, since those of single model types register themselves with the pipeline of their task.
from hf_any3d.tasks.segmentation.pipeline import PointCloudSegmentationPipeline
from hf_any3d.tasks.zero_shot_classification.pipeline import ZeroShotPointCloudClassificationPipeline

__all__ = [
    "DEFAULT_MODELS",
    "LayoutDetectionPipeline",
    "LayoutTextPipeline",
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
_PACKAGE = Path(__file__).parents[1]
DEFAULT_MODELS = {
    "point-cloud-classification": _PACKAGE / "default_model",
}
for _extension in EXTENSIONS.values():
    DEFAULT_MODELS |= {task: Path(folder) for task, folder in _extension.default_models.items()}
    for _module in _extension.pipelines:
        importlib.import_module(_module)


def default_model(task: str = "point-cloud-classification") -> str:
    """Return the directory of the model that comes with the package for a task.

    `transformers.pipeline(task)` opens it if no model is named, with a warning that names it.
    """
    return str(DEFAULT_MODELS[task])
