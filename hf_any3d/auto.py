"""Auto classes of the tasks that transformers has no auto class for."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES


class AutoModelForPointCloudClassification(_BaseAutoModelClass):
    """Opens any model that classifies point clouds: `AutoModelForPointCloudClassification.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudReconstruction(_BaseAutoModelClass):
    """Opens any model that turns point clouds into codes and back into points."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudSegmentation(_BaseAutoModelClass):
    """Opens any model that names every point, of a scene's objects or an object's parts.

    One class for both, since one pipeline reads both. A config type may have several such models; the architecture
    that the saved config names decides between them, and a config that names none is refused by `from_config`.
    """

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
        """Build a model with random weights, as `config.architectures` names it.

        Raises:
            ValueError: If the config names no architecture.
        """
        if not config.architectures:
            raise ValueError(
                "config.architectures is empty; expected the name of a segmentation model, or build it by its own "
                "class, which says whether objects or their parts are meant"
            )
        return super().from_config(config, **kwargs)


class AutoModelForPointCloudTextToText(_BaseAutoModelClass):
    """Opens any model that answers in words to point clouds and words."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForZeroShotPointCloudClassification(_BaseAutoModelClass):
    """Opens any model that compares point clouds with texts, so that classes need only names."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())
