"""Auto classes for tasks that transformers has no auto class for."""

from collections import OrderedDict
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]


class AutoModelForPointCloudClassification(_BaseAutoModelClass):
    """Load any point cloud classification model: `AutoModelForPointCloudClassification.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudReconstruction(_BaseAutoModelClass):
    """Load any model that encodes point clouds as codes and reconstructs them."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudSegmentation(_BaseAutoModelClass):
    """Load any segmentation model, for objects of a scene or parts of an object.

    One class for both, since one pipeline runs both. A config type may have several such models; the architecture in
    the saved config selects one, and `from_config` requires it.
    """

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
        """Build a model of the class in `config.architectures`, with random weights.

        Raises:
            ValueError: If the config names no architecture.
        """
        if not config.architectures:
            raise ValueError(
                "config.architectures is empty; expected the name of a segmentation model, or use the model class, "
                "for semantic or part segmentation"
            )
        return super().from_config(config, **kwargs)


class AutoModelForPointCloudTextToText(_BaseAutoModelClass):
    """Load any model that generates text from point clouds and text."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForZeroShotPointCloudClassification(_BaseAutoModelClass):
    """Load any model that compares point clouds with texts."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())
