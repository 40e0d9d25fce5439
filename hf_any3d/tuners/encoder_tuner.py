"""What our PEFT methods share beside their layers: they find their places in the encoder by themselves."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from peft import PeftConfig, TaskType
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from hf_any3d.tuners.targets import trainable_module_names
from hf_any3d.tuners.wrapped import WrappedModule

# Task types whose PEFT models pass nothing on that a point model could not read, and their names of a head, which PEFT
# appends to `modules_to_save` of the user's config, each time it is used.
_TASK_TYPES = (None, TaskType.FEATURE_EXTRACTION, TaskType.SEQ_CLS, TaskType.TOKEN_CLS)
_HEADS_OF_PEFT = ["classifier", "score"]


class EncoderTuner(BaseTuner):
    """A tuner of a model's pretrained layers; a subclass says which modules it wraps, and in what.

    Raises:
        ValueError: If the model has no frozen encoder that reads point tokens, and no point transformer; a `task_type`
            of models that read or write texts.
    """

    tuner_layer_cls: type[WrappedModule]
    target_module_mapping: dict[str, list[str]] = {}

    def default_targets(self, peft_config: PeftConfig) -> str:
        """A regular expression of the modules to wrap."""
        raise NotImplementedError(f"{type(self).__name__} does not say what it wraps")

    def wrap(self, target: nn.Module) -> WrappedModule:
        """Put a frozen module into the method's layer."""
        return self.tuner_layer_cls(target)

    def adapter_settings(self, adapter_name: str, peft_config: PeftConfig) -> dict[str, Any]:
        """Further arguments of `update_layer`."""
        return {}

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Put an adapter into the model; the config at hand stays as the user made it, to be used for other models."""
        self.peft_config[adapter_name] = copy.deepcopy(self.peft_config[adapter_name])
        super().inject_adapter(model, adapter_name, *args, **kwargs)

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: Any) -> PeftConfig:
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

    def _cast_adapter_dtype(self, adapter_name: str, autocast_adapter_dtype: bool = True) -> None:
        """Lift half precision adapters to float32, or give them the layers' type if `autocast_adapter_dtype=False`."""
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
        settings = self.adapter_settings(adapter_name, peft_config)
        if isinstance(target, self.tuner_layer_cls):
            target.update_layer(adapter_name, peft_config, **settings)
            return
        layer = self.wrap(target)
        layer.update_layer(adapter_name, peft_config, **settings)
        # Which adapters are active, and train, is settled by PEFT when all layers are in place.
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)


def _modules_to_save(peft_config: PeftConfig) -> list[str] | None:
    """The user's choice of `modules_to_save`, without the names that PEFT appends for classifiers of texts."""
    names = peft_config.modules_to_save
    if names is None or peft_config.task_type not in (TaskType.SEQ_CLS, TaskType.TOKEN_CLS):
        return names
    while names[-2:] == _HEADS_OF_PEFT:
        names = names[:-2]
    return names or None
