"""The pretrained layers of a model, as those who adapt them see them."""

from __future__ import annotations

from collections.abc import Iterator
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


def own_modules(module: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Modules that a model had before it was adapted, under the names that they had.

    Args:
        module: A model, or a part of one.
        name: Its own name; what lies below is named behind it.
    """
    # PEFT's layers keep what they stand in for under the one name, its copies of trained modules under the other.
    inside = module._modules.get("base_layer") or module._modules.get("original_module")
    if inside is not None:
        yield from own_modules(inside, name)
        return
    yield name, module
    for child_name, child in module.named_children():
        yield from own_modules(child, f"{name}.{child_name}" if name else child_name)
