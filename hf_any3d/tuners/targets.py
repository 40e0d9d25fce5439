"""Modules that PEFT methods adapt (layers of a frozen encoder or point transformer), and those to train in full."""

import copy
import re
from collections.abc import Callable, Iterable, Iterator
from typing import cast

from peft import PeftConfig, PeftModel, PeftType
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_any3d.modeling.layers.adapted_layers import LayerStack


def encoder_owner(model: nn.Module) -> nn.Module:
    """Return the module inside `model` that owns the pretrained layers."""
    if not getattr(type(model), "takes_adapters", True):
        raise ValueError(
            f"{type(model).__name__} is pretrained in full: the directory of an adapter would lack the rest of it; "
            "expected a model for a task that starts from it"
        )
    for module in model.modules():
        # The class, not the module: adapters look up unknown attributes in the layer that they wrap.
        if hasattr(type(module), "layer_stack") and module.layer_stack is not None:
            return module
    raise ValueError(
        f"{type(model).__name__} does not say where its layers are and gives no centers of its tokens; expected an "
        "Any2Point model around it (from_encoder_pretrained), a point transformer, or a model with a layer_stack, see "
        "hf_any3d.modeling.layers.adapted_layers"
    )


def layer_stack(model: nn.Module) -> LayerStack:
    """Return the pretrained layers inside `model`."""
    return cast(LayerStack, encoder_owner(model).layer_stack)


def trainable_module_names(model: nn.Module) -> list[str]:
    """Return the names of modules with weights that are not pretrained: to be trained in full with any PEFT method.

    With a frozen encoder of another modality these are tokenizer, class token, output norm and head; with a pretrained
    point transformer only the head; of a detector on one, decoder and heads. Other complete models inside, such as the
    teacher in pretraining, stay frozen.

    `LoraConfig(modules_to_save=trainable_module_names(model), …)` trains the same modules as a guided adapter.

    Raises:
        ValueError: The model has no pretrained layers that could be adapted, or several pretrained parts.
    """
    owner = encoder_owner(model)
    if owner is not model and owner is not getattr(model, "base_model", None):
        raise ValueError(
            f"{type(model).__name__} has several pretrained parts, so modules_to_save has no default; give "
            f"modules_to_save=[…] ([] for none), or adapt only its {type(owner).__name__}"
        )
    stack = layer_stack(owner)
    if stack.trained and model is owner:
        raise ValueError(
            f"modules_to_save has no default for a {type(model).__name__} without heads; give modules_to_save=[…] ([] "
            "for none), or adapt the model with its heads"
        )
    # What is beside the pretrained layers, such as tokenizer and class token, and then the heads around the owner.
    children = [(name, part) for name, part in owner.named_children() if name not in stack.pretrained]
    parts = [(name, model.get_submodule(name)) for name in stack.trained] or children
    if model is not owner:
        parts += [(name, part) for name, part in model.named_children() if not isinstance(part, PreTrainedModel)]
    # By their state: that of an unknown score is not trained, but stored with an adapter all the same.
    return [name for name, part in parts if part.state_dict()]


def with_default_modules(model: nn.Module, config: PeftConfig) -> PeftConfig:
    """Complete a new adapter's config for one of our models; what the config names itself stays.

    A method of PEFT without `target_modules` adapts the linear layers of the encoder (LN tuning its norms) and trains
    what is not pretrained in full, as a guided adapter does. Whatever is adapted, decoder and heads of a detector are
    trained in full: they are new, and an adapter without them would be of no use. Configs for other models are
    returned as they are.
    """
    # Loaded adapters say what they hold.
    if not isinstance(config, PeftConfig) or config.inference_mode:
        return config
    owner = getattr(model, "base_model", model)
    stack = getattr(owner, "layer_stack", None)
    if not isinstance(stack, LayerStack):
        return config
    is_open = _chooses_no_modules(config)
    is_new = owner is not model and bool(stack.trained)
    trains_default = (is_open or is_new) and getattr(config, "modules_to_save", ()) is None
    if not is_open and not trains_default:
        return config
    config = copy.copy(config)
    settings = vars(config)
    if is_open:
        settings["target_modules"] = _default_targets(model, config)
        if "feedforward_modules" in settings and settings["feedforward_modules"] is None:
            settings["feedforward_modules"] = set()  # IA3 scales outputs of all of them
    if trains_default:
        settings["modules_to_save"] = trainable_module_names(model)
    return config


def _chooses_no_modules(config: PeftConfig) -> bool:
    """Return whether a config of a method of PEFT leaves it to PEFT which modules are adapted."""
    if type(config).__module__.partition(".")[0] != "peft" or config.peft_type == PeftType.TRAINABLE_TOKENS:
        return False
    return getattr(config, "target_modules", ()) is None and not getattr(config, "target_parameters", None)


def _default_targets(model: nn.Module, config: PeftConfig) -> str:
    # By numbers here, as PEFT has no layers_to_transform beside a pattern.
    numbers = getattr(config, "layers_to_transform", None)
    if numbers is not None:
        vars(config).update(layers_to_transform=None, layers_pattern=None)
    if config.peft_type == PeftType.LN_TUNING:
        return encoder_module_pattern(model, lambda module: "Norm" in type(module).__name__, numbers)
    return encoder_module_pattern(model, _is_linear, numbers)


def left_out_modules(model: PeftModel, adapter_name: str) -> list[str]:
    """Return the names of modules that are neither pretrained nor saved with an adapter.

    If there are none, pretrained weights and adapter together are the complete model. Otherwise the adapter works only
    with the exact base model that it was trained on.
    """
    base = model.get_base_model()
    owner = encoder_owner(base)
    modules = {**dict(base.named_modules()), **dict(owner.named_children())}
    # PEFT wraps modules that are trained in full and keeps one copy for each adapter.
    return [
        name
        for name in trainable_module_names(base)
        if adapter_name not in getattr(modules[name], "modules_to_save", ())
    ]


def encoder_linear_pattern(model: nn.Module) -> str:
    """Return a regular expression of all linear modules in the layers, for `target_modules` of LoRA and the like.

    Raises:
        ValueError: The model has no pretrained layers that could be adapted.
    """
    return encoder_module_pattern(model, _is_linear)


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def encoder_module_pattern(
    model: nn.Module, wanted: Callable[[nn.Module], bool], numbers: Iterable[int] | int | None = None
) -> str:
    """Return a regular expression of the modules in the encoder's layers, or some of them, that are `wanted`."""
    stack = layer_stack(model)
    # Of all layers: some encoders have experts in all but the first ones.
    names = {name for layer in stack.layers for name, module in _bare_modules(layer) if wanted(module)}
    choice = "|".join(sorted(map(re.escape, names)))
    return rf"{encoder_layer_pattern(model, numbers)}\.({choice})"


def _bare_modules(parent: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Iterate over the modules below `parent` with their names; adapted modules without their adapters."""
    for name, module in parent.named_children():
        if isinstance(module, BaseTunerLayer):
            # An adapter that is there already must not hide what it wraps.
            yield prefix + name, module.get_base_layer()
        else:
            yield prefix + name, module
            yield from _bare_modules(module, f"{prefix}{name}.")


def encoder_layer_pattern(model: nn.Module, numbers: Iterable[int] | int | None) -> str:
    """Return a regular expression of complete layers of the encoder."""
    stack = layer_stack(model)
    if numbers is None:
        return rf"(.*\.)?{re.escape(stack.path)}\.\d+"  # for encoders of any depth
    count = len(stack.layers)
    numbers = [numbers] if isinstance(numbers, int) else list(numbers)
    if not all(0 <= number < count for number in numbers):
        raise ValueError(f"layers_to_transform={list(numbers)}; expected numbers from 0 to {count - 1}")
    choice = "|".join(map(str, numbers))
    return rf"(.*\.)?{re.escape(stack.path)}\.({choice})"
