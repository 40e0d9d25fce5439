"""Frozen module with trained changes of its bias."""

from typing import Any

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import nn

from hf_any3d.tuners.bitfit.config import BitFitConfig
from hf_any3d.tuners.tuners_utils import WrappedModule


class BitFitLayer(WrappedModule):
    """Linear layer or norm with changes of its bias, which are added to its output.

    Args:
        base_layer: The frozen module, with a bias of one axis that it adds last.
    """

    adapter_layer_names = ("bitfit_bias",)

    def __init__(self, base_layer: nn.Module):
        super().__init__(base_layer)
        self.bitfit_bias = nn.ParameterDict()

    def build(self, adapter_name: str, config: BitFitConfig) -> None:
        """Create changes that are zero."""
        self.bitfit_bias[adapter_name] = nn.Parameter(torch.zeros(self.base_layer.get_parameter("bias").shape))

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the module on `(..., channels)` and add the active changes."""
        # As PEFT's layers do: a disabled adapter must not act through merged weights.
        if self.disable_adapters and self.merged:
            self.unmerge()
        output = self.base_layer(hidden_states, *args, **kwargs)
        for name in self._running_adapters():
            if name not in self.merged_adapters:
                output = output + self.bitfit_bias[name].to(output.dtype)
        return output

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Merge the changes into the bias, with `safe_merge` only where the result is finite."""
        bias = self.base_layer.bias
        for name in check_adapters_to_merge(self, adapter_names):
            if name not in self.bitfit_bias:
                continue
            # A new tensor, so that nothing has changed if it is refused below.
            merged = bias.data + self.bitfit_bias[name].data.to(bias.dtype)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"NaN or infinite values in the merged bias: adapter {name!r} was not merged")
            bias.data = merged
            self.merged_adapters.append(name)

    def unmerge(self) -> None:
        """Remove merged changes from the bias."""
        # In the reverse order, so that rounding goes back the way it came.
        while self.merged_adapters:
            change = self.bitfit_bias[self.merged_adapters.pop()]
            self.base_layer.bias.data -= change.data.to(self.base_layer.bias.dtype)
