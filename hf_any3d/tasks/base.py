"""Base class of the pipelines."""

import os
from pathlib import Path
from typing import Any

from transformers import AutoFeatureExtractor, Pipeline
from transformers.utils import FEATURE_EXTRACTOR_NAME

from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.tasks.steps import PointCloudSteps, unwrapped

# (Pipeline of a task, model type) -> the pipeline for models of this type.
_SPECIAL: dict[tuple[type, str], type] = {}


def specialize(pipeline: type, model_type: str, special: type) -> None:
    """Let a subclass of the pipeline of a task serve the models of one type."""
    _SPECIAL[pipeline, model_type] = special


class PointCloudPipeline(PointCloudSteps, Pipeline):
    """Base of the pipelines whose input is point clouds.

    They take a path, an array or tensor `(points, channels)`, a data frame with columns x, y and z, a trimesh object,
    a dataset row, a list, generator or dataset column of them, or a table with a column `points` or `path`; a mesh is
    sampled on its surface. All but reconstructions have the argument `up_axis`, the axis that points up in the clouds,
    "x", "y" or "z"; they are turned to that of the model's training. By default nothing is turned.

    Raises:
        OSError: The directory of the model has no processor.
        ValueError: A model that is given as an object comes without a processor, or a saved one has another head than
            the task needs.
    """

    _load_processor = False
    _load_image_processor = False
    _load_video_processor = False
    _load_tokenizer = False
    # Not True, by which transformers would not take `processor=…` in its place; `__init__` raises the error instead.
    _load_feature_extractor = None
    # Whether the pipeline needs the head that was saved.
    uses_head = True

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        """Make the pipeline for the model's type."""
        model = kwargs.get("model", args[0] if args else None)
        model_type = getattr(getattr(model, "config", None), "model_type", None)
        return super().__new__(_SPECIAL.get((cls, str(model_type)), cls))

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if isinstance(self.processor, PointCloudProcessor):  # a feature extractor to transformers
            self.feature_extractor = self.processor
            self.processor = None
        if self.feature_extractor is None and self._load_feature_extractor is not False:
            place = self.model.name_or_path
            if os.path.isdir(place) and not Path(place, FEATURE_EXTRACTOR_NAME).is_file():
                raise OSError(
                    f"{place} lacks {FEATURE_EXTRACTOR_NAME}; expected processor.save_pretrained({place!r}), or "
                    "feature_extractor=processor"
                )
            if place:  # opening it again tells why it cannot be opened
                AutoFeatureExtractor.from_pretrained(place)
            raise ValueError("processor is missing; expected one with a model that is given as an object")
        model = unwrapped(self.model)
        saved = model.config.architectures
        if self.uses_head and saved and type(model).__name__ not in saved:
            # Auto classes initialize a missing head at random with a warning, which is useful only for training.
            raise ValueError(
                f"{model.name_or_path}: holds a {saved[0]}, which pipeline({self.task!r}) cannot use; expected a "
                f"{type(model).__name__}"
            )

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs: Any) -> None:
        """Save model and processor, but no code: `import hf_any3d` registers the classes to load them."""
        self.model.save_pretrained(save_directory, **kwargs)
        processor = self.feature_extractor if self.processor is None else self.processor
        processor.save_pretrained(save_directory, **kwargs)
