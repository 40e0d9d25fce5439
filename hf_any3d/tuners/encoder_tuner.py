"""What our PEFT methods share beside their layers: they find their places in the encoder by themselves."""

from __future__ import annotations

from typing import Any

from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner
from torch import nn

from hf_any3d.tuners.targets import trainable_module_names
from hf_any3d.tuners.wrapped import WrappedModule


class EncoderTuner(BaseTuner):
    """A tuner of a model's pretrained layers; a subclass says which modules it wraps, and in what.

    Raises:
        ValueError: If the model has no frozen encoder that reads point tokens, and no point transformer.
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

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: Any) -> PeftConfig:
        if peft_config.target_modules is None:
            peft_config.target_modules = self.default_targets(peft_config)
        if peft_config.modules_to_save is None:
            peft_config.modules_to_save = trainable_module_names(self.model)
        return peft_config

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
        layer.set_adapter(self.active_adapters)
        layer.update_layer(adapter_name, peft_config, **settings)
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        setattr(parent, child_name, new_module)
