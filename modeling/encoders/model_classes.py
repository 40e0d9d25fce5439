"""Classes of models by their configs, also of towers that transformers' auto class does not know."""

import importlib

from transformers import AutoModel, PreTrainedConfig, PreTrainedModel


def class_of_config(config: PreTrainedConfig) -> type:
    """Return the class of a model without a head: `AutoModel`, or the class beside the config.

    Raises:
        ValueError: There is none.
    """
    if type(config) in AutoModel._model_mapping:
        return AutoModel
    # Towers of composite checkpoints have a class of their own that no auto class lists.
    module = importlib.import_module(type(config).__module__.replace(".configuration_", ".modeling_"))
    classes = []
    for value in vars(module).values():
        is_model = (
            isinstance(value, type) and issubclass(value, PreTrainedModel) and value.__module__ == module.__name__
        )
        if is_model and getattr(value, "config_class", None) is type(config):
            classes.append(value)
    bare = [cls for cls in classes if "For" not in cls.__name__ and "PreTrained" not in cls.__name__]
    if not bare:
        raise ValueError(f"transformers has no model for a {type(config).__name__}")
    return min(bare, key=lambda cls: (not cls.__name__.endswith("Model"), len(cls.__name__)))


def build_from_config(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model without a head with random weights."""
    cls = class_of_config(config)
    return cls.from_config(config) if cls is AutoModel else cls._from_config(config)


def main_input_of(config: PreTrainedConfig) -> str:
    """Return the name of the main input of a config's model, such as "input_ids" or "pixel_values"."""
    try:
        cls = class_of_config(config)
        if cls is AutoModel:
            cls = AutoModel._model_mapping[type(config)]
    except (ValueError, ImportError):  # named by transformers, but not there
        return "input_ids"
    if isinstance(cls, (tuple, list)):
        cls = cls[0]
    return getattr(cls, "main_input_name", "input_ids")
