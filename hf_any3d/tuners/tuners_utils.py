"""Base classes of this package's PEFT methods: configurations, the tuner, and the layer that wraps a frozen module."""

from __future__ import annotations

import copy
from abc import abstractmethod
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Self

import torch
from peft import PeftConfig, PeftType, TaskType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils import register_peft_method
from torch import nn
from torch.utils.hooks import RemovableHandle

from hf_any3d.modeling.config_checks import Ranges, check_settings, name_fields
from hf_any3d.modeling.layers.adapted_layers import AdaptedLayer
from hf_any3d.registry import MODEL_TYPES, type_of_model
from hf_any3d.tuners.targets import encoder_layer_pattern, encoder_owner, layer_stack, trainable_module_names

# Sizes of 0 would be adapters without an effect.
_RANGES: Ranges = {
    **dict.fromkeys(("r", "num_prompts", "num_groups", "group_size", "local_size", "neighbors"), (1, 16_384)),
    **dict.fromkeys(("attention_width", "attention_heads"), (1, 16_384)),
    # No number that is none, nor an infinite one
    **dict.fromkeys(("bottleneck_scale", "aggregation_scale", "gate"), (-1e6, 1e6)),
    "mlp_ratio": (0.01, 8),
    **dict.fromkeys(("cell_size", "voxel_size", "curve_cell"), (1e-6, 1e6)),
}
# Task types whose PEFT models pass on only arguments that point cloud models accept.
_TASK_TYPES = (None, TaskType.FEATURE_EXTRACTION, TaskType.SEQ_CLS, TaskType.TOKEN_CLS)


def register_method(config_class: type[EncoderTunerConfig], tuner_class: type[EncoderTuner]) -> None:
    """Register a method with PEFT under the `method` of its config.

    PEFT refuses methods whose name is not a member of its enum, and an enum can neither be subclassed nor extended by
    public means, so the member is written to the enum's own tables, in the steps by which Python adds one.
    """
    name = config_class.method
    # Members are strings, as PeftType is an enum of strings: files have the name.
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)  # pyright: ignore[reportAttributeAccessIssue] enum internal
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    # PEFT forms the name of the member from this in capitals.
    register_peft_method(name=name.lower(), config_cls=config_class, model_cls=tuner_class)
    name_fields(config_class, {entry.name: entry.metadata.get("help", "") for entry in fields(config_class)})


@dataclass
class EncoderTunerConfig(PeftConfig):
    """Configuration of a method that adapts modules in the layers of a frozen encoder.

    By default tokenizer, class token, output norm and head are trained and saved with the adapter.
    """

    method: ClassVar[str]
    choices: ClassVar[dict[str, tuple[str, ...]]] = {}
    """Values that fields can have."""
    released: ClassVar[dict[str, Any]]
    """Settings of the released program, where they are not the defaults."""

    target_modules: list[str] | set[str] | str | None = field(
        default=None, metadata={"help": "Regular expression or names of the modules to adapt; None for the default."}
    )
    exclude_modules: list[str] | str | None = field(default=None, metadata={"help": "Modules to leave out."})
    modules_to_save: list[str] | None = field(
        default=None,
        metadata={"help": "Modules trained in full and saved; None for tokenizer, class token, output norm and head."},
    )

    def __post_init__(self):
        super().__post_init__()
        self.peft_type = PeftType[self.method]
        check_settings(self, self.choices, _RANGES)
        if self.target_modules is not None and getattr(self, "layers_to_transform", None) is not None:
            raise ValueError("give target_modules or layers_to_transform, not both")
        # A set, as PEFT's own configs make of a list
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)

    @classmethod
    def published(cls, **kwargs: Any) -> Self:
        """Return the config of the released program."""
        return cls(**(copy.deepcopy(cls.released) | kwargs))


@dataclass
class EncoderLayersConfig(EncoderTunerConfig):
    """Configuration of a method that adapts complete layers of a frozen encoder, by default all of them."""

    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the layers to adapt; None for all."}
    )


class WrappedModule(nn.Module, BaseTunerLayer, AdaptedLayer):
    """Layer around a frozen module; subclasses name the weights of adapters in `adapter_layer_names`.

    What it may ask of the model around it, such as the places of tokens, is described by `AdaptedLayer`.
    """

    other_param_names: tuple[str, ...] = ("configs", "earlier", "nested")

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        # The name by which PEFT, and what counts a model's own tensors, find the frozen module.
        self.base_layer = base_layer
        self._disable_adapters = False
        self._active_adapter = "default"
        self.merged_adapters: list[str] = []
        self.configs: dict[str, Any] = {}
        # Not registered, but made of modules that are.
        self.nested: dict[str, dict[str, Any]] = {}
        # Layers whose weights or state adapters use here; in tuples, so that torch does not register them as children.
        self.earlier: dict[str, tuple[Any, ...]] = {}
        self.hooks: list[RemovableHandle] = []
        """Hooks on modules inside the frozen one, removed with the adapters."""

    def __getattr__(self, name: str) -> Any:
        """Look for unknown attributes in the frozen module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not `self.base_layer`, which would come back here for ever while it is not set.
            return getattr(super().__getattr__("base_layer"), name)

    def update_layer(self, adapter_name: str, config: Any, earlier: Any = None, **kwargs: Any) -> None:
        """Add an adapter, which uses weights or the state of an `earlier` layer, if there is one."""
        self.configs[adapter_name] = config
        if earlier is not None:
            self.earlier[adapter_name] = (earlier,)
        self.build(adapter_name, config, **kwargs)
        self._move_adapter_to_device_of_base_layer(adapter_name)

    @abstractmethod
    def build(self, adapter_name: str, config: Any, **kwargs: Any) -> None:
        """Create and initialize the weights of an adapter."""

    def _owner_for(self, adapter_name: str) -> Any:
        """Return the layer that owns what several layers share: an earlier one, or this one."""
        return self.earlier.get(adapter_name, (self,))[0]

    def _running_adapters(self) -> list[str]:
        """Return the adapters that the forward pass applies, in order."""
        return [] if self.disable_adapters else [name for name in self.active_adapters if name in self.configs]

    def _add_nested(self, adapter_name: str, **modules: nn.Module) -> None:
        """Add modules with modules inside to an adapter, as `self.nested[adapter_name]`.

        PEFT stores names of one level, so leaves are registered: `a.b` of `name` as `name_a_b`.
        """
        for name, module in modules.items():
            for path, leaf in module.named_modules():
                if next(leaf.children(), None) is None:
                    # Names of submodules may not have dots.
                    key = "_".join((name, *path.split("."))) if path else name
                    if key not in self._modules:
                        setattr(self, key, nn.ModuleDict())
                        self.adapter_layer_names = (*self.adapter_layer_names, key)
                    getattr(self, key)[adapter_name] = leaf
            self.nested.setdefault(adapter_name, {})[name] = module

    def _parts_of(self, adapter_name: str) -> list[Any]:
        """Return the parameters of an adapter, and its modules that have some."""
        parts = []
        for name in self.adapter_layer_names:
            table = getattr(self, name)
            if adapter_name in table:
                part = table[adapter_name]
                if isinstance(part, nn.Parameter) or next(part.parameters(), None) is not None:
                    parts.append(part)
        return parts

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move to the module's device, not its dtype: adapters train in float32 with a bfloat16 encoder."""
        device = device or next(self.base_layer.parameters()).device
        for part in self._parts_of(adapter_name):
            tensor = part if isinstance(part, nn.Parameter) else next(part.parameters())
            # Tensors on the meta device have nothing to move; loading gives them their values and their device.
            if device.type != "meta" and not tensor.is_meta:
                _in_place(part, device=device)


def _in_place(part: nn.Parameter | nn.Module, **to: Any) -> None:
    if isinstance(part, nn.Parameter):
        # The parameter stays the same object, which an optimizer may hold already.
        part.data = part.data.to(**to)
    else:
        part.to(**to)


class EncoderTuner(BaseTuner):
    """Tuner of a model's pretrained layers; subclasses define which modules it wraps, and in which layer."""

    tuner_layer_cls: type[WrappedModule]
    target_module_mapping: dict[str, list[str]] = {}
    can_be_merged: ClassVar[bool] = False
    """Whether adapters can be merged into weights: not tokens, nor modules after a non-linear layer."""
    layers_have_tensors: ClassVar[bool] = True
    """Whether PEFT can tell by the tensors of a stored adapter which layers it adapts; else only by its config."""
    needs_positions: ClassVar[bool] = False
    """Whether the layers must get the positions of tokens."""
    mixes_tokens: ClassVar[bool] = False
    """Whether adapters let a token see others, beside what the attention of the layers lets it see."""
    attention_axes: ClassVar[tuple[str, ...]] = ("tokens", "batch", "patches")
    """What may attend to each other in the layers, see `LayerStack`."""

    def default_targets(self, peft_config: EncoderTunerConfig) -> str:
        """Return a regular expression of the modules to wrap; here, complete layers."""
        # They become part of the pattern, to which PEFT would apply them once more.
        numbers = getattr(peft_config, "layers_to_transform", None)
        if numbers is not None:
            vars(peft_config)["layers_to_transform"] = None
        return encoder_layer_pattern(self.model, numbers)

    def wrap(self, target: nn.Module) -> WrappedModule:
        """Wrap a frozen module in the method's layer."""
        return self.tuner_layer_cls(target)

    def adapter_settings(self, adapter_name: str, peft_config: PeftConfig, target: nn.Module) -> dict[str, Any]:
        """Return further arguments of `update_layer` and `build` for a module, which may be wrapped already."""
        return {}

    def check_layers(self, peft_config: EncoderTunerConfig, names: list[str], adapted: list[bool]) -> None:
        """Check which of the encoder's layers, by their names in the model, are adapted."""

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the model; the user's config is not changed, so that it can be used for other models."""
        for module in model.modules():
            if "_packed_params" in module._modules:
                raise ValueError("quantize_dynamic lets no gradient through to an adapter; train it first")
        # PEFT would leave out layers without tensors of their own.
        if not self.layers_have_tensors:
            kwargs.pop("state_dict", None)
        # Defaults are filled in below, and another model would need other ones.
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        # New modules are in training mode, and PEFT leaves them so.
        for layer in () if model.training else list(model.modules()):
            if isinstance(layer, self.tuner_layer_cls):
                layer.training = False
                for name, part in layer.named_children():
                    # The pretrained layer keeps its mode.
                    part.train(part.training and name == "base_layer")

    def _prepare_adapter_config(self, peft_config: EncoderTunerConfig, model_config: Any) -> EncoderTunerConfig:
        stack = layer_stack(self.model)
        model_name = type(self.model).__name__
        if peft_config.task_type not in _TASK_TYPES:
            allowed = ", ".join(repr(str(name.value)) for name in _TASK_TYPES if name)
            raise ValueError(
                f"task_type={str(peft_config.task_type)!r}: {model_name} reads point clouds; expected None, {allowed}"
            )
        if self.needs_positions and not stack.views:
            raise ValueError(f"layers of {model_name} get no positions of tokens, which {peft_config.method} needs")
        if self.mixes_tokens and getattr(type(self.model), "predicts_later_tokens", False):
            raise ValueError(
                f"{peft_config.method} mixes the tokens of a cloud, so that {model_name} would see the patches that "
                "it predicts; use a method that changes each token alone, such as LoRA, BITFIT or SIDE_TUNING"
            )
        if stack.attention_axis not in self.attention_axes:
            raise ValueError(f"{peft_config.method} cannot adapt layers with attention_axis={stack.attention_axis!r}")
        if peft_config.target_modules is None:
            peft_config.target_modules = self.default_targets(peft_config)
        names = peft_config.modules_to_save
        if peft_config.task_type in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
            # PEFT appends the heads of text classifiers each time it uses a config.
            while names and names[-2:] == ["classifier", "score"]:
                names = names[:-2]
            names = names or None
        peft_config.modules_to_save = trainable_module_names(self.model) if names is None else names
        # Which of the layers match, before any of them is wrapped.
        layers = set(stack.layers)
        paths = []
        adapted = []
        for path, module in self.model.named_modules():
            if module in layers:
                paths.append(path)
                adapted.append(bool(self._check_target_module_exists(peft_config, path)))
        self.check_layers(peft_config, paths, adapted)
        return peft_config

    def _check_merge_allowed(self) -> None:
        if not self.can_be_merged:
            raise ValueError(f"{self.prefix[:-1]} cannot be merged into the encoder; use unload() to remove it")
        super()._check_merge_allowed()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast half precision adapters to float32, or to the layers' type if `autocast_adapter_dtype=False`."""
        for layer in self.model.modules():
            if not isinstance(layer, self.tuner_layer_cls):
                continue
            for part in layer._parts_of(adapter_name):
                current = part.dtype if isinstance(part, nn.Parameter) else next(part.parameters()).dtype
                if not autocast_adapter_dtype:
                    # Quantized weights have integers.
                    weights = (weight for weight in layer.base_layer.parameters() if weight.is_floating_point())
                    _in_place(part, dtype=next(weights).dtype)
                # Steps of a small learning rate are lost in half precision.
                elif torch.finfo(current).bits < 32:
                    _in_place(part, dtype=torch.float32)

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        **kwargs: Any,
    ) -> None:
        settings = self.adapter_settings(adapter_name, peft_config, target)
        # A further adapter joins the layer that an earlier one has wrapped.
        layer: Any = target if isinstance(target, self.tuner_layer_cls) else self.wrap(target)
        layer.update_layer(adapter_name, peft_config, **settings)
        if layer is not target:
            setattr(parent, target_name, layer)
        # PEFT sets the active and trained adapters once all layers are replaced.

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # Hooks are on the frozen modules, which stay when the adapter goes.
        for hook in getattr(child, "hooks", ()):
            hook.remove()
        setattr(parent, child_name, new_module)


def check_later_layers(names: list[str], adapted: list[bool], first: int) -> None:
    """Check that all layers from the number `first` on are adapted, to which the tokens that it adds go."""
    left_out = [name for name, is_adapted in zip(names[first:], adapted[first:], strict=True) if not is_adapted]
    if left_out:
        raise ValueError(f"the layers leave out {left_out[0]}, to which the tokens go that {names[first]} adds")


def tokens_of(model: nn.Module) -> int:
    """Return the number of tokens of a cloud that a model's layers read, without a class token."""
    # A detector passes on the layers of the point transformer inside it, which has the size.
    owners = [part for part in model.modules() if getattr(type(part), "layer_stack", None) and part.layer_stack]
    config: Any = owners[-1].config
    count = config.num_groups if hasattr(config, "num_groups") else config.num_tokens
    # Pretraining hides some of the patches from the layers.
    hidden = int(model.config.mask_ratio * count) if getattr(type(model), "hides_patches", False) else 0
    return count - hidden


def check_embeds_patches(model: nn.Module, method: str) -> None:
    """Check that the point transformer of a model embeds further patches of whole clouds for a method's adapters."""
    # By a record of the model's type, not by its class.
    able = {name: kind for name, kind in MODEL_TYPES.items() if kind.embeds_further_patches}
    kind = type_of_model(type(encoder_owner(model)))
    # Pretraining hides patches from the encoder, which further patches of the cloud would show.
    if kind not in able.values() or getattr(type(model), "hides_patches", False):
        raise ValueError(
            f"{method} embeds further patches of each cloud, which the encoder of {type(model).__name__} cannot do; "
            f"expected a model that gives whole clouds to {' or '.join(kind.base for kind in able.values())}"
        )
