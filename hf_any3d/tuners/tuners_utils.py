"""Base classes of this package's PEFT methods: configurations, the tuner, and the layer that wraps a frozen module."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from peft import PeftConfig, PeftType, TaskType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from torch import nn

from hf_any3d.modeling.config_checks import Ranges, check_numbers
from hf_any3d.tuners.targets import encoder_layer_pattern, trainable_module_names

# Sizes of 0 would be adapters without an effect.
_RANGES: Ranges = {
    **dict.fromkeys(("r", "num_prompts"), (1, 16_384)),
    "mlp_ratio": (0.01, 8),
    **dict.fromkeys(("cell_size", "voxel_size", "curve_cell"), (1e-6, 1e6)),
}


def extend_peft_type(name: str) -> PeftType:
    """Add a member to PEFT's enum of methods, or return the existing one.

    PEFT refuses methods whose name is not a member, and an enum can neither be subclassed nor extended by public
    means, so the member is written to the enum's own tables.
    """
    if name in PeftType.__members__:
        return PeftType[name]
    # Enums are closed, and PEFT looks up methods by members of its own: these are the steps by which Python adds one.
    member = str.__new__(PeftType, name)
    member._name_ = member._value_ = name
    member._sort_order_ = len(PeftType._member_names_)  # pyright: ignore[reportAttributeAccessIssue] enum internal
    PeftType._member_names_.append(name)
    PeftType._member_map_[name] = member
    PeftType._value2member_map_[name] = member
    type.__setattr__(PeftType, name, member)
    return member


@dataclass
class EncoderTunerConfig(PeftConfig):
    """Configuration of a method that adapts modules in the layers of a frozen encoder.

    By default tokenizer, class token, output norm and head are trained and saved with the adapter.
    """

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
        check_numbers(self, _RANGES)
        if isinstance(self.target_modules, list):
            self.target_modules = set(self.target_modules)


@dataclass
class EncoderLayersConfig(EncoderTunerConfig):
    """Configuration of a method that adapts complete layers of a frozen encoder, by default all of them."""

    layers_to_transform: list[int] | int | None = field(
        default=None, metadata={"help": "Numbers of the layers to adapt; None for all."}
    )

    def __post_init__(self):
        super().__post_init__()
        if self.target_modules is not None and self.layers_to_transform is not None:
            raise ValueError("give target_modules or layers_to_transform, not both")


# Task types whose PEFT models pass on only arguments that point cloud models accept.
_TASK_TYPES = (None, TaskType.FEATURE_EXTRACTION, TaskType.SEQ_CLS, TaskType.TOKEN_CLS)
# Names of heads that PEFT appends to `modules_to_save` of the user's config each time it is used.
_PEFT_HEADS = ["classifier", "score"]


class WrappedModule(nn.Module, BaseTunerLayer):
    """Layer around a frozen module; subclasses name their adapters in `adapter_layer_names`."""

    merge_error: ClassVar[str | None] = None
    """Reason why adapters cannot be merged into the module; None if they can."""

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self._active_adapter = "default"
        self.merged_adapters: list[str] = []
        # Not registered, but made of modules that are.
        self.nested: dict[str, dict[str, Any]] = {}

    def __getattr__(self, name: str) -> Any:
        """Look for unknown attributes in the frozen module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            # Not `self.base_layer`, which would come back here for ever while it is not set.
            return getattr(super().__getattr__("base_layer"), name)

    def merge(self, *args: Any, **kwargs: Any) -> None:
        """Raise an error: modules after a non-linear layer, and tokens, cannot be merged into weights."""
        raise ValueError(self.merge_error)

    unmerge = merge

    def _running_adapters(self) -> list[str]:
        """Return the adapters that the forward pass applies, in order."""
        if self.disable_adapters:
            return []
        return [name for name in self.active_adapters if name in getattr(self, self.adapter_layer_names[0])]

    def _add_nested(self, adapter_name: str, **modules: nn.Module) -> None:
        """Add modules with modules inside to an adapter, as `self.nested[adapter_name]`.

        PEFT stores names of one level, so leaves are registered: `a.b` of `name` as `name_a_b`.
        """
        for name, module in modules.items():
            for path, leaf in module.named_modules():
                if next(leaf.children(), None) is None:
                    key = "_".join((name, *path.split("."))) if path else name
                    if key not in self._modules:
                        setattr(self, key, nn.ModuleDict())
                        self.adapter_layer_names = (*self.adapter_layer_names, key)
                    getattr(self, key)[adapter_name] = leaf
            self.nested.setdefault(adapter_name, {})[name] = module

    def _parts_of(self, adapter_name: str) -> list[Any]:
        """Return the parameters of an adapter, and its modules that have some."""
        parts = [getattr(self, name) for name in self.adapter_layer_names]
        own = [part[adapter_name] for part in parts if adapter_name in part]
        return [part for part in own if isinstance(part, nn.Parameter) or any(True for _ in part.parameters())]

    @property
    def base_dtype(self) -> torch.dtype:
        """Floating point type of the frozen module's weights, ignoring quantized ones."""
        return next(p.dtype for p in self.base_layer.parameters() if p.is_floating_point())

    def cast_adapter(self, adapter_name: str, dtype: torch.dtype | None) -> None:
        """Change the floating point type of an adapter, including its running statistics."""
        for adapter in self._parts_of(adapter_name):
            own = adapter.dtype if isinstance(adapter, nn.Parameter) else next(adapter.parameters()).dtype
            if dtype is not None or torch.finfo(own).bits < 32:
                _in_place(adapter, dtype=dtype or torch.float32)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Move to the module's device, not its dtype: adapters train in float32 with a bfloat16 encoder."""
        device = device or next(self.base_layer.parameters()).device
        for adapter in self._parts_of(adapter_name):
            tensors = [adapter] if isinstance(adapter, nn.Parameter) else list(adapter.parameters())
            # Tensors on the meta device have nothing to move; loading gives them their values and their device.
            if device.type != "meta" and not any(tensor.is_meta for tensor in tensors):
                _in_place(adapter, device=device)


def _in_place(adapter: nn.Parameter | nn.Module, **to: Any) -> None:
    if isinstance(adapter, nn.Parameter):
        # The parameter stays the same object, which an optimizer may hold already.
        adapter.data = adapter.data.to(**to)
    else:
        adapter.to(**to)


class EncoderTuner(BaseTuner):
    """Tuner of a model's pretrained layers; subclasses define which modules it wraps, and in which layer."""

    tuner_layer_cls: type[WrappedModule]
    target_module_mapping: dict[str, list[str]] = {}

    def default_targets(self, peft_config: EncoderTunerConfig) -> str:
        """Return a regular expression of the modules to wrap; here, complete layers."""
        assert isinstance(peft_config, EncoderLayersConfig)
        pattern = encoder_layer_pattern(self.model, peft_config.layers_to_transform)
        peft_config.layers_to_transform = None
        return pattern

    def wrap(self, target: nn.Module) -> WrappedModule:
        """Wrap a frozen module in the method's layer."""
        return self.tuner_layer_cls(target)

    def adapter_settings(self, adapter_name: str, peft_config: PeftConfig, target: nn.Module) -> dict[str, Any]:
        """Return further arguments of `update_layer` for a module, which may be wrapped already."""
        return {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the model; the user's config is not changed, so that it can be used for other models."""
        if any("_packed_params" in module._modules for module in model.modules()):
            raise ValueError(
                "layers that torch.ao.quantization.quantize_dynamic made pass no gradient to an adapter; expected the "
                "model before it: train and save the adapter first, quantize last"
            )
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: EncoderTunerConfig, model_config: Any) -> EncoderTunerConfig:
        if peft_config.task_type not in _TASK_TYPES:
            allowed = ", ".join(repr(str(name.value)) for name in _TASK_TYPES if name)
            raise ValueError(
                f"task_type={str(peft_config.task_type)!r}: {type(self.model).__name__} reads point clouds; "
                f"expected None, {allowed}"
            )
        if peft_config.target_modules is None:
            peft_config.target_modules = self.default_targets(peft_config)
        peft_config.modules_to_save = _modules_to_save(peft_config)
        if peft_config.modules_to_save is None:
            peft_config.modules_to_save = trainable_module_names(self.model)
        return peft_config

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if (names := kwargs.get("adapter_names")) is not None:
            raise ValueError(
                f"adapter_names={names}: {type(self).__name__} runs one adapter for a whole batch; choose it by "
                "set_adapter(…) and call the model once for each"
            )
        yield

    def _check_merge_allowed(self) -> None:
        if (error := self.tuner_layer_cls.merge_error) is not None:
            raise ValueError(error)
        super()._check_merge_allowed()

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Cast half precision adapters to float32, or to the layers' type if `autocast_adapter_dtype=False`."""
        for layer in self.model.modules():
            if isinstance(layer, self.tuner_layer_cls):
                layer.cast_adapter(adapter_name, None if autocast_adapter_dtype else layer.base_dtype)

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
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, **settings)
            return
        layer = self.wrap(target)
        layer.update_layer(adapter_name, peft_config, **settings)
        # PEFT sets the active and trained adapters once all layers are replaced.
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)


def _modules_to_save(peft_config: EncoderTunerConfig) -> list[str] | None:
    """Return the user's `modules_to_save`, without the names that PEFT appends for text classifiers."""
    names = peft_config.modules_to_save
    if names is None or peft_config.task_type not in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
        return names
    while names[-2:] == _PEFT_HEADS:
        names = names[:-2]
    return names or None
