"""The PEFT methods that fit models of point clouds, by their names, and the configs with which they adapt one."""

import difflib
from dataclasses import fields
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftType, PromptLearningConfig
from torch import nn

from hf_any3d.tuners import encoder_linear_pattern, trainable_module_names
from hf_any3d.tuners.targets import encoder_module_pattern, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner

# POLY requires a task number in every batch, SHADOW the config of a language model.
_UNSUPPORTED_METHODS = {"POLY", "SHADOW"}


def peft_methods() -> dict[str, type[PeftConfig]]:
    """Return the configs of the PEFT methods that fit, by name in lower case.

    Methods that prepend prompts to embedded text do not fit, nor do those that cannot train tokenizer and head too.
    """
    methods = {}
    for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items():
        # Learned prompts go before embedded words, which clouds do not have.
        if peft_type.value in _UNSUPPORTED_METHODS or issubclass(config, PromptLearningConfig):
            continue
        names = {field.name for field in fields(config)}
        if {"target_modules", "modules_to_save"} <= names:
            methods[peft_type.value.lower()] = config
    return methods


def check_peft_method(name: str) -> None:
    """Raise a ValueError if a PEFT method is unknown, or does not fit these models."""
    methods = peft_methods()
    name = name.lower()
    if name in methods:
        return
    if name in (peft_type.value.lower() for peft_type in PEFT_TYPE_TO_CONFIG_MAPPING):
        raise ValueError(f"--peft: {name} does not fit point cloud models; expected one of {', '.join(methods)}")
    similar = difflib.get_close_matches(name, methods, n=1)
    hint = f"did you mean {similar[0]}? Methods:" if similar else "expected one of"
    raise ValueError(f"--peft: unknown method {name!r}; {hint} {', '.join(methods)}")


def build_peft_config(name: str, model: nn.Module, config_kwargs: dict[str, Any] | None = None) -> PeftConfig:
    """Build the config of a PEFT method for `get_peft_model(model, config)`.

    By default all methods adapt the linear layers of the encoder (`ln_tuning` its norms), and train what is not
    pretrained in full (`trainable_module_names`) and save it with the adapter, so that they can be compared.

    The name is one of `peft_methods()`, in any case. Settings are arguments of the config and override the defaults.
    """
    check_peft_method(name)
    config = peft_methods()[name.lower()]
    config_kwargs = dict(config_kwargs or {})
    # Tokenizer and head are new, so every method trains them in full and saves them with the adapter.
    if "modules_to_save" not in config_kwargs:
        config_kwargs["modules_to_save"] = trainable_module_names(model)
    # This package's methods find their target modules themselves.
    if not issubclass(PEFT_TYPE_TO_TUNER_MAPPING[PeftType[name.upper()]], EncoderTuner):
        if "target_modules" not in config_kwargs and name.lower() == "ln_tuning":
            config_kwargs["target_modules"] = encoder_module_pattern(
                model, lambda module: "norm" in type(module).__name__.lower()
            )
        elif "target_modules" not in config_kwargs:
            config_kwargs["target_modules"] = encoder_linear_pattern(model)
        if "feedforward_modules" in config.__dataclass_fields__.keys() - config_kwargs.keys():
            # IA3 scales the inputs of layers that project the feed-forward branch back to the hidden size, and the
            # outputs of others (arXiv 2205.05638, Sec. 3.3).
            stack = layer_stack(model)
            width = stack.stage_of(stack.layers[0]).width
            config_kwargs["feedforward_modules"] = encoder_module_pattern(
                model,
                lambda module: isinstance(module, nn.Linear) and module.out_features == width < module.in_features,
            )
    return config(**config_kwargs)
