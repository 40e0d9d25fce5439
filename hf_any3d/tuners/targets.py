"""Modules that PEFT methods adapt (layers of a frozen encoder or point transformer), and those to train in full."""

import copy
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, cast

from peft import PeftConfig, PeftModel, PeftType
from peft.mapping import PEFT_TYPE_TO_TUNER_MAPPING
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.constants import (
    TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING,
    TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING,
)
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from hf_any3d.modeling.hooks import LibraryModelHook
from hf_any3d.modeling.layers.adapted_layers import LayerStack
from hf_any3d.modeling.layers.low_rank import INNER, LowRankLinear


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
    what is not pretrained in full, as a guided adapter does; in a chat model it adapts the layers of the language
    model, those of PEFT's table if that has them; elsewhere all linear layers below the head. Whatever is adapted,
    decoder and heads of a detector are trained in full: they are new, and an adapter without them would be of no use.
    Names of layers that have LoRA of the model's own stand for the linear layers inside. Configs for other models are
    returned as they are.

    Raises:
        ValueError: The model has no layers that the method adapts by default; names it.
    """
    # Loaded adapters say what they hold.
    if not isinstance(config, PeftConfig) or config.inference_mode:
        return config
    owner = getattr(model, "base_model", model)
    stack = getattr(owner, "layer_stack", None)
    if isinstance(stack, LayerStack):
        return _with_modules_of_stack(model, stack, config)
    if isinstance(model, PreTrainedModel) and isinstance(model, LibraryModelHook) and _chooses_no_modules(config):
        config = _with_layers_of_kind(model, config)
    return _inside_own_lora(model, config)


def _with_modules_of_stack(model: nn.Module, stack: LayerStack, config: PeftConfig) -> PeftConfig:
    is_open = _chooses_no_modules(config)
    is_new = getattr(model, "base_model", model) is not model and bool(stack.trained)
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


def _with_layers_of_kind(model: PreTrainedModel, config: PeftConfig) -> PeftConfig:
    """Complete a config for a model that does not say where its pretrained layers are."""
    owner = cast(PreTrainedModel, model.base_model)
    part = getattr(owner, "language_model", None)
    root, above = owner, f"({re.escape(model.base_model_prefix)}\\.)?"
    if isinstance(part, PreTrainedModel):
        root, above = part, r"(.*\.)?language_model\."
    kind = getattr(root.config, "model_type", None)
    known = _known_targets(config).get(kind)
    # Language models among ours are in PEFT's tables, and it finds their layers itself.
    if known is not None and root is owner:
        return config
    head = root.get_output_embeddings()
    layers = [(name, module) for name, module in _bare_modules(root) if module is not head]
    if config.peft_type == PeftType.LN_TUNING:
        names = [name for name, module in layers if re.search(r"(?<!Batch)Norm(\dd)?$", type(module).__name__)]
    else:
        names = [name for name, module in layers if _is_linear(module)]
    names = _ending_with(names, known or ()) or names
    config = copy.copy(config)
    settings = vars(config)
    numbers = settings.get("layers_to_transform")
    if numbers is not None:
        settings.update(layers_to_transform=None, layers_pattern=None)
        wanted = {numbers} if isinstance(numbers, int) else set(numbers)
        # The first number in a name is that of the layer, as in PEFT.
        found = [(name, re.search(r"(?:^|\.)(\d+)\.", name)) for name in names]
        names = [name for name, number in found if number and int(number[1]) in wanted]
    if not names:
        what = "norms of layers" if config.peft_type == PeftType.LN_TUNING else "linear layers"
        where = "" if numbers is None else f" with layers_to_transform={numbers}"
        raise ValueError(
            f"{type(model).__name__} has no {what}{where}, which {config.peft_type.value} adapts by default; expected "
            'target_modules=[…] with names of its modules, or "all-linear"'
        )
    settings["target_modules"] = f"{above}({_alternatives(names, root)})"
    if "feedforward_modules" in settings and settings["feedforward_modules"] is None:
        # Without an entry in PEFT's table, IA3 scales outputs of all of them.
        known = TRANSFORMERS_MODELS_TO_IA3_FEEDFORWARD_MODULES_MAPPING.get(kind, ()) if known else ()
        inner = _ending_with(names, known)
        settings["feedforward_modules"] = f"{above}({_alternatives(inner, root)})" if inner else set()
    # A head is new, and an adapter without it would be of no use.
    if owner is not model and not model.can_generate() and settings.get("modules_to_save", ()) is None:
        settings["modules_to_save"] = [
            name for name, part in model.named_children() if part is not owner and part.state_dict()
        ]
    return config


def _ending_with(names: Iterable[str], endings: Iterable[str]) -> list[str]:
    """Return the names of layers that end so; a layer inside one with LoRA of the model's own has the name of that."""
    dotted = tuple(f".{ending}" for ending in endings)
    return [name for name in names if f".{name}".removesuffix(f".{INNER}").endswith(dotted)]


def _known_targets(config: PeftConfig) -> Mapping[str | None, Collection[str]]:
    """Return PEFT's table of what a method adapts by default: `model_type` -> endings of names."""
    if config.peft_type == PeftType.IA3:
        return TRANSFORMERS_MODELS_TO_IA3_TARGET_MODULES_MAPPING
    return getattr(PEFT_TYPE_TO_TUNER_MAPPING.get(config.peft_type), "target_module_mapping", {})


def _alternatives(names: Collection[str], root: nn.Module) -> str:
    """Return a regular expression of some modules of a model, with any number in place of one if that adds none."""
    choices = set()
    for name in names:
        choices.add(re.sub(r"(^|(?<=\.))\d+(?=\\\.|$)", r"\\d+", re.escape(name)))
    pattern = "|".join(sorted(choices))
    found = {name for name, _ in _bare_modules(root) if re.fullmatch(pattern, name)}
    return pattern if found == set(names) else "|".join(map(re.escape, names))


# Settings of PEFT that name modules; those in the second row are dictionaries with patterns of names as keys.
_INSIDE = rf"(?:\.{INNER})?"
_NAMED = ("target_modules", "feedforward_modules", "exclude_modules")
_NAMED_BY_KEYS = ("rank_pattern", "alpha_pattern", "lambda_pattern", "n_frequency_pattern", "block_size_pattern")


def _inside_own_lora(model: nn.Module, config: PeftConfig) -> PeftConfig:
    """Return a config whose names of layers with LoRA of the model's own are those of the linear layers inside.

    PEFT can adapt these alone, and an adapter there is of what the model computes without its matrices.
    """
    names = [name for name, _ in model.named_modules()]
    wrappers = [name for name, module in model.named_modules() if isinstance(module, LowRankLinear)]
    changes: dict[str, Any] = {}
    for field in _NAMED if wrappers else ():
        given = getattr(config, field, None)
        if isinstance(given, str) and given != "all-linear":
            changes[field] = _pattern_inside(given, wrappers, model)
        elif given and not isinstance(given, str):
            changes[field] = type(given)(_names_inside(given, wrappers, names, field == "exclude_modules"))
    for field in _NAMED_BY_KEYS if wrappers else ():
        inside = {}
        for pattern, value in (getattr(config, field, None) or {}).items():
            is_hit = any(re.match(rf"(.*\.)?({pattern})$", name) for name in wrappers)
            inside[f"(?:{pattern}){_INSIDE}" if is_hit and not pattern.endswith(_INSIDE) else pattern] = value
        if inside:
            changes[field] = inside
    changes = {field: value for field, value in changes.items() if value != getattr(config, field)}
    if not changes:
        return config
    config = copy.copy(config)
    vars(config).update(changes)
    return config


def _pattern_inside(pattern: str, wrappers: Collection[str], model: nn.Module) -> str:
    hit = [name for name in wrappers if re.fullmatch(pattern, name)]
    if not hit or pattern.endswith(_INSIDE):
        return pattern
    # Flags stand at the start of an expression alone.
    flags = re.match(r"(\(\?[aiLmsux]+\))?", pattern)[0]  # pyright: ignore[reportOptionalSubscript]
    # By their names in a model without a head, which opens adapters of one with a head.
    prefix = f"{getattr(model, 'base_model_prefix', '')}."
    outer = _alternatives([name.removeprefix(prefix) for name in hit], getattr(model, "base_model", model))
    return rf"{flags}(?!(.*\.)?({outer})$)(?:{pattern.removeprefix(flags)}){_INSIDE}"


def _names_inside(
    given: Iterable[str], wrappers: Collection[str], names: Collection[str], is_excluded: bool
) -> Iterator[str]:
    for ending in sorted(given):
        found = {name for name in names if name == ending or name.endswith(f".{ending}")}
        hit = found.intersection(wrappers)
        if hit:
            yield f"{ending}.{INNER}"
        # Beside them, others of the same name have none, and PEFT could not adapt the layers around.
        if not hit or is_excluded:
            yield ending
        elif found > hit:
            yield from _endings(found - hit, set(names) - (found - hit))


def _endings(names: Iterable[str], others: Iterable[str]) -> set[str]:
    """Return the shortest endings of names that no other name has."""
    taken = {ending for name in others for ending in _endings_of(name)}
    return {next((ending for ending in _endings_of(name) if ending not in taken), name) for name in names}


def _endings_of(name: str) -> list[str]:
    words = name.split(".")
    return [".".join(words[start:]) for start in reversed(range(len(words)))]


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
    if not getattr(type(base), "takes_adapters", True):
        # Pretrained in full: nothing that is not trained has a name elsewhere.
        wrappers = dict(base.named_children())
        return [name for name, part in wrappers.items() if adapter_name not in getattr(part, "modules_to_save", ())]
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
    if not all(isinstance(number, int) and 0 <= number < count for number in numbers):
        raise ValueError(f"layers_to_transform={list(numbers)}; expected numbers from 0 to {count - 1}")
    choice = "|".join(map(str, numbers))
    return rf"(.*\.)?{re.escape(stack.path)}\.({choice})"
