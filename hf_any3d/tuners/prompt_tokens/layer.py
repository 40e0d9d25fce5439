"""Frozen layer with prompts appended to its tokens."""

from typing import Any

import torch
from torch import nn

from hf_any3d.modeling.encoders import hidden_of
from hf_any3d.tuners.prompt_tokens.config import PromptTokensConfig
from hf_any3d.tuners.tuners_utils import WrappedModule

_SPREAD = 0.02
"""Standard deviation of the initial values of prompts with positions."""


class PromptTokensLayer(WrappedModule):
    """Frozen layer that appends prompts to its input sequence and removes them from its output.

    They are appended, not prepended, so that the class token stays first; attention is bidirectional. A layer on a
    flat list of the tokens of all clouds takes them as its last argument instead, and attends to them in every patch.
    """

    adapter_layer_names = ("prompt_tokens_embedding", "prompt_tokens_position")

    def __init__(self, base_layer: nn.Module, hidden_size: int, is_flat: bool = False):
        super().__init__(base_layer)
        self.hidden_size = hidden_size
        self.is_flat = is_flat
        self.prompt_tokens_embedding = nn.ParameterDict()
        self.prompt_tokens_position = nn.ParameterDict()

    def build(self, adapter_name: str, config: PromptTokensConfig) -> None:
        """Create prompts, initialized at random."""
        prompts = nn.Parameter(torch.empty(config.num_prompts, self.hidden_size))
        # Not zero: equal prompts would get equal gradients and stay equal.
        if config.positions:
            nn.init.trunc_normal_(prompts, std=_SPREAD)
            position = nn.Parameter(torch.empty_like(prompts))
            self.prompt_tokens_position[adapter_name] = nn.init.trunc_normal_(position, std=_SPREAD)
        else:
            nn.init.xavier_uniform_(prompts)
        self.prompt_tokens_embedding[adapter_name] = prompts

    @property
    def extra_tokens(self) -> int:
        """Number of prompts of the active adapters, by which the model extends masks and positions."""
        return sum(len(self.prompt_tokens_embedding[name]) for name in self._running_adapters())

    def _prompts(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """Return the prompts `(prompts, hidden)` of the active adapters with their positions."""
        tokens = []
        for name in self._running_adapters():
            prompts = self.prompt_tokens_embedding[name]
            if name in self.prompt_tokens_position:
                prompts = prompts + self.prompt_tokens_position[name]
            tokens.append(prompts.to(dtype))
        return tokens

    def forward(self, hidden_states: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run the frozen layer on `(batch, sequence, hidden)` or `(tokens, hidden)` and return the same shape."""
        if self.is_flat:
            prompts = self._prompts(hidden_states.dtype)
            # By position: re-entrant checkpoints give no gradients to keywords.
            return self.base_layer(hidden_states, *args, *([torch.cat(prompts)] if prompts else ()), **kwargs)
        batch, length = hidden_states.shape[:2]
        prompts = [tokens.expand(batch, -1, -1) for tokens in self._prompts(hidden_states.dtype)]
        # Appended, so that the class token and the patches keep their places.
        extended = torch.cat([hidden_states, *prompts], dim=1)  # (batch, sequence + prompts, hidden)
        return hidden_of(self.base_layer(extended, *args, **kwargs))[:, :length]
