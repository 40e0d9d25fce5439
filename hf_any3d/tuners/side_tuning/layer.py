"""Frozen layer with a step of a side network."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.layers.heads import in_precision_of
from hf_any3d.tuners.side_tuning.config import SideTuningConfig
from hf_any3d.tuners.tuners_utils import WrappedModule


class SideTuningLayer(WrappedModule):
    """Frozen layer that runs without gradients, followed by a step of the side network.

    The state of the side network is handed from layer to layer beside the encoder's tokens: each layer keeps it until
    the next one takes it. The encoder's last layer adds it to its output.

    Args:
        base_layer: The frozen layer.
        hidden_size: Channels of a token.
        is_last: Whether this is the encoder's last layer.
    """

    adapter_layer_names = (
        "side_tuning_down",
        "side_tuning_gate",
        "side_tuning_norm",
        "side_tuning_fc1",
        "side_tuning_fc2",
        "side_tuning_entry",
        "side_tuning_up",
    )
    other_param_names = ("side_tuning_dropout", "previous")
    merge_error = "a side network cannot be merged into the encoder; use unload() to remove it"

    def __init__(self, base_layer: nn.Module, hidden_size: int, is_last: bool):
        super().__init__(base_layer)
        self.hidden_size, self.is_last = hidden_size, is_last
        for name in (*self.adapter_layer_names, "side_tuning_dropout"):
            setattr(self, name, nn.ParameterDict() if name == "side_tuning_gate" else nn.ModuleDict())
        self.previous: dict[str, tuple[SideTuningLayer, ...]] = {}
        self._states: dict[str, torch.Tensor] = {}

    def update_layer(self, adapter_name: str, config: SideTuningConfig, previous: SideTuningLayer | None) -> None:
        """Add an adapter.

        Args:
            adapter_name: Its name.
            config: Its settings.
            previous: The layer whose state this one continues; None for the first one, which reads its input.
        """
        width, hidden = config.r, max(1, int(config.r * config.mlp_ratio))
        self.side_tuning_down[adapter_name] = nn.Linear(self.hidden_size, width)
        self.side_tuning_gate[adapter_name] = nn.Parameter(torch.zeros(width))
        self.side_tuning_norm[adapter_name] = nn.LayerNorm(width)
        self.side_tuning_fc1[adapter_name] = nn.Linear(width, hidden)
        self.side_tuning_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.side_tuning_fc2[adapter_name] = nn.Linear(hidden, width)
        if previous is None:
            self.side_tuning_entry[adapter_name] = nn.Linear(self.hidden_size, width)
        else:
            # In a tuple, so that torch does not register the other layer as a child of this one.
            self.previous[adapter_name] = (previous,)
        if self.is_last:
            up = self.side_tuning_up[adapter_name] = nn.Linear(width, self.hidden_size)
            if config.init_weights:
                nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @property
    def gradient_checkpointing(self) -> bool:
        """Always False: the frozen layer saves no activations, and the state would be taken twice."""
        return False

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        """Ignore what transformers sets on all modules that have this attribute."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer and the active side networks on tokens `(batch, sequence, hidden)`."""
        names = self._running_adapters()
        if not names:
            return hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        with torch.no_grad():
            output = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        changed = output
        for name in names:
            state = self._step(name, hidden_states, output)
            if name in self.side_tuning_up:
                changed = changed + self.side_tuning_up[name](state).to(output.dtype)
            else:
                self._states[name] = state
        return changed

    def _step(self, name: str, inputs: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Compute the next state of a side network, `(batch, sequence, r)`."""
        if name in self.side_tuning_entry:
            entry = self.side_tuning_entry[name]
            state = entry(in_precision_of(entry, inputs))
        else:
            state = self.previous[name][0]._states.pop(name)
        down = self.side_tuning_down[name]
        seen, gate = down(in_precision_of(down, output)), self.side_tuning_gate[name].sigmoid()
        state = seen + gate.to(state.dtype) * (state - seen)
        hidden = nn.functional.gelu(self.side_tuning_fc1[name](self.side_tuning_norm[name](state)))
        return state + self.side_tuning_fc2[name](self.side_tuning_dropout[name](hidden))
