"""The pretrained layers of a model, as those who adapt them see them."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class LayerStack:
    """Where a model's pretrained layers are and what an adapter has to know of them.

    Args:
        layers: The layers; some may stand in adapters already.
        path: Their name within the module that owns them.
        branch: Path from a layer to the module whose output is the feed-forward branch.
        hidden_size: Channels of a token.
        views: Kinds of cells that the layers' tokens are told of; 0 where adapters never hear where tokens are.
        pretrained: Names of the owner's children that no adaptation trains in full.
        attention_axis: What attention runs over, "tokens" of a cloud or the clouds of a "batch".
    """

    layers: nn.ModuleList
    path: str
    branch: str
    hidden_size: int
    views: int
    pretrained: tuple[str, ...]
    attention_axis: str = "tokens"
