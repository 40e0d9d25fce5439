"""Auto classes of the tasks that transformers has no auto class for."""

from __future__ import annotations

from collections import OrderedDict

from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES


class AutoModelForPointCloudClassification(_BaseAutoModelClass):
    """Opens any model that classifies point clouds: `AutoModelForPointCloudClassification.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudSegmentation(_BaseAutoModelClass):
    """Opens any model that names every point, of a scene's objects or an object's parts.

    One class for both, since one pipeline reads both. A config type may have several such models; the architecture
    that the saved config names decides between them. A model that is made anew is best made by its own class.
    """

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())
