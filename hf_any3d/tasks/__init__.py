"""Settings of each task, a folder a task, with which every door is compared.

`SETTINGS` has them by the names of the tasks. The service makes its requests of them. Commands, many files and the
demo write the same options by hand, or the setting says why not; `tests/common/test_task_doors.py` compares them.
"""

from __future__ import annotations

from hf_any3d.tasks.classification.settings import ClassificationSettings
from hf_any3d.tasks.detection.settings import DetectionSettings
from hf_any3d.tasks.features.settings import FeatureSettings
from hf_any3d.tasks.parts_by_name.settings import PartsByNameSettings
from hf_any3d.tasks.reconstruction.settings import ReconstructionSettings
from hf_any3d.tasks.segmentation.settings import SegmentationSettings
from hf_any3d.tasks.settings import DOORS, Setting, pipeline_arguments, setting, settings_of
from hf_any3d.tasks.zero_shot_classification.settings import ZeroShotClassificationSettings

SETTINGS: dict[str, type] = {
    "point-cloud-classification": ClassificationSettings,
    "zero-shot-point-cloud-classification": ZeroShotClassificationSettings,
    "point-cloud-segmentation": SegmentationSettings,
    "zero-shot-point-cloud-segmentation": PartsByNameSettings,
    "point-cloud-object-detection": DetectionSettings,
    "point-cloud-feature-extraction": FeatureSettings,
    "point-cloud-reconstruction": ReconstructionSettings,
}
"""Task -> what it can be asked for. Chat models have the routes and settings of OpenAI's API."""

__all__ = ["DOORS", "SETTINGS", "Setting", "pipeline_arguments", "setting", "settings_of"]
