"""Image encoders that tell places by what a pair of patches adds to its attention score."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.families.parts import class_token, image_grid, plane
from hf_any3d.modeling.encoders.position_table import PositionTable
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.encoders.relative_bias import Addend, plane_bias
from hf_any3d.modeling.encoders.token_places import LayerPass
from hf_any3d.modeling.forward_contract import onloaded

_RELATIVE = {
    "kind": "relative bias, on a grid",
    "reached": "bias of each pair at the offset of their places, between whole offsets, mean over the views",
}


def _optional_grid(model: PreTrainedModel) -> PositionTable:
    rows, columns = image_grid(model.config)
    table = getattr(model.embeddings, "position_embeddings", None)
    return PositionTable("plane", None, rows, columns) if table is None else plane(table, 1, rows)


def _beit_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    shared = call.encoder.shared_position_bias
    for layer in call.layers:
        own = layer.relative_position_bias
        bias = _bias_instead(call, shared, own)
        inputs = {"interpolate_pos_encoding": True, "resolution": _resolution(call.encoder.config)}
        yield {"attention_mask": call.mask if bias is None else bias, "is_causal": False, **inputs}


def _data2vec_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    shared = getattr(call.encoder.encoder, "relative_position_bias", None)
    for layer in call.layers:
        own = getattr(layer.attention.attention, "relative_position_bias", None)
        bias = _bias_instead(call, shared, own)
        inputs = {"interpolate_pos_encoding": True, "resolution": _resolution(call.encoder.config)}
        yield {"relative_position_bias": bias if own is None else Addend(bias), **inputs}


def _bias_instead(call: LayerPass, shared: torch.nn.Module | None, own: torch.nn.Module | None) -> torch.Tensor | None:
    """The bias of places, less the bias of an image in the order of its patches that a layer adds on its own."""
    if shared is None and own is None:
        return None
    holders = [module for module in (shared, own) if module is not None]
    with onloaded(*holders):
        table = sum(module.relative_position_bias_table for module in holders)
    bias = plane_bias(call.places, table)
    if own is not None:
        bias = bias - own((call.places.rows, call.places.columns), True, dim_size=call.hidden_states.shape[1])
    return bias.to(call.hidden_states.dtype)


def _resolution(config: PreTrainedConfig) -> tuple[int, int]:
    return tuple(count * config.patch_size for count in image_grid(config))


register_family(
    EncoderFamily(
        name="BEiT",
        model_types=("beit",),
        tower="vision",
        layers="layers",
        branch="mlp",
        positions=_optional_grid,
        # With mean pooling its norm comes behind the mean; tokens never had one of their own.
        final_norm=lambda config: "pooler.layernorm" if config.use_mean_pooling else "layernorm",
        class_token=class_token,
        layer_inputs=_beit_inputs,
        **_RELATIVE,
    )
)
register_family(
    EncoderFamily(
        name="Data2Vec vision",
        model_types=("data2vec-vision",),
        tower="vision",
        layers="encoder.layer",
        branch="output.dense",
        positions=_optional_grid,
        final_norm=lambda config: None if config.use_mean_pooling else "layernorm",
        class_token=class_token,
        layer_inputs=_data2vec_inputs,
        **_RELATIVE,
    )
)
