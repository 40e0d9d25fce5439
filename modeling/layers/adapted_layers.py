"""Between a model and the PEFT methods of this package: what each may ask of the other.

A model of tokens that gives their centers can be adapted by all of these methods if it

1. has a property `layer_stack`, which says where its layers are, and
2. runs each layer by `enter_layer`, with a geometry of the centers, such as `TokenGrids.around(centers, …)`.

A method wraps layers in an `AdaptedLayer`. Its defaults ask for nothing, so a plain layer runs as without adapters.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn


class Stage(NamedTuple):
    """Number and channels of a layer's stage, and whether the layer is the first or the last one there."""

    number: int
    width: int
    is_first: bool
    is_last: bool


@dataclass(frozen=True)
class LayerStack:
    """A model's pretrained layers, with adapters around them, and their properties for adapters.

    Args:
        layers: The layers.
        path: Their name within the module that owns them.
        branch: Path from a layer to the module whose output is the feed-forward branch.
        hidden_size: Channels of a token, of the last stage's if there are several.
        views: Number of views in which tokens have cells; 0 if adapters get no geometry.
        pretrained: Names of the owner's children that no PEFT method trains in full.
        attention_axis: What attends to each other: "tokens" of a cloud, the "batch", or "patches" of all tokens.
        stages: Number of layers and channels of each stage, between which tokens are pooled; empty for one stage.
        is_open: Whether layers are point transformer blocks, which take functions of the tokens after attention.
        trained: Names, in the model with its heads, of modules to train in full; empty for the owner's other children.
        final_norm: Name of the owner's frozen norm after the last layer; None if it has none, or trains it.
    """

    layers: nn.ModuleList
    path: str
    branch: str
    hidden_size: int
    views: int
    pretrained: tuple[str, ...]
    attention_axis: str = "tokens"
    stages: tuple[tuple[int, int], ...] = ()
    is_open: bool = False
    trained: tuple[str, ...] = ()
    final_norm: str | None = None

    def stage_of(self, layer: nn.Module) -> Stage:
        """Return the stage of one of the layers."""
        # `first` is the number of the stage's first layer.
        layers = list(self.layers)
        first = 0
        if layer not in layers:
            raise ValueError(f"{type(layer).__name__}: none of the layers {self.path}.0 …; expected complete layers")
        number = layers.index(layer)
        for stage, (count, width) in enumerate(self.stages):
            if number < first + count:
                return Stage(stage, width, number == first, number == first + count - 1)
            first += count
        return Stage(0, self.hidden_size, number == 0, number == len(layers) - 1)


class AdaptedLayer:
    """Requests of a layer in a PEFT method to the model around it; the defaults ask for nothing.

    A layer that may not run again in the backward pass has an attribute `gradient_checkpointing`, which is False.
    There is no default: transformers takes a model for one that saves memory if this attribute of a module is true.

    Attributes:
        takes_geometry: Whether the layer takes the places of the tokens as a keyword, `geometry`.
        adds_positions: Whether it takes positions that the model adds before every layer as a keyword, `positions`,
            and adds them itself.
    """

    takes_geometry: bool = False
    adds_positions: bool = False

    @property
    def extra_tokens(self) -> int:
        """Number of tokens that the layer adds behind those of the model, which extends masks and positions by it."""
        return 0

    @property
    def takes_added_tokens(self) -> bool:
        """True if the layer gets the tokens that earlier layers added; they are cut off before other layers."""
        return False

    @property
    def replaces_positions(self) -> bool:
        """True if the model leaves its own positions out, as the layers tell where tokens are by themselves."""
        return False

    def prepare_tokens(self, hidden_states: torch.Tensor, geometry: Any) -> torch.Tensor:
        """Return the input `(batch, sequence, hidden)` of the layer, perhaps with added tokens.

        The model calls it before the layer, and outside of what gradient checkpointing runs again.
        """
        return hidden_states

    def stage_output(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return what heads read of a stage, whose last layer this is and whose output is given."""
        return hidden_states


_PLAIN = AdaptedLayer()


def asks_of(layer: nn.Module) -> AdaptedLayer:
    """Return what a layer asks of the model around it: an `AdaptedLayer` itself, for any other layer the defaults."""
    return layer if isinstance(layer, AdaptedLayer) else _PLAIN


def may_run_again(layer: nn.Module) -> bool:
    """Return whether a model may checkpoint a layer; transformers' `every_n_layers` excludes some by this flag."""
    return getattr(layer, "gradient_checkpointing", True)


def enter_layer(
    layer: nn.Module,
    hidden_states: torch.Tensor,
    geometry: Any,
    positions: torch.Tensor | None = None,
    count: int | None = None,
) -> tuple[torch.Tensor, dict[str, Any]]:
    """Return the input of a layer, and the keywords that it takes beside those of the model.

    Args:
        layer: A layer, wrapped by a PEFT method or not.
        hidden_states: Output of the layer before, `(batch, sequence, hidden)`.
        geometry: Places of the tokens, such as a `Geometry` or `TokenGrids`; unused unless the layer asks for it.
        positions: Positions `(batch, tokens, hidden)` that the model adds before this layer, if it does.
        count: Tokens of the model itself, in front; needed if earlier layers may have added some.

    Example:
        ```python
        for layer in self.layers:
            tokens, keywords = enter_layer(layer, tokens, geometry)
            tokens = layer(tokens, **keywords)
        ```
    """
    asks = asks_of(layer)
    keywords = {}
    # Tokens that adapters add go on only to layers of the same kind.
    if count is not None and not asks.takes_added_tokens:
        hidden_states = hidden_states[:, :count]
    if positions is not None:
        # Those of added tokens are their adapter's business.
        behind = hidden_states.shape[1] - positions.shape[1]
        added = nn.functional.pad(positions, (0, 0, 0, behind)) if behind else positions
        if asks.adds_positions:
            keywords["positions"] = added
        else:
            hidden_states = hidden_states + added
    hidden_states = asks.prepare_tokens(hidden_states, geometry)
    if asks.takes_geometry:
        keywords["geometry"] = geometry
    return hidden_states, keywords
