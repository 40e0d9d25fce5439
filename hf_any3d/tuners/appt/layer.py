"""Frozen layer with prompts of the model's point embedding, and learned locations of tokens."""

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.layers.direct_weights import gathered, is_sharded
from hf_any3d.modeling.point_ops.geometry import Geometry, normalize_centers
from hf_any3d.tuners.appt.config import APPTConfig
from hf_any3d.tuners.tuners_utils import WrappedModule


class APPTLayer(WrappedModule):
    """Frozen layer that runs on the tokens of a cloud and, behind them, its prompts.

    Attention is bidirectional, so prompts may follow the tokens, and the class token stays first.

    Args:
        base_layer: The frozen layer.
        hidden_size: Channels of a token.
        number: Number of the layer in the encoder.
    """

    adapter_layer_names = ("appt_relative", "appt_location")
    other_param_names = (*WrappedModule.other_param_names, "starts")
    takes_geometry = True

    def __init__(self, base_layer: nn.Module, hidden_size: int, number: int):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.number = number
        self.appt_relative = nn.ModuleDict()
        self.appt_location = nn.ModuleDict()
        self.starts: dict[str, int] = {}
        """By adapter, the number of its first layer."""

    def build(self, adapter_name: str, config: APPTConfig, start: int = 0) -> None:
        """Create an adapter whose first layer has the number `start`; all of its weights are there."""
        self.starts[adapter_name] = start
        if start != self.number:
            return
        self.appt_relative[adapter_name] = nn.Linear(3, config.r)
        location = nn.Linear(config.r, self.hidden_size)
        if config.init_weights:
            nn.init.zeros_(location.weight)
            nn.init.zeros_(location.bias)
        self.appt_location[adapter_name] = location

    @property
    def replaces_positions(self) -> bool:
        """True if a model that projects tokens into views leaves out the encoder's positions there."""
        return any(not self.configs[name].keep_positions for name in self._running_adapters())

    @property
    def takes_added_tokens(self) -> bool:
        """True if the model leaves prompts of earlier layers behind the tokens."""
        return bool(self._arrived())

    @property
    def extra_tokens(self) -> int:
        """Number of prompts behind the tokens, by which the model extends masks and positions."""
        return sum(self.configs[name].num_prompts for name in self._running_adapters())

    def _arrived(self) -> list[str]:
        """Return the adapters whose prompts come from earlier layers, in the order of the prompts."""
        names = self._running_adapters()
        names = [name for name in names if self.configs[name].insertion == "first_layer"]
        # Sorting is stable: those that start at the same layer keep their order.
        return sorted((name for name in names if self.starts[name] < self.number), key=lambda name: self.starts[name])

    def prepare_tokens(self, hidden_states: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        """Return the input of the layer, `(batch, sequence + prompts, hidden)`.

        Models call it before the layer. The input has the prompts of earlier layers, if the layer takes them.
        """
        names = self._running_adapters()
        if not names:
            return hidden_states
        special = geometry.special_tokens
        count = special + geometry.centers.shape[1]
        tokens = hidden_states[:, :count]
        for name in names:
            # Once, where the adapter starts; the class token has no location.
            if self.starts[name] == self.number:
                located = tokens[:, special:] + self._locations(name, geometry).to(tokens.dtype)
                tokens = torch.cat([tokens[:, :special], located], dim=1)
        arrived = self._arrived()
        new = [name for name in names if name not in arrived]
        # Those that go on come first, so that prompts behind them can be cut.
        new.sort(key=lambda name: self.configs[name].insertion == "every_layer")
        place = count
        sequence = [tokens]
        for name in (*arrived, *new):
            embedded, positions = self._embedded(name, geometry)
            if name in arrived:
                prompts = hidden_states[:, place : place + embedded.shape[1]]
                place += embedded.shape[1]
            else:
                prompts = embedded.to(tokens.dtype)
                prompts = prompts + self._locations(name, geometry)[:, : prompts.shape[1]].to(tokens.dtype)
            # Those that the model adds to the tokens before each layer.
            sequence.append(prompts + positions.to(tokens.dtype))
        return torch.cat(sequence, dim=1)

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer on what `prepare_tokens` returns; prompts stay behind the tokens."""
        # Models give it to both; the frozen layer has no such argument.
        kwargs.pop("geometry", None)
        return hidden_of(self.base_layer(hidden_states, *args, **kwargs))

    def _embedded(self, name: str, geometry: Geometry) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the prompts' patches and their positions `(batch, prompts, hidden)`, made once for all layers."""
        config = self.configs[name]
        count = config.num_prompts
        tokens = geometry.centers.shape[1]
        if count > tokens:
            raise ValueError(f"num_prompts={count}; expected at most {tokens}, the number of tokens of a cloud")
        embed = geometry.embed_patches
        assert embed is not None  # the tuner takes only models that have it
        return geometry.once(("patches", count, config.group_size), lambda _: embed(count, config.group_size))

    def _locations(self, name: str, geometry: Geometry) -> torch.Tensor:
        """Return the locations `(batch, tokens, hidden)` of the tokens, made once, by the adapter's first layer."""

        def compute(_: torch.Tensor) -> torch.Tensor:
            weights = [*self.appt_relative[name].parameters(), *self.appt_location[name].parameters()]
            # FSDP2 gathers the weights of a layer only while that layer runs.
            weights = [gathered(weight) if is_sharded(weight) else weight for weight in weights]
            return locations(normalize_centers(geometry.centers), *weights)

        return geometry.once(("appt locations", name), compute)


def locations(
    centers: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    out_weight: torch.Tensor,
    out_bias: torch.Tensor,
) -> torch.Tensor:
    """Return V max_j relu(W (c_j - c_i) + b) + d for centers c `(batch, tokens, 3)`: `(batch, tokens, hidden)`.

    It depends neither on the order of the other tokens nor on where the cloud is. No pair is computed: as relu never
    decreases, the maximum over j is that of W c_j, for all i.

    Args:
        centers: Places of the tokens.
        weight: W, `(r, 3)`.
        bias: b, `(r,)`.
        out_weight: V, `(hidden, r)`.
        out_bias: d, `(hidden,)`.
    """
    along = nn.functional.linear(centers.to(weight.dtype), weight)  # (batch, tokens, r)
    feature = torch.relu(along.amax(dim=1, keepdim=True) - along + bias)
    return nn.functional.linear(feature, out_weight, out_bias)
