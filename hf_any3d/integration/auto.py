"""Auto classes for tasks that transformers has no auto class for."""

import os
import re
from collections import OrderedDict
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.auto_factory import _BaseAutoModelClass, _LazyAutoMapping
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES  # pyright: ignore[reportPrivateImportUsage]

from hf_any3d.hub.names import check_name
from hf_any3d.modeling.config_checks import stored_settings

# In transformers' words for a saved model of another kind.
_OTHER_CONFIG = re.compile(r"Unrecognized configuration class <class '(?:\w+\.)*(\w+)'>")


class _AutoModelForPointClouds(_BaseAutoModelClass):
    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike, *args: Any, **kwargs: Any) -> Any:
        """Load a model with the class that its config names.

        Raises:
            FileNotFoundError: If the name looks like a path, and nothing is there.
            OSError: If the hub may not be used, and the repository is not in its cache.
            ValueError: If settings or weights cannot be used; names their place.
        """
        # Before the hub is asked, which takes up to a minute for a mistyped path.
        check_name(pretrained_model_name_or_path, kwargs)
        # Settings are read before the class of the model is known, and of another type they fail with any error.
        with stored_settings(pretrained_model_name_or_path, kwargs):
            try:
                return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
            except ValueError as error:
                other = _OTHER_CONFIG.search(str(error))
                if other is None:
                    raise
                raise ValueError(
                    f"holds the model of a {other[1]}, {cls._instead(pretrained_model_name_or_path)}"
                ) from None

    @classmethod
    def _instead(cls, name: str | os.PathLike) -> str:
        """Return what can be done with a pretrained encoder, which is no model of this task."""
        models: list[Any] = []
        for found in cls._model_mapping.values():
            models += found if isinstance(found, tuple) else [found]
        around = next((model for model in models if hasattr(model, "from_encoder_pretrained")), None)
        if around is None:
            return f"none that {cls.__name__} opens: {', '.join(model.__name__ for model in models)}"
        return f"not of point clouds; {around.__name__}.from_encoder_pretrained({str(name)!r}) builds one around it"


class AutoModelForPointCloudClassification(_AutoModelForPointClouds):
    """Load any point cloud classification model: `AutoModelForPointCloudClassification.from_pretrained(name)`."""

    # Filled when models are registered.
    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudObjectDetection(_AutoModelForPointClouds):
    """Load any model that answers a point cloud with boxes around objects."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudReconstruction(_AutoModelForPointClouds):
    """Load any model that encodes point clouds as codes and reconstructs them."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForPointCloudSegmentation(_AutoModelForPointClouds):
    """Load any segmentation model, for objects of a scene or parts of an object.

    One class for both, since one pipeline runs both. A config type may have several such models; the architecture in
    the saved config selects one, and `from_config` requires it.
    """

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())

    @classmethod
    def from_config(cls, config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
        """Build a model of the class in `config.architectures`, with random weights."""
        if not config.architectures:
            raise ValueError("config.architectures is empty; expected the name of a segmentation model")
        return super().from_config(config, **kwargs)


class AutoModelForPointCloudTextToText(_AutoModelForPointClouds):
    """Load any model that generates text from point clouds and text."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForZeroShotPointCloudClassification(_AutoModelForPointClouds):
    """Load any model that compares point clouds with texts."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())


class AutoModelForZeroShotPointCloudSegmentation(_AutoModelForPointClouds):
    """Load any model that compares the points of clouds with texts, such as names of parts."""

    _model_mapping = _LazyAutoMapping(CONFIG_MAPPING_NAMES, OrderedDict())
