"""Frozen layer with prompts made of the tokens of each cloud."""

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.modeling.layers.direct_weights import gathered, is_sharded
from hf_any3d.modeling.point_ops.geometry import Geometry
from hf_any3d.tuners.idpt.config import IDPTConfig
from hf_any3d.tuners.idpt.module import PromptModule, TransformerPromptModule
from hf_any3d.tuners.tuners_utils import WrappedModule

_SPREAD = 0.02
"""Standard deviation of the initial position."""
_HEAD_WIDTH = 64
"""Channels of a head of attention, where the layer does not show its number of heads."""


class IDPTLayer(WrappedModule):
    """Frozen layer that runs on the tokens and the prompts that earlier layers and this one have made of them.

    Prompts follow the tokens, so that the class token stays first; attention is bidirectional.

    Args:
        base_layer: The frozen layer.
        hidden_size: Channels of a token.
        is_open: Whether the layer takes the positions of the tokens as its second argument.
    """

    adapter_layer_names = ("idpt_position",)
    other_param_names = (*WrappedModule.other_param_names, "arriving")
    takes_geometry = True

    def __init__(self, base_layer: nn.Module, hidden_size: int, is_open: bool):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.is_open = is_open
        self.idpt_position = nn.ParameterDict()
        self.arriving: dict[str, tuple[int, ...]] = {}

    def build(
        self, adapter_name: str, config: IDPTConfig, arriving: tuple[int, ...] = (), makes_prompt: bool = True
    ) -> None:
        """Create an adapter; at its layer prompts arrive that the layers of the numbers `arriving` have made."""
        self.arriving[adapter_name] = arriving
        if makes_prompt:
            if config.prompt_module == "transformer":
                # As many heads as the layer has; elsewhere the most that leave each 64 channels or more
                attention = getattr(self.base_layer, "attention", None) if self.is_open else None
                counts = range(max(1, self.hidden_size // _HEAD_WIDTH), 0, -1)
                fitting = next(count for count in counts if self.hidden_size % count == 0)
                heads = getattr(attention, "num_heads", None) or fitting
                module: nn.Module = TransformerPromptModule(self.hidden_size, heads)
            else:
                module = PromptModule(config.prompt_module, self.hidden_size, config.neighbors)
            self._add_nested(adapter_name, idpt=module)
        if adapter_name not in self.earlier:
            # One position for all prompts of an adapter, in the layer that makes the first of them.
            position = nn.Parameter(torch.empty(1, 1, self.hidden_size), requires_grad=config.train_position)
            self.idpt_position[adapter_name] = nn.init.trunc_normal_(position, std=_SPREAD)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Set the active adapters; positions that stay random are not trained."""
        super().set_adapter(adapter_names, inference_mode)
        for name, position in self.idpt_position.items():
            # PEFT makes all weights of an active adapter trainable.
            position.requires_grad_(position.requires_grad and self.configs[name].train_position)

    @property
    def takes_added_tokens(self) -> bool:
        """True if the model leaves prompts of earlier layers behind the tokens."""
        return bool(self._arrived())

    @property
    def extra_tokens(self) -> int:
        """Number of prompts behind the tokens, by which the model extends masks and positions."""
        return len(self._arrived()) + sum(name in self.nested for name in self._running_adapters())

    def _arrived(self) -> list[str]:
        """Return the adapters of the prompts that arrive, in their order."""
        names = self._running_adapters()
        # Sorted by the layer that made them, then by adapter: the order in which they were appended.
        prompts = [(number, place) for place, name in enumerate(names) for number in self.arriving[name]]
        return [names[place] for _, place in sorted(prompts)]

    def forward(self, hidden_states: torch.Tensor, *args: Any, geometry: Geometry, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer on tokens and prompts.

        Returns:
            The tokens and the prompts that go on; if none does, the prompts made here after this layer and before it.
        """
        names = self._running_adapters()
        if not names:
            return hidden_of(self.base_layer(hidden_states, *args, **kwargs))
        special = geometry.special_tokens
        # Behind the class token and the patches come prompts of earlier layers.
        count = special + geometry.centers.shape[1]
        tokens = hidden_states[:, :count]
        prompts = hidden_states[:, count:]
        positions = args[0][:, special:count] if self.is_open and args and args[0] is not None else None
        makers = [name for name in names if name in self.nested]
        # Of the patches alone, without positions, as released; a transformer block adds them itself.
        new = [self.nested[name]["idpt"](tokens[:, special:], positions).to(tokens.dtype) for name in makers]
        owners = (*self._arrived(), *makers)
        # Positions are added before every layer, as to all other tokens.
        places = [self._owner_for(name).idpt_position[name] for name in owners]
        places = [(gathered(place) if is_sharded(place) else place).to(tokens.dtype) for place in places]
        prompts = torch.cat([prompts, *new], dim=1)  # (batch, prompts, hidden)
        placed = prompts + torch.cat(places, dim=1) if places else prompts
        output = hidden_of(self.base_layer(torch.cat([tokens, placed], dim=1), *args, **kwargs))
        kept = [number for number, name in enumerate(owners) if self.configs[name].keep_prompts]
        # Without any prompt that stays, those made here are left to a head: after this layer, then before it.
        if kept or not new:
            return torch.cat([output[:, :count], output[:, count:][:, kept]], dim=1)
        return torch.cat([output, *new], dim=1)
