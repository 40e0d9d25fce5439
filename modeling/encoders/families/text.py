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
from hf_any3d.modeling.encoders.rotary import masked_rotary_line_inputs, rotary_line_inputs
from hf_any3d.modeling.layers.forward_contract import onloaded

_REACHED = "interpolated bias of each pair, mean over the views"


def _t5_inputs(call: LayerPass) -> Iterator[dict[str, Any]]:
    # The first layer alone has the biases; it hands them on to the others.
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
        # The layer also adds the bias of a text in the order of its tokens, which is subtracted here.
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
    # Scores depend on content and bucket together, so a layer needs one integer distance for each pair and head: each
    # head uses one view, and distances are rounded.
    place = entry[:, torch.arange(heads, device=entry.device) % entry.shape[1], :, 0]  # (batch, heads, tokens)
    distance = (place.unsqueeze(-1) - place.unsqueeze(-2)).round().long()
    if config.model_type == "deberta-v2":
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
    if getattr(config, "conv_kernel_size", 0) > 0:
        return "a convolution over neighboring words runs parallel to its first layer"
    return narrow_embeddings(config)


for name, model_type, model_class, inputs in (
    ("T5 encoder", "t5", "T5EncoderModel", _t5_inputs),
    ("mT5 encoder", "mt5", "MT5EncoderModel", _t5_inputs),
    ("UMT5 encoder", "umt5", "UMT5EncoderModel", _umt5_inputs),
):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
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
_BERT_LAYERS = {"tower": "text", "layers": "encoder.layer", "branch": "output.dense"}
_BERT_NORM = {"input_norm": "embeddings.LayerNorm"}
register_family(
    EncoderFamily(
        name="MPNet",
        model_types=("mpnet",),
        positions=_mpnet_positions,
        kind="learned, on a line; relative bias",
        reached=f"interpolated table; {_REACHED}",
        layer_inputs=_mpnet_inputs,
        **_BERT_LAYERS,
        **_BERT_NORM,
    )
)
for name, model_type in (("DeBERTa", "deberta"), ("DeBERTa v2, v3", "deberta-v2")):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            positions=_deberta_positions,
            kind="relative, by content",
            reached="rounded distances; each head uses one view",
            layer_inputs=_deberta_inputs,
            refuses=_refuses_deberta,
            one_precision=model_type == "deberta",
            **_BERT_LAYERS,
            **_BERT_NORM,
        )
    )


# name, model_type, branch, final norm, norm before the first layer
_ROTARY = (
    ("ModernBERT", "modernbert", "mlp", "final_norm", "embeddings.norm"),
    ("EuroBERT", "eurobert", "mlp", "norm", None),
    ("Nomic BERT", "nomic_bert", "mlp", None, "embeddings.LayerNorm"),
    ("LLaMA", "llama", "mlp", "norm", None),
    ("Mistral", "mistral", "mlp", "norm", None),
    ("Qwen2", "qwen2", "mlp", "norm", None),
    ("Qwen3", "qwen3", "mlp", "norm", None),
    ("SmolLM3", "smollm3", "mlp", "norm", None),
    ("StarCoder2", "starcoder2", "mlp", "norm", None),
    ("StableLM", "stablelm", "mlp", "norm", None),
    ("Gemma", "gemma", "mlp", "norm", None),
    # These normalize each branch again before they add it.
    ("Gemma 2", "gemma2", "post_feedforward_layernorm", "norm", None),
    ("Gemma 3 text", "gemma3_text", "post_feedforward_layernorm", "norm", None),
    ("OLMo 2", "olmo2", "post_feedforward_layernorm", "norm", None),
    ("Phi", "phi", "mlp", "final_layernorm", None),
    ("Phi-3", "phi3", "mlp", "norm", None),
    ("GPT-NeoX, Pythia", "gpt_neox", "mlp", "final_layer_norm", None),
)
for name, model_type, branch, final_norm, input_norm in _ROTARY:
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            tower="text",
            layers="layers",
            branch=branch,
            positions=free_line,
            kind="rotary, on a line",
            reached="rotations at the coordinates, views combined by `rotary_views`",
            final_norm=final_norm,
            input_norm=input_norm,
            layer_inputs=masked_rotary_line_inputs if model_type == "stablelm" else rotary_line_inputs,
        )
    )


# Rows 0 and 1 of these tables are not used, a remainder of fairseq's padding.
_FAIRSEQ_OFFSET = 2


def _bert_positions(model: PreTrainedModel) -> PositionTable:
    embeddings = model.embeddings
    # All tokens of a single text have type 0, whose vector is part of the first layer's input.
    return line(embeddings.position_embeddings.weight + embeddings.token_type_embeddings.weight[0])


def _roberta_positions(model: PreTrainedModel) -> PositionTable:
    table = _bert_positions(model)
    # Rows up to padding_idx are not used by text: positions start after them.
    return line(table.weight[model.config.pad_token_id + 1 :])


def _opt_table(model: PreTrainedModel) -> torch.Tensor:
    return model.decoder.embed_positions.weight[_FAIRSEQ_OFFSET:]


def _xglm_table(model: PreTrainedModel) -> torch.Tensor:
    return model.embed_positions.weights[_FAIRSEQ_OFFSET:]


def _opt_norm(config: PreTrainedConfig) -> str | None:
    # OPT-350m has no norm after its last layer, which ends with one.
    return "decoder.final_layer_norm" if config.do_layer_norm_before else None


# name, model_type, positions, further fields
for name, model_type, positions, fields in (
    ("BERT", "bert", _bert_positions, _BERT_NORM | {"tested": "small random weights, all-MiniLM-L6-v2"}),
    ("ERNIE", "ernie", _bert_positions, _BERT_NORM),
    ("RoBERTa", "roberta", _roberta_positions, _BERT_NORM),
    ("XLM-RoBERTa", "xlm-roberta", _roberta_positions, _BERT_NORM),
    ("CamemBERT", "camembert", _roberta_positions, _BERT_NORM),
    ("Data2Vec text", "data2vec-text", _roberta_positions, _BERT_NORM),
    ("ELECTRA", "electra", _bert_positions, _BERT_NORM | {"refuses": narrow_embeddings}),
    (
        "CLAP text",
        "clap_text_model",
        _roberta_positions,
        _BERT_NORM | {"model_class": "ClapTextModel", "key_mapping": {r"^text_model\.": ""}},
    ),
    ("Megatron-BERT", "megatron-bert", _bert_positions, {"final_norm": "encoder.ln"}),
):
    register_family(
        EncoderFamily(
            name=name, model_types=(model_type,), positions=positions, **fields, **_BERT_LAYERS, **LEARNED_LINE
        )
    )
register_family(
    EncoderFamily(
        name="DistilBERT",
        model_types=("distilbert",),
        tower="text",
        layers="transformer.layer",
        branch="ffn",
        positions=lambda model: line(model.embeddings.position_embeddings.weight),
        **_BERT_NORM,
        **LEARNED_LINE,
    )
)
for name, model_type, model_class in (
    ("CLIP text", "clip_text_model", None),
    ("SigLIP text", "siglip_text_model", "SiglipTextModel"),
    ("SigLIP 2 text", "siglip2_text_model", "Siglip2TextModel"),
):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            tower="text",
            layers="encoder.layers",
            branch="mlp",
            positions=lambda model: line(model.embeddings.position_embedding.weight),
            final_norm="final_layer_norm",
            model_class=model_class,
            **LEARNED_LINE,
        )
    )
# name, model_type, layers, branch, table of positions, final norm, kind
for name, model_type, layers, branch, table, final_norm, kind in (
    ("GPT-2", "gpt2", "h", "mlp", lambda model: model.wpe.weight, "ln_f", LEARNED_LINE),
    ("OPT", "opt", "decoder.layers", "fc2", _opt_table, _opt_norm, LEARNED_LINE),
    ("XGLM", "xglm", "layers", "fc2", _xglm_table, "layer_norm", SINUSOID_LINE),
):
    register_family(
        EncoderFamily(
            name=name,
            model_types=(model_type,),
            tower="text",
            layers=layers,
            branch=branch,
            # As a default value: a closure would see the last table of the loop.
            positions=lambda model, table=table: line(table(model)),
            final_norm=final_norm,
            **kind,
        )
    )
register_composite("clip", {"text": "text_config", "vision": "vision_config"})
register_composite("siglip", {"text": "text_config", "vision": "vision_config"})
register_composite("siglip2", {"text": "text_config", "vision": "vision_config"})
register_composite("clap", {"text": "text_config", "audio": "audio_config"})
