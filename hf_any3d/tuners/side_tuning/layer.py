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
    the next one takes it. The encoder's last layer adds it to its output. Where tokens are pooled between stages, the
    state is pooled with them.

    Args:
        base_layer: The frozen layer.
        hidden_size: Channels of a token.
        is_last: Whether this is the encoder's last layer.
        is_pooled: Whether the tokens are pooled before this layer; it gets their places as its second argument.
        ends_stage: Whether heads read the output of this layer too.
    """

    adapter_layer_names = tuple(
        f"side_tuning_{part}" for part in ("down", "gate", "norm", "fc1", "fc2", "entry", "up")
    )
    other_param_names = (*WrappedModule.other_param_names, "side_tuning_dropout")

    def __init__(
        self, base_layer: nn.Module, hidden_size: int, is_last: bool, is_pooled: bool = False, ends_stage: bool = False
    ):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.is_last = is_last
        self.is_pooled = is_pooled
        self.ends_stage = ends_stage
        for name in (*self.adapter_layer_names, "side_tuning_dropout"):
            setattr(self, name, nn.ParameterDict() if name == "side_tuning_gate" else nn.ModuleDict())
        self._states: dict[str, torch.Tensor] = {}

    def build(self, adapter_name: str, config: SideTuningConfig) -> None:
        """Create a step that continues the state of an earlier layer, or reads its input if there is none."""
        width = config.r
        hidden = max(1, int(config.r * config.mlp_ratio))
        self.side_tuning_down[adapter_name] = nn.Linear(self.hidden_size, width)
        # The sigmoid of 0 weighs layer and side network equally.
        self.side_tuning_gate[adapter_name] = nn.Parameter(torch.zeros(width))
        self.side_tuning_norm[adapter_name] = nn.LayerNorm(width)
        self.side_tuning_fc1[adapter_name] = nn.Linear(width, hidden)
        self.side_tuning_dropout[adapter_name] = nn.Dropout(config.dropout)
        self.side_tuning_fc2[adapter_name] = nn.Linear(hidden, width)
        if adapter_name not in self.earlier:
            self.side_tuning_entry[adapter_name] = nn.Linear(self.hidden_size, width)
        if self.is_last or self.ends_stage:
            up = self.side_tuning_up[adapter_name] = nn.Linear(width, self.hidden_size)
            if config.init_weights:
                # With zeros the adapted model starts as the frozen one.
                nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)

    @property
    def gradient_checkpointing(self) -> bool:
        """Always False: the frozen layer saves no activations, and the state would be taken twice."""
        return False

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, value: bool) -> None:
        """Ignore what transformers sets on all modules that have this attribute."""

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer and the active side networks."""
        names = self._running_adapters()
        if not names:
            return hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        with torch.no_grad():
            # No activations of the frozen layers are kept, which is what side-tuning saves.
            output = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        places = args[0] if self.is_pooled else None
        # Kept here until the next layer takes them.
        self._states = {name: self._step(name, hidden_states, output, places) for name in names}
        if not self.is_last:
            return output
        states = self._states
        self._states = {}
        return self._with_states(output, states)

    def stage_output(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the output of a stage for heads: that of this layer, plus the states of the side networks.

        The next stage reads this layer's output without them, so that the encoder computes what it was trained for.
        """
        return self._with_states(hidden_states, self._states) if self.ends_stage else hidden_states

    def _with_states(self, output: torch.Tensor, states: dict[str, torch.Tensor]) -> torch.Tensor:
        for name, state in states.items():
            output = output + self.side_tuning_up[name](state).to(output.dtype)
        return output

    def _step(self, name: str, inputs: torch.Tensor, output: torch.Tensor, places: Any) -> torch.Tensor:
        """Compute the next state of a side network, `(batch, sequence, r)` or `(tokens, r)`."""
        if name in self.side_tuning_entry:
            entry = self.side_tuning_entry[name]
            state = entry(in_precision_of(entry, inputs))
        else:
            # Taken and not only read: a state holds the graph of its forward pass, which must not outlive it.
            state = self.earlier[name][0]._states.pop(name)
            state = state if places is None else places.pool_mean(state)
        down = self.side_tuning_down[name]
        seen = down(in_precision_of(down, output))
        gate = self.side_tuning_gate[name].sigmoid()
        # A mean of both, weighted by the gate.
        state = seen + gate.to(state.dtype) * (state - seen)
        hidden = nn.functional.gelu(self.side_tuning_fc1[name](self.side_tuning_norm[name](state)))
        return state + self.side_tuning_fc2[name](self.side_tuning_dropout[name](hidden))
