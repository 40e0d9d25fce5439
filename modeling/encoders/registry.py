"""The registry of encoder families: where a pretrained transformer keeps its layers, norms and positions.

A family is one entry; a new one is a call of `register_family` in a file of `families/`. Any2Point reads tokens
through the layers, ACT will read its teachers through the same entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.positions import LayerPass, PositionTable, bidirectional_inputs
from hf_any3d.modeling.layers.forward_contract import onloaded

Tower = Literal["text", "vision", "audio"]
# A path inside a model, the same for the whole family or depending on the config.
Path = str | Callable[[PreTrainedConfig], str | None] | None


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
        kind: What kind of positions it learned, for the table of encoders.
        reached: How projected places reach them, for the table of encoders.
        final_norm: Path to the norm after the last layer, or None where the layers end with a norm of their own.
        input_norm: Path to the norm between the embeddings and the first layer, or None.
        class_token: Reads the embedding that a class token starts from, `(hidden,)`, or None where there is none.
        layer_inputs: Keyword arguments of the layers in a forward pass, one dictionary a layer.
        line_convolution: The encoder's convolution that tells places from neighbours, `(batch, length, hidden)` to the
            same shape, or None.
        model_class: Name of the transformers class to load; None for the one that `AutoModel` takes.
        unused: Paths of parts that reading tokens never needs, such as a decoder; they are dropped after loading.
        key_mapping: Renames weights of a composite checkpoint, as `from_pretrained(key_mapping=…)` takes it.
        one_precision: Whether to convert parameters that transformers keeps in full precision though the family's own
            layers cannot add them to others.
        tested: With what weights the family was tried, for the table of encoders.
        refuses: The reason why an encoder with this config cannot be used, or None.
    """

    name: str
    model_types: tuple[str, ...]
    tower: Tower
    layers: str
    branch: str
    positions: Callable[[PreTrainedModel], PositionTable]
    kind: str = "learned"
    reached: str = "table read between its entries, mean over the views"
    final_norm: Path = None
    input_norm: Path = None
    class_token: Callable[[PreTrainedModel], torch.Tensor] | None = None
    layer_inputs: Callable[[LayerPass], Iterator[dict[str, Any]]] = bidirectional_inputs
    line_convolution: Callable[[PreTrainedModel, torch.Tensor], torch.Tensor] | None = None
    model_class: str | None = None
    unused: tuple[str, ...] = ()
    key_mapping: Mapping[str, str] = field(default_factory=dict)
    one_precision: bool = False
    tested: str = "small random weights"
    refuses: Callable[[PreTrainedConfig], str | None] = lambda config: None

    def positions_of(self, encoder: PreTrainedModel) -> PositionTable:
        """The learned positions, also where accelerate keeps them on the CPU or on disk."""
        table = self.positions(encoder)
        if table.weight is None or not table.weight.is_meta:
            return table
        # Only modules outside the layers hold tables; embeddings of words, the largest of them, hold none.
        words = encoder.get_input_embeddings() if self.tower == "text" else None
        inside = {id(module) for module in self.layers_of(encoder).modules()}
        outside = [module for module in encoder.modules() if id(module) not in inside and module is not words]
        with onloaded(*outside):
            return self.positions(encoder)

    def layers_of(self, encoder: nn.Module) -> nn.ModuleList:
        """The encoder's layers, in order; PEFT wrappers around single layers are left in place."""
        return encoder.get_submodule(self.layers)

    def norm_of(self, encoder: nn.Module, path: Path) -> nn.Module | None:
        """The norm at `path` (`final_norm` or `input_norm`), or None where the encoder has none."""
        path = path(encoder.config) if callable(path) else path
        return None if path is None else encoder.get_submodule(path)

    def __reduce__(self) -> tuple:
        # By name: what reads the positions may be a lambda, which pickle refuses, and a copy is the family itself.
        return _registered, (self.model_types[0],)


_FAMILIES: dict[str, EncoderFamily] = {}
_COMPOSITES: dict[str, dict[str, str]] = {}
_REFUSED: dict[str, str] = {}


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


def refuse_encoders(model_types: tuple[str, ...], reason: str) -> None:
    """Tell why encoders of these `model_type` values cannot be used; the error says it."""
    _REFUSED.update(dict.fromkeys(model_types, reason))


def refused_encoders() -> dict[str, str]:
    """Known `model_type` values that cannot be used, with the reason."""
    return dict(_REFUSED)


def composite_checkpoints() -> dict[str, tuple[str, ...]]:
    """Checkpoints with several encoders, by `model_type`, and the towers to choose from."""
    return {model_type: tuple(towers) for model_type, towers in _COMPOSITES.items()}


def encoder_families() -> dict[str, EncoderFamily]:
    """All supported `model_type` values with their families, in the order of registration."""
    return dict(_FAMILIES)


def find_family(config: PreTrainedConfig) -> EncoderFamily:
    """The family of an encoder config.

    Raises:
        UnsupportedEncoder: If the `model_type` belongs to no family, or the family has no way with this config.
    """
    family = _FAMILIES.get(config.model_type)
    if family is None:
        reason = _REFUSED.get(config.model_type, "its layers and positions are unknown")
        raise UnsupportedEncoder(
            f"encoder of model_type '{config.model_type}' is not supported: {reason}; "
            f"supported: {', '.join(sorted(_FAMILIES))} and, with tower=…, {', '.join(sorted(_COMPOSITES))}"
        )
    reason = family.refuses(config)
    if reason is not None:
        raise UnsupportedEncoder(f"this encoder of model_type '{config.model_type}' is not supported: {reason}")
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
        config = getattr(config, towers[tower])
        find_family(config)
        return config
    family = find_family(config)
    if tower is not None and tower != family.tower:
        raise UnsupportedEncoder(
            f"tower={tower!r} does not fit: '{config.model_type}' is a {family.tower} encoder; leave tower out"
        )
    return config
