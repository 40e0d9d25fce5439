"""Text encoders: tables of positions, relative biases and rotations."""

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from hf_any3d.modeling.encoders.positions import (
    LEARNED_LINE,
    SINUSOID_LINE,
    LayerPass,
    PositionTable,
    free_line,
    line,
    line_bias,
    narrow_embeddings,
)
from hf_any3d.modeling.encoders.registry import EncoderFamily, register_composite, register_family
from hf_any3d.modeling.encoders.rotary import rotary_line_inputs
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


def _bert_positions(model: PreTrainedModel) -> PositionTable:
    embeddings = model.embeddings
    # All tokens of a single text have type 0, whose vector is part of the first layer's input.
    return line(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])


def _roberta_positions(model: PreTrainedModel) -> PositionTable:
    table = _bert_positions(model)
    # Rows up to padding_idx are not used by text: positions start after them.
    return line(table.weight[model.config.pad_token_id + 1 :])


_T5 = {"kind": "relative bias", "reached": _REACHED, "final_norm": "encoder.final_layer_norm"}
_NORM = {"input_norm": "embeddings.LayerNorm"}
_DEBERTA = _NORM | {
    "kind": "relative, by content",
    "reached": "rounded distances; each head uses one view",
    "layer_inputs": _deberta_inputs,
    "refuses": _refuses_deberta,
}
_ROTARY = {
    "kind": "rotary, on a line",
    "reached": "rotations at the coordinates, views combined by `rotary_views`",
    "layer_inputs": rotary_line_inputs,
}
_NORMED = _ROTARY | {"final_norm": "norm"}
_BERT = _NORM | LEARNED_LINE
_CLIP = LEARNED_LINE | {"final_norm": "final_layer_norm"}


def _clip_positions(model: PreTrainedModel) -> PositionTable:
    return line(model.embeddings.position_embedding.weight)


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
        "ModernBERT",
        "modernbert",
        "layers",
        "mlp",
        free_line,
        _ROTARY | {"final_norm": "final_norm", "input_norm": "embeddings.norm"},
    ),
    ("EuroBERT", "eurobert", "layers", "mlp", free_line, _NORMED),
    ("Nomic BERT", "nomic_bert", "layers", "mlp", free_line, _ROTARY | _NORM),
    ("LLaMA", "llama", "layers", "mlp", free_line, _NORMED),
    ("Mistral", "mistral", "layers", "mlp", free_line, _NORMED),
    ("Qwen2", "qwen2", "layers", "mlp", free_line, _NORMED),
    ("Qwen3", "qwen3", "layers", "mlp", free_line, _NORMED),
    # It normalizes each branch again before it adds it.
    ("Gemma 3 text", "gemma3_text", "layers", "post_feedforward_layernorm", free_line, _NORMED),
    ("GPT-NeoX, Pythia", "gpt_neox", "layers", "mlp", free_line, _ROTARY | {"final_norm": "final_layer_norm"}),
    ("BERT", "bert", "encoder.layer", "output.dense", _bert_positions, _BERT),
    ("ERNIE", "ernie", "encoder.layer", "output.dense", _bert_positions, _BERT),
    ("RoBERTa", "roberta", "encoder.layer", "output.dense", _roberta_positions, _BERT),
    ("XLM-RoBERTa", "xlm-roberta", "encoder.layer", "output.dense", _roberta_positions, _BERT),
    ("CamemBERT", "camembert", "encoder.layer", "output.dense", _roberta_positions, _BERT),
    ("Data2Vec text", "data2vec-text", "encoder.layer", "output.dense", _roberta_positions, _BERT),
    (
        "ELECTRA",
        "electra",
        "encoder.layer",
        "output.dense",
        _bert_positions,
        _BERT | {"refuses": narrow_embeddings},
    ),
    (
        "CLAP text",
        "clap_text_model",
        "encoder.layer",
        "output.dense",
        _roberta_positions,
        _BERT | {"model_class": "ClapTextModel", "key_mapping": {r"^text_model\.": ""}},
    ),
    (
        "Megatron-BERT",
        "megatron-bert",
        "encoder.layer",
        "output.dense",
        _bert_positions,
        LEARNED_LINE | {"final_norm": "encoder.ln"},
    ),
    (
        "DistilBERT",
        "distilbert",
        "transformer.layer",
        "ffn",
        lambda model: line(model.embeddings.position_embeddings.weight),
        _BERT,
    ),
    ("CLIP text", "clip_text_model", "encoder.layers", "mlp", _clip_positions, _CLIP),
    (
        "SigLIP text",
        "siglip_text_model",
        "encoder.layers",
        "mlp",
        _clip_positions,
        _CLIP | {"model_class": "SiglipTextModel"},
    ),
    (
        "SigLIP 2 text",
        "siglip2_text_model",
        "encoder.layers",
        "mlp",
        _clip_positions,
        _CLIP | {"model_class": "Siglip2TextModel"},
    ),
    ("GPT-2", "gpt2", "h", "mlp", lambda model: line(model.wpe.weight), LEARNED_LINE | {"final_norm": "ln_f"}),
    # Rows 0 and 1 of these two tables are a remainder of fairseq's padding.
    (
        "OPT",
        "opt",
        "decoder.layers",
        "fc2",
        lambda model: line(model.decoder.embed_positions.weight[2:]),
        LEARNED_LINE
        # OPT-350m has no norm after its last layer, which ends with one.
        | {"final_norm": lambda config: "decoder.final_layer_norm" if config.do_layer_norm_before else None},
    ),
    (
        "XGLM",
        "xglm",
        "layers",
        "fc2",
        lambda model: line(model.embed_positions.weights[2:]),
        SINUSOID_LINE | {"final_norm": "layer_norm"},
    ),
):
    register_family(EncoderFamily(name, (model_type,), "text", layers, branch, positions, **fields))
for model_type in ("clip", "siglip", "siglip2"):
    register_composite(model_type, {"text": "text_config", "vision": "vision_config"})
register_composite("clap", {"text": "text_config", "audio": "audio_config"})
