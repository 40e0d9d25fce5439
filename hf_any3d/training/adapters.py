"""PEFT methods by name, with defaults that fit an encoder which reads point tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any

from peft import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING, PeftConfig, PeftType, PromptLearningConfig
from torch import nn

from hf_any3d.modeling.encoders.frozen_encoder import FROZEN
from hf_any3d.tuners import encoder_linear_pattern, trainable_module_names
from hf_any3d.tuners.targets import encoder_module_pattern, encoder_owner, layer_stack
from hf_any3d.tuners.tuners_utils import EncoderTuner

# Where transformers' attention modules keep the share, as a number or as a module.
_NAMES = ("attention_dropout", "dropout")


def drop_attention(model: nn.Module, share: float) -> int:
    """Let the frozen layers drop attention weights in training; frozen weights stay frozen, and evaluation as it was.

    A frozen encoder otherwise stays in eval mode. Nothing of this is saved with the model.

    Args:
        model: Has a frozen encoder, adapted or not.
        share: Share of the weights to drop, from 0 to less than 1.

    Returns:
        The number of attention modules.

    Raises:
        ValueError: A share out of range, or an encoder in which no such attention is found.

    Source: the released Any2Point programs for ScanObjectNN with DINOv2 and ImageBind (0.1).
    """
    if not 0 <= share < 1:
        raise ValueError(f"share is {share}; expected at least 0 and less than 1")
    owner = encoder_owner(model)
    found = 0
    for layer in owner.layer_stack.layers:
        for module in layer.modules():
            name = _dropout_name(module)
            if name is None:
                continue
            if isinstance(getattr(module, name), nn.Dropout):
                getattr(module, name).p = share
            else:
                setattr(module, name, share)
            # The attention alone follows train() again; the linear layers in it have no mode.
            vars(module).pop(FROZEN, None)
            found += 1
    if not found:
        kind = type(getattr(owner, "encoder", owner)).__name__
        raise ValueError(
            f"{kind} has no attention with dropout under {' or '.join(_NAMES)}; expected "
            "another encoder or no such dropout"
        )
    return found


def _dropout_name(module: nn.Module) -> str | None:
    if "attention" not in type(module).__name__.lower():
        return None
    if not any(isinstance(child, nn.Linear) for child in module.children()):
        return None
    return next((name for name in _NAMES if isinstance(getattr(module, name, None), (float, int, nn.Dropout))), None)


# Poly wants the number of a task with every batch, Shadow a language model's config.
_UNFIT = {"POLY", "SHADOW"}


def peft_methods() -> dict[str, type[PeftConfig]]:
    """Names of the PEFT methods that fit, in small letters, with their configs.

    Methods that put prompts in front of embedded text have no place here, nor have those that cannot train tokenizer
    and head along.
    """
    return {
        peft_type.value.lower(): config
        for peft_type, config in PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if peft_type.value not in _UNFIT
        and not issubclass(config, PromptLearningConfig)
        and {"target_modules", "modules_to_save"} <= {field.name for field in fields(config)}
    }


def build_peft_config(name: str, model: nn.Module, settings: dict[str, Any] | None = None) -> PeftConfig:
    """Make the config of a PEFT method for `get_peft_model(model, config)`.

    Left to themselves, all methods adapt the linear layers of the encoder (`ln_tuning` its norms), train what is not
    pretrained in full (`trainable_module_names`), and save it with the adapter, so that methods compare fairly.

    Args:
        name: A name of `peft_methods()`, in any case.
        model: The model that will be adapted; has a frozen encoder or a pretrained point transformer.
        settings: Arguments of the config, which win over the defaults.

    Raises:
        ValueError: An unknown or unsuitable method, or settings that it does not have.
    """
    methods = peft_methods()
    config = methods.get(name.lower())
    if config is None:
        raise ValueError(f"peft method {name!r} is unknown or does not fit; expected one of {', '.join(methods)}")
    known = {field.name for field in fields(config) if field.init}
    settings = dict(settings or {})
    if unknown := sorted(set(settings) - known):
        raise ValueError(f"peft method {name!r} has no setting {unknown[0]!r}; it has {', '.join(sorted(known))}")
    settings.setdefault("modules_to_save", trainable_module_names(model))
    # Our own methods find their places by themselves.
    if not issubclass(PEFT_TYPE_TO_TUNER_MAPPING[PeftType[name.upper()]], EncoderTuner):
        defaults: dict[str, Callable[[nn.Module], Any]] = {
            "target_modules": encoder_norm_pattern if name.lower() == "ln_tuning" else encoder_linear_pattern,
            "feedforward_modules": encoder_feedforward_pattern,
        }
        for key, default in defaults.items():
            if key in known and key not in settings:
                settings[key] = default(model)
    return config(**settings)


def encoder_norm_pattern(model: nn.Module) -> str:
    """A regular expression of all norms in the encoder's layers."""
    return encoder_module_pattern(model, lambda module: "norm" in type(module).__name__.lower())


def encoder_feedforward_pattern(model: nn.Module) -> str:
    """A regular expression of the linear layers that lead from the feed-forward branch's inner width back.

    IA3 scales what enters these, and what leaves the others (arXiv 2205.05638, Sec. 3.3).
    """
    width = layer_stack(model).hidden_size

    def leads_back(module: nn.Module) -> bool:
        return isinstance(module, nn.Linear) and module.out_features == width < module.in_features

    return encoder_module_pattern(model, leads_back)
