"""Text encoders that tell places by what a pair of words adds to its attention score."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from hf_any3d.modeling.encoders.families.parts import free_line, line, narrow_embeddings
from hf_any3d.modeling.encoders.positions import LayerPass, PositionTable, line_bias
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_family
from hf_any3d.modeling.layers.forward_contract import onloaded

_REACHED = "bias of each pair at the distance of their places, between whole distances, mean over the views"


def _t5_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    attention = call.layers[0].layer[0].SelfAttention
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
        # The layer adds the bias of a text in the order of its tokens: what is handed in takes that away again.
        own = attention.compute_bias(tokens, tokens, device=call.hidden_states.device)
        yield {"attention_mask": (bias - own).to(call.hidden_states.dtype), "is_causal": False}


def _mpnet_positions(model: PreTrainedModel) -> PositionTable:
    return line(model.embeddings.position_embeddings.weight[model.config.pad_token_id + 1 :])


def _mpnet_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    stack = call.encoder.encoder
    bias = line_bias(call.places, stack.relative_attention_bias, stack.relative_position_bucket)
    for _ in call.layers:
        yield {"position_bias": bias.to(call.hidden_states.dtype)}


def _deberta_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    config, stack, entry = call.encoder.config, call.encoder.encoder, call.places.entry
    heads = config.num_attention_heads
    full = next(call.encoder.parameters()).dtype == torch.float32
    if config.model_type == "deberta" and full and torch.is_autocast_enabled(entry.device.type):
        raise ValueError("'deberta' layers overflow under autocast; load the encoder with dtype=torch.bfloat16")
    # Scores depend on content and bucket together, so a layer wants one whole distance for each pair and head: views
    # are divided among the heads, and distances are rounded.
    place = entry[:, torch.arange(heads, device=entry.device) % entry.shape[1], :, 0]  # (batch, heads, tokens)
    distance = (place.unsqueeze(-1) - place.unsqueeze(-2)).round().long()
    if config.model_type == "deberta-v2":
        if stack.position_buckets > 0:
            distance = make_log_bucket_position(distance, stack.position_buckets, stack.max_relative_positions).long()
        distance = distance.flatten(0, 1).unsqueeze(0)  # (1, batch * heads, tokens, tokens)
    with onloaded(stack.rel_embeddings):
        rel_embeddings = stack.get_rel_embedding()
    inputs = {
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
        return "relative_attention=False; expected True, as every published checkpoint has it"
    if getattr(config, "conv_kernel_size", 0) > 0:
        return "a convolution over neighbouring words runs beside its first layer, out of reach of the layers"
    return narrow_embeddings(config)


for name, model_types, model_class, inputs in (
    ("T5 encoder", ("t5",), "T5EncoderModel", _t5_inputs),
    ("mT5 encoder", ("mt5",), "MT5EncoderModel", _t5_inputs),
    ("UMT5 encoder", ("umt5",), "UMT5EncoderModel", _umt5_inputs),
):
    register_family(
        EncoderFamily(
            name=name,
            model_types=model_types,
            tower="text",
            layers="encoder.block",
            branch="layer.1.DenseReluDense",
            positions=free_line,
            kind="relative bias",
            reached=_REACHED,
            final_norm="encoder.final_layer_norm",
            layer_inputs=inputs,
            model_class=model_class,
        )
    )
register_family(
    EncoderFamily(
        name="MPNet",
        model_types=("mpnet",),
        tower="text",
        layers="encoder.layer",
        branch="output.dense",
        positions=_mpnet_positions,
        kind="learned, on a line; relative bias",
        reached=f"table read between its entries; {_REACHED}",
        input_norm="embeddings.LayerNorm",
        layer_inputs=_mpnet_inputs,
    )
)
for name, model_types in (("DeBERTa", ("deberta",)), ("DeBERTa v2, v3", ("deberta-v2",))):
    register_family(
        EncoderFamily(
            name=name,
            model_types=model_types,
            tower="text",
            layers="encoder.layer",
            branch="output.dense",
            positions=_deberta_positions,
            kind="relative, by content",
            reached="rounded distances of places; each head reads one view",
            input_norm="embeddings.LayerNorm",
            layer_inputs=_deberta_inputs,
            refuses=_refuses_deberta,
            one_precision=model_types == ("deberta",),
        )
    )
