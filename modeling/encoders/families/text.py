"""Text encoders: tables of positions, relative biases and rotations."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from hf_any3d.modeling.encoders.positions import (
    LayerPass,
    PositionTable,
    free_line,
    line,
    line_bias,
    narrow_embeddings,
)
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_composite, register_family
from hf_any3d.modeling.layers.direct_weights import onloaded

_REACHED = "interpolated bias of each pair, mean over the views"


def _t5_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    # The first layer alone has the biases; it hands them on to the others.
    attention = call.layers[0].layer[0].SelfAttention
    # T5 in an encoder counts distances in both directions; its decoder's buckets are for preceding tokens.
    bucket = partial(
        attention._relative_position_bucket,
        bidirectional=True,
        num_buckets=attention.relative_attention_num_buckets,
        max_distance=attention.relative_attention_max_distance,
    )
    bias = line_bias(call.places, attention.relative_attention_bias, bucket)
    for _ in call.layers:
        yield {"position_bias": bias.to(call.hidden_states.dtype), "is_causal": False}


def _umt5_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    tokens = call.hidden_states.shape[1]
    for layer in call.layers:
        attention = layer.layer[0].SelfAttention
        bias = line_bias(call.places, attention.relative_attention_bias, attention._relative_position_bucket)
        # The layer also adds the bias of a text in the order of its tokens, which is subtracted here.
        own = attention.compute_bias(tokens, tokens, device=call.hidden_states.device)
        yield {"attention_mask": (bias - own).to(call.hidden_states.dtype), "is_causal": False}


def _mpnet_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    stack = call.encoder.encoder
    # MPNet's layers share one table, which the stack holds.
    bias = line_bias(call.places, stack.relative_attention_bias, stack.relative_position_bucket)
    for _ in call.layers:
        yield {"position_bias": bias.to(call.hidden_states.dtype)}


def _deberta_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    config = call.encoder.config
    stack = call.encoder.encoder
    entry = call.places.entry
    heads = config.num_attention_heads
    full = next(call.encoder.parameters()).dtype == torch.float32
    if config.model_type == "deberta" and full and torch.is_autocast_enabled(entry.device.type):
        raise ValueError("'deberta' layers overflow under autocast; load the encoder with dtype=torch.bfloat16")
    # Scores depend on content and bucket together, so a layer needs one integer distance for each pair and head: each
    # head uses one view, and distances are rounded.
    place = entry[:, torch.arange(heads, device=entry.device) % entry.shape[1], :, 0]  # (batch, heads, tokens)
    distance = (place.unsqueeze(-1) - place.unsqueeze(-2)).round().long()
    if config.model_type == "deberta-v2":
        # v2 and v3 of published checkpoints put far distances into logarithmic buckets.
        if stack.position_buckets > 0:
            distance = make_log_bucket_position(distance, stack.position_buckets, stack.max_relative_positions).long()
        distance = distance.flatten(0, 1).unsqueeze(0)  # (1, batch * heads, tokens, tokens)
    with onloaded(stack.rel_embeddings):
        rel_embeddings = stack.get_rel_embedding()
    inputs = {
        # These layers need a mask; ones hide nothing.
        "attention_mask": call.hidden_states.new_ones(1, 1, 1, 1),
        "relative_pos": distance,
        "rel_embeddings": rel_embeddings,
    }
    for _ in call.layers:
        yield inputs


def _deberta_positions(model: PreTrainedModel) -> PositionTable:
    table = model.embeddings.position_embeddings
    return free_line(model) if table is None else line(table.weight)


def _refuses_deberta(config: PreTrainedConfig) -> str | None:
    if not config.relative_attention:
        return "relative_attention=False; expected True, as in all published checkpoints"
    # DeBERTa v2's convolution reads neighbors in the order of the words.
    if getattr(config, "conv_kernel_size", 0) > 0:
        return "a convolution over neighboring words runs parallel to its first layer"
    return narrow_embeddings(config)


def _clap_positions(model: PreTrainedModel) -> PositionTable:
    embeddings = model.embeddings
    # All tokens of a single text have type 0. Rows up to padding_idx are not used by text: positions start after them.
    table = embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0]
    return line(table[model.config.pad_token_id + 1 :])


_T5 = {"kind": "relative bias", "reached": _REACHED, "final_norm": "encoder.final_layer_norm"}
_NORM = {"input_norm": "embeddings.LayerNorm"}
_DEBERTA = _NORM | {
    "kind": "relative, by content",
    "reached": "rounded distances; each head uses one view",
    "layer_inputs": _deberta_inputs,
    "refuses": _refuses_deberta,
}
# name, model_type, layers, branch, positions, further fields
for name, model_type, layers, branch, positions, fields in (
    (
        "T5 encoder",
        "t5",
        "encoder.block",
        "layer.1.DenseReluDense",
        free_line,
        _T5 | {"layer_inputs": _t5_inputs, "model_class": "T5EncoderModel"},
    ),
    (
        "mT5 encoder",
        "mt5",
        "encoder.block",
        "layer.1.DenseReluDense",
        free_line,
        _T5 | {"layer_inputs": _t5_inputs, "model_class": "MT5EncoderModel"},
    ),
    (
        "UMT5 encoder",
        "umt5",
        "encoder.block",
        "layer.1.DenseReluDense",
        free_line,
        _T5 | {"layer_inputs": _umt5_inputs, "model_class": "UMT5EncoderModel"},
    ),
    (
        "Switch Transformers encoder",
        "switch_transformers",
        "encoder.block",
        "layer.1.mlp",
        free_line,
        _T5 | {"layer_inputs": _t5_inputs, "model_class": "SwitchTransformersEncoderModel"},
    ),
    (
        "MPNet",
        "mpnet",
        "encoder.layer",
        "output.dense",
        lambda model: line(model.embeddings.position_embeddings.weight[model.config.pad_token_id + 1 :]),
        _NORM
        | {
            "kind": "learned, on a line; relative bias",
            "reached": f"interpolated table; {_REACHED}",
            "layer_inputs": _mpnet_inputs,
        },
    ),
    ("DeBERTa", "deberta", "encoder.layer", "output.dense", _deberta_positions, _DEBERTA | {"one_precision": True}),
    ("DeBERTa v2, v3", "deberta-v2", "encoder.layer", "output.dense", _deberta_positions, _DEBERTA),
    (
        "CLAP text",
        "clap_text_model",
        "encoder.layer",
        "output.dense",
        _clap_positions,
        # Its checkpoints name the tower otherwise than its class does.
        _NORM | {"kind": "learned, on a line", "model_class": "ClapTextModel", "key_mapping": {r"^text_model\.": ""}},
    ),
):
    register_family(EncoderFamily(name, (model_type,), "text", layers, branch, positions, **fields))
for model_type in ("clip", "siglip", "siglip2"):
    register_composite(model_type, {"text": "text_config", "vision": "vision_config"})
register_composite("clap", {"text": "text_config", "audio": "audio_config"})
