"""Frozen layer with a prompt made of the tokens, and the relation of each token to their mean."""

from typing import Any, cast

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.layers.direct_weights import gathered, is_sharded
from hf_any3d.modeling.point_ops.geometry import Geometry
from hf_any3d.tuners.appt.config import APPTConfig
from hf_any3d.tuners.tuners_utils import WrappedModule


class APPTLayer(WrappedModule):
    """Frozen layer that runs on the tokens of a cloud and, behind them, its prompts.

    Attention is bidirectional, so prompts may follow the tokens, and the class token stays first.

    Args:
        base_layer: The frozen layer.
        hidden_size: Channels of a token.
        number: Number of the layer in the encoder.
        is_last: Whether no layer follows.
    """

    adapter_layer_names = ("appt_relation", "appt_positions")
    other_param_names = (*WrappedModule.other_param_names, "starts")
    takes_geometry = True

    def __init__(self, base_layer: nn.Module, hidden_size: int, number: int, is_last: bool):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.number = number
        self.is_last = is_last
        self.appt_relation = nn.ModuleDict()
        self.appt_positions = nn.ParameterDict()
        self.starts: dict[str, int] = {}
        """By adapter, the number of its first layer."""

    def build(self, adapter_name: str, config: APPTConfig, start: int = 0, tokens: int = 0) -> None:
        """Create an adapter for clouds of `tokens`, whose first layer has the number `start` and all weights."""
        self.starts[adapter_name] = start
        if start != self.number:
            return
        self.appt_relation[adapter_name] = nn.Linear(2, 1)
        if config.order_table:
            # The first row is the class token's, if there is one.
            self.appt_positions[adapter_name] = nn.Parameter(torch.zeros(1 + tokens, self.hidden_size))

    @property
    def replaces_positions(self) -> bool:
        """True if a model that projects tokens into views leaves out the encoder's positions there."""
        return bool(self._running_adapters())

    @property
    def takes_added_tokens(self) -> bool:
        """True if the model leaves prompts of earlier layers behind the tokens."""
        return any(self.starts[name] < self.number for name in self._running_adapters())

    @property
    def extra_tokens(self) -> int:
        """Number of prompts behind the tokens, by which the model extends masks and positions."""
        return sum(1 + self.number - self.starts[name] for name in self._running_adapters())

    def prepare_tokens(self, hidden_states: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """Return the input of the layer, `(batch, sequence + prompts, hidden)`.

        Models call it before the layer. The input has the prompts of earlier layers, if the layer takes them.
        """
        special = geometry.special_tokens
        count = special + geometry.centers.shape[1]
        for name in self._running_adapters():
            key = ("appt prompt", name)
            if self.starts[name] == self.number:
                patches = hidden_states[:, special:count]
                prompt = patches.amax(dim=1, keepdim=True) + patches.mean(dim=1, keepdim=True)
                # The same before each layer
                geometry.once(key, lambda _, prompt=prompt: prompt)
                hidden_states = self._related(name, hidden_states, special, count)
            hidden_states = torch.cat([hidden_states, geometry.once(key, _missing)], dim=1)
        return hidden_states

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer on what `prepare_tokens` returns; prompts stay behind the tokens."""
        # Models give it to both; the frozen layer has no such argument.
        kwargs.pop("geometry", None)
        output = hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        newest = len(self._running_adapters())
        if not newest or not self.is_last:
            return output
        # The program inserts the prompt after the last layer too, in place of that layer's output for it.
        return torch.cat([output[:, :-newest], hidden_states[:, -newest:].to(output.dtype)], dim=1)

    def _related(self, name: str, hidden_states: torch.Tensor, special: int, count: int) -> torch.Tensor:
        """Relate each token to the mean of all of them, and add the table of positions, if there is one."""
        relation = cast(nn.Linear, self.appt_relation[name])
        weight = _whole(relation.weight)
        bias = _whole(relation.bias)
        patches = hidden_states[:, special:count].to(weight.dtype)
        own, to_mean = weight[0]
        patches = patches + own * patches + to_mean * (patches - patches.mean(dim=1, keepdim=True)) + bias
        # The prompts of other adapters, which start earlier, stay behind.
        before, behind = hidden_states[:, :special], hidden_states[:, count:]
        sequence = torch.cat([before.to(patches.dtype), patches], dim=1)
        if name in self.appt_positions:
            table = _whole(self.appt_positions[name])
            # The first row is that of a class token; further tokens before those of the cloud get none.
            of_special = nn.functional.pad(table[:1], (0, 0, 0, special - 1))
            # In training a tokenizer may give the first tokens alone.
            sequence = sequence + torch.cat([of_special, table[1 : 1 + patches.shape[1]]])
        return torch.cat([sequence.to(hidden_states.dtype), behind], dim=1)


def _whole(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight; FSDP2 gathers those of a layer only while that layer runs."""
    return gathered(weight) if is_sharded(weight) else weight


def _missing(_: torch.Tensor) -> torch.Tensor:
    raise RuntimeError("no layer before has made the prompt")
