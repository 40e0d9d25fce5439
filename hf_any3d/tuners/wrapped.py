"""What our PEFT layers share: a frozen module inside, adapters beside it."""

from __future__ import annotations

from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn


class WrappedModule(nn.Module, BaseTunerLayer):
    """Stands in for a frozen module; a subclass names its adapters in `adapter_layer_names`.

    Args:
        base_layer: The frozen module.
    """

    def __init__(self, base_layer: nn.Module):
        super().__init__()
        self.base_layer = base_layer
        self._disable_adapters = False
        self._active_adapter = "default"
        self.merged_adapters: list[str] = []

    def __getattr__(self, name: str) -> Any:
        """Look for unknown attributes in the frozen module."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("base_layer"), name)

    def _running_adapters(self) -> list[str]:
        """Adapters that take part in a forward pass, in their order."""
        if self.disable_adapters:
            return []
        return [name for name in self.active_adapters if name in getattr(self, self.adapter_layer_names[0])]

    @property
    def base_dtype(self) -> torch.dtype:
        """Floating point type of the frozen module's weights; of those that are not quantized, where some are."""
        return next(p.dtype for p in self.base_layer.parameters() if p.is_floating_point())

    def cast_adapter(self, adapter_name: str, dtype: torch.dtype | None) -> None:
        """Change the floating point type of an adapter, of the statistics that it measures too.

        Args:
            adapter_name: Name of the adapter.
            dtype: The type; None lifts what is less than float32 to float32.
        """
        for name in self.adapter_layer_names:
            adapters = getattr(self, name)
            if adapter_name not in adapters:
                continue
            adapter = adapters[adapter_name]
            own = adapter.dtype if isinstance(adapter, nn.Parameter) else next(adapter.parameters()).dtype
            if dtype is not None or torch.finfo(own).bits < 32:
                _in_place(adapter, dtype=dtype or torch.float32)

    def _move_adapter_to_device_of_base_layer(self, adapter_name: str, device: torch.device | None = None) -> None:
        """Follow the module's device but not its dtype: adapters train in float32 beside a bfloat16 encoder."""
        device = device or next(self.base_layer.parameters()).device
        for name in self.adapter_layer_names:
            adapters = getattr(self, name)
            if adapter_name not in adapters:
                continue
            adapter = adapters[adapter_name]
            tensors = [adapter] if isinstance(adapter, nn.Parameter) else list(adapter.parameters())
            if device.type != "meta" and not any(tensor.is_meta for tensor in tensors):
                _in_place(adapter, device=device)


def _in_place(adapter: nn.Parameter | nn.Module, **to: Any) -> None:
    if isinstance(adapter, nn.Parameter):
        adapter.data = adapter.data.to(**to)
    else:
        adapter.to(**to)
