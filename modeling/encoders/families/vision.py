"""Image encoders: tables, relative biases and rotations on the grid of patches."""

from collections.abc import Iterator
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.positions import (
    LEARNED_PLANE,
    Addend,
    LayerPass,
    PositionTable,
    class_token,
    image_grid,
    plane,
    plane_bias,
)
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.layers.direct_weights import onloaded


def _optional_grid(model: PreTrainedModel) -> PositionTable:
    # Without a table, as with relative biases alone, tokens still have places on the grid.
    rows, columns = image_grid(model.config)
    table = getattr(model.embeddings, "position_embeddings", None)
    return PositionTable("plane", None, rows, columns) if table is None else plane(table, 1, rows)


def _beit_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    shared = call.encoder.shared_position_bias
    # BEiT has biases in each layer, shared by all, or none; only the mask leads to coordinates off its grid.
    for layer in call.layers:
        own = layer.relative_position_bias
        bias = _bias(call, shared, own)
        inputs = {"interpolate_pos_encoding": True, "resolution": _resolution(call.encoder.config)}
        yield {"attention_mask": call.mask if bias is None else bias, "is_causal": False, **inputs}


def _data2vec_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    shared = getattr(call.encoder.encoder, "relative_position_bias", None)
    # A layer with biases of its own adds them to those that it is passed, so those of its grid are taken away there.
    for layer in call.layers:
        own = getattr(layer.attention.attention, "relative_position_bias", None)
        bias = _bias(call, shared, own)
        inputs = {"interpolate_pos_encoding": True, "resolution": _resolution(call.encoder.config)}
        yield {"relative_position_bias": bias if own is None else Addend(bias), **inputs}


def _bias(call: LayerPass, shared: torch.nn.Module | None, own: torch.nn.Module | None) -> torch.Tensor | None:
    """Return the bias at the tokens' coordinates, minus the bias of image patches that a layer adds itself."""
    if shared is None and own is None:
        return None
    holders = [module for module in (shared, own) if module is not None]
    # Biases are linear in their tables, so tables are added before they are interpolated.
    with onloaded(*holders):
        table = sum(module.relative_position_bias_table for module in holders)
    # (batch, heads, tokens, tokens)
    bias = plane_bias(call.places, table)
    if own is not None:
        bias = bias - own((call.places.rows, call.places.columns), True, dim_size=call.hidden_states.shape[1])
    return bias.to(call.hidden_states.dtype)


def _resolution(config: PreTrainedConfig) -> tuple[int, int]:
    return tuple(count * config.patch_size for count in image_grid(config))


_BIASED = {
    "kind": "relative bias, on a grid",
    "reached": "interpolated bias of each pair, mean over the views",
    "class_token": class_token,
}
_CLIP = LEARNED_PLANE | {"final_norm": "post_layernorm"}
# name, model_type, layers, branch, positions, further fields
for name, model_type, layers, branch, positions, fields in (
    (
        "BEiT",
        "beit",
        "layers",
        "mlp",
        _optional_grid,
        # With mean pooling, the norm is applied after the mean, not to tokens.
        _BIASED
        | {
            "final_norm": lambda config: "pooler.layernorm" if config.use_mean_pooling else "layernorm",
            "layer_inputs": _beit_inputs,
        },
    ),
    (
        "Data2Vec vision",
        "data2vec-vision",
        "encoder.layer",
        "output.dense",
        _optional_grid,
        _BIASED
        | {
            "final_norm": lambda config: None if config.use_mean_pooling else "layernorm",
            "layer_inputs": _data2vec_inputs,
        },
    ),
    (
        "CLIP vision",
        "clip_vision_model",
        "encoder.layers",
        "mlp",
        lambda model: plane(model.embeddings.position_embedding.weight, 1, image_grid(model.config)[0]),
        _CLIP | {"input_norm": "pre_layrnorm", "class_token": lambda model: model.embeddings.class_embedding},
    ),
):
    register_family(EncoderFamily(name, (model_type,), "vision", layers, branch, positions, **fields))
