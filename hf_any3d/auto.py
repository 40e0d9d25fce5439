"""Auto classes of the tasks that transformers has no auto class for."""

from __future__ import annotations

from collections import OrderedDict

from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES


class AutoModelForPointCloudClassification(_BaseAutoModelClass):
    """Opens any model that classifies point clouds: `AutoModelForPointCloudClassification.from_pretrained(name)`."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())
