"""The registry of encoder families: where a pretrained transformer keeps its layers, norms and positions.

A family is one entry; a new one is one file in this folder that calls `register_family`, and one import in
`__init__.py`. Any2Point reads tokens through the layers, ACT will read its teachers through the same entries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.position_table import PositionTable

Tower = Literal["text", "vision", "audio"]


class UnsupportedEncoder(ValueError):
    """An encoder that cannot read point tokens; the text says why and what is supported."""


@dataclass(frozen=True)
class EncoderFamily:
    """Where the parts of one family of pretrained encoders are.

    Args:
        name: What people call the family, for tables and messages.
        model_types: The `model_type` values of transformers configs that belong to it.
        tower: What the encoder was trained on.
        layers: Path from the model to its `nn.ModuleList` of layers.
        branch: Path from a layer to the module whose output is the feed-forward branch, before the residual sum.
        positions: Reads the learned positions of a model into a `PositionTable`.
        final_norm: Path to the norm after the last layer, or None where the layers end with a norm of their own.
        input_norm: Path to the norm between the embeddings and the first layer, or None.
        class_token: Reads the embedding that a class token starts from, `(hidden,)`, or None where there is none.
    """

    name: str
    model_types: tuple[str, ...]
    tower: Tower
    layers: str
    branch: str
    positions: Callable[[PreTrainedModel], PositionTable]
    final_norm: str | None = None
    input_norm: str | None = None
    class_token: Callable[[PreTrainedModel], torch.Tensor] | None = None

    def layers_of(self, encoder: nn.Module) -> nn.ModuleList:
        """The encoder's layers, in order; PEFT wrappers around single layers are left in place."""
        return encoder.get_submodule(self.layers)

    def norm_of(self, encoder: nn.Module, path: str | None) -> nn.Module | None:
        """The norm at `path` (`final_norm` or `input_norm`), or None where the family has none."""
        return None if path is None else encoder.get_submodule(path)

    def __reduce__(self) -> tuple:
        # By name: what reads the positions may be a lambda, which pickle refuses, and a copy is the family itself.
        return _registered, (self.model_types[0],)


_FAMILIES: dict[str, EncoderFamily] = {}
_COMPOSITES: dict[str, dict[str, str]] = {}


def _registered(model_type: str) -> EncoderFamily:
    return _FAMILIES[model_type]


def register_family(family: EncoderFamily) -> EncoderFamily:
    """Add a family; every `model_type` may belong to one family only."""
    for model_type in family.model_types:
        if model_type in _FAMILIES:
            raise ValueError(f"model_type '{model_type}' already belongs to family '{_FAMILIES[model_type].name}'")
        _FAMILIES[model_type] = family
    return family


def register_composite(model_type: str, towers: dict[str, str]) -> None:
    """Tell which sub-config of a checkpoint with several towers (CLIP) belongs to which tower."""
    _COMPOSITES[model_type] = dict(towers)


def encoder_families() -> dict[str, EncoderFamily]:
    """All supported `model_type` values with their families, in the order of registration."""
    return dict(_FAMILIES)


def find_family(config: PreTrainedConfig) -> EncoderFamily:
    """The family of an encoder config.

    Raises:
        UnsupportedEncoder: If the `model_type` belongs to no family.
    """
    family = _FAMILIES.get(config.model_type)
    if family is None:
        raise UnsupportedEncoder(
            f"encoder of model_type '{config.model_type}' is not supported: its layers and positions are unknown; "
            f"supported: {', '.join(sorted(_FAMILIES))} and, with tower=…, {', '.join(sorted(_COMPOSITES))}"
        )
    return family


def select_tower(config: PreTrainedConfig, tower: str | None) -> PreTrainedConfig:
    """The config of the tower to use: a sub-config for composite checkpoints, else the config itself.

    Args:
        config: Config of the whole checkpoint.
        tower: "text", "vision" or "audio"; required for composite checkpoints, otherwise only checked.

    Raises:
        UnsupportedEncoder: If the tower is missing, unknown, or not what the encoder was trained on.
    """
    towers = _COMPOSITES.get(config.model_type)
    if towers is not None:
        if tower not in towers:
            raise UnsupportedEncoder(
                f"a '{config.model_type}' checkpoint holds several encoders: tower={tower!r}, "
                f"expected one of {', '.join(map(repr, towers))}"
            )
        return getattr(config, towers[tower])
    family = find_family(config)
    if tower is not None and tower != family.tower:
        raise UnsupportedEncoder(
            f"tower={tower!r} does not fit: '{config.model_type}' is a {family.tower} encoder; leave tower out"
        )
    return config
