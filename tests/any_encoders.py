"""Small configs of any model type of transformers, and what the rule for encoders says about each.

`python -m tests.any_encoders` asks about all text, vision and audio types and writes `docs/tools/any_encoders.csv`,
from which the page of encoders is made and with which `tests/common/test_every_encoder.py` compares.
"""

from __future__ import annotations

import copy
import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from hf_any3d.modeling.encoders import UnsupportedEncoder, find_family
from hf_any3d.modeling.encoders.model_classes import build_from_config
from hf_any3d.modeling.encoders.registry import towers_of

FILE = Path(__file__).parent.parent / "docs" / "tools" / "any_encoders.csv"
HIDDEN = 48
# By value, the names that configs have for it
_SIZES: dict[Any, str] = {
    HIDDEN: "hidden_size d_model n_embd dim embed_dim emb_dim embedding_size word_embed_proj_dim embedding_dim "
    "input_embedding_size output_embedding_size intra_bottleneck_size true_hidden_size",
    96: "intermediate_size encoder_ffn_dim decoder_ffn_dim ffn_dim d_ff n_inner ffn_hidden_size mlp_dim hidden_dim",
    2: "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_encoder_layers depth "
    "num_decoder_layers num_experts_per_tok moe_k moe_topk index_n_heads",
    4: "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads num_kv_heads "
    "num_key_value_heads num_experts num_local_experts n_routed_experts moe_num_experts mamba_num_heads",
    12: "head_dim d_head d_kv rotary_dim qk_rope_head_dim v_head_dim attention_head_size query_pre_attn_scalar "
    "global_head_dim swa_head_dim",
    8: "qk_nope_head_dim patch_size relative_attention_num_buckets coordinate_size shape_size frequency_stride "
    "time_stride hidden_size_per_layer_input num_conv_pos_embeddings attention_window",
    20: "qk_head_dim",
    16: "q_lora_rank kv_lora_rank moe_intermediate_size shared_expert_intermediate_size index_head_dim "
    "expert_ffn_hidden_size num_mel_bins input_feat_per_channel n_mels conv_channels",
    1: "n_group topk_group n_shared_experts moe_num_shared_experts num_frames tubelet_size num_hidden_groups "
    "type_vocab_size bos_token_id",
    0: "first_k_dense_replace pad_token_id num_register_tokens num_kv_shared_layers",
    32: "max_relative_positions num_buckets",
    33: "max_position_embeddings max_source_positions n_positions",
    40: "image_size",
    56: "max_length",
    64: "vocab_size decoder_vocab_size vocab_size_per_layer_input max_2d_position_embeddings entity_vocab_size "
    "pronunciation_vocab_size shape_vocab_size",
}
_OFTEN_NONE = ("head_dim", "n_shared_experts", "num_key_value_heads", "num_experts_per_tok")
_OF_EACH_LAYER = (
    "layer_types",
    "mlp_layer_types",
    "layers_block_type",
    "no_rope_layers",
    "moe_layers",
    *("num_attention_heads_per_layer", "activation_sparsity_pattern", "intermediate_size"),
)
_WITHOUT_SCALING = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_biased_input": False}
# Settings that belong together in another way
_OF_TYPE: dict[str, dict[str, Any]] = {
    "mlcd_vision_model": {"num_attention_heads": 2, "num_key_value_groups": 1},
    "zaya": {"num_experts_per_tok": 1},
    "dory": {"num_hidden_layers": 2, "n_input_layers": 1, "n_recurrent_layers": 0, "n_output_layers": 1},
    "big_bird": {"attention_type": "original_full"},
    "deberta": _RELATIVE,
    "deberta-v2": _RELATIVE | {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm"},
    "switch_transformers": {"num_sparse_encoder_layers": 0},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2},
    "lfm2_moe": {"num_hidden_layers": 2, "layer_types": ["full_attention", "full_attention"]},
    "dbrx": {
        "attn_config": {"kv_n_heads": 4, "rope_theta": 1e4, "clip_qkv": 8},
        "ffn_config": {"ffn_hidden_size": 96},
    },
    "mimo_v2_flash": {"num_attention_heads": 8},
    "neomme": {"head_dim": 16},
    "cohere_compass_text": {"rope_parameters": {"full_attention": _WITHOUT_SCALING["rope_parameters"]}},
    "deepseek_v2": {"topk_method": "greedy", "n_group": None, "topk_group": None},
    "falcon": {"alibi": False, "new_decoder_architecture": False, "multi_query": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "mobilebert": {"use_bottleneck": False, "trigram_input": False},
    "siglip2_vision_model": {"num_patches": 25},
    "dpt": {"is_hybrid": False, "backbone_out_indices": [0, 1], "neck_hidden_sizes": [8, 8]},
    "mpnet": {"pad_token_id": 1},
    "stablelm": {"num_attention_heads": 2, "num_key_value_heads": 2},
    "esm": {"vocab_size": 33, "mask_token_id": 32, "pad_token_id": 1, "position_embedding_type": "rotary"},
    "modernbert": {"cls_token_id": 0, "sep_token_id": 2},
    "vit_mae": {"mask_ratio": 0.0},
    "yolos": {"image_size": [40, 40]},
    "hunyuan_v1_moe": _WITHOUT_SCALING | {"moe_topk": [2, 2], "num_shared_expert": [1, 1]},
    "nemotron": {"rope_parameters": {**_WITHOUT_SCALING["rope_parameters"], "partial_rotary_factor": 0.5}},
    "emu3_text_model": _WITHOUT_SCALING,
    "gpt_oss": _WITHOUT_SCALING,
    "hunyuan_v1_dense": _WITHOUT_SCALING,
    "ministral": _WITHOUT_SCALING,
    "ministral3": _WITHOUT_SCALING,
}


class Verdict(NamedTuple):
    """What the rule says about the encoder, or one of the encoders, of a model type."""

    model_type: str
    tower: str
    positions: str
    verdict: str
    reason: str


def text_vision_and_audio_types() -> list[str]:
    """Return the model types of transformers that read text, images or sound."""
    tables = [
        *("IMAGE", "IMAGE_CLASSIFICATION", "BACKBONE", "VIDEO_CLASSIFICATION", "AUDIO_CLASSIFICATION", "CTC"),
        *("SPEECH_SEQ_2_SEQ", "CAUSAL_LM", "MASKED_LM", "SEQUENCE_CLASSIFICATION", "TEXT_ENCODING"),
        "SEQ_TO_SEQ_CAUSAL_LM",
    ]
    found: set[str] = set()
    for table in tables:
        found.update(getattr(modeling_auto, f"MODEL_FOR_{table}_MAPPING_NAMES", {}))
    return sorted(found.intersection(MODEL_MAPPING_NAMES))


def small_config(model_type: str) -> PreTrainedConfig:
    """Return the config of a small model of a type."""
    return _small(CONFIG_MAPPING[model_type], _OF_TYPE.get(model_type, {}))


def _small(cls: type[PreTrainedConfig], own: dict[str, Any]) -> PreTrainedConfig:
    """Return a small config, made by its constructor, which knows what follows from sizes, or made small later."""
    try:
        config = cls(**own)
    except (TypeError, ValueError):
        config = cls()
    # What the constructor computes is not among the fields that it takes.
    fields = getattr(cls, "__dataclass_fields__", {})
    sizes = {name: value for name, value in _sizes_of(config, own).items() if name in fields}
    parts = {name: part for name, part in vars(config).items() if isinstance(part, PreTrainedConfig)}
    small = {name: _small(type(part), _OF_TYPE.get(part.model_type, {})) for name, part in parts.items()}
    try:
        made = cls(**sizes | small | own)
        build_on_meta(made)
    except Exception:  # settings that do not fit, in many words
        return _made_small(config, own)
    return made


def build_on_meta(config: PreTrainedConfig) -> PreTrainedModel:
    """Build a model that takes no memory."""
    with torch.device("meta"):
        return build_from_config(copy.deepcopy(config))


def _sizes_of(config: PreTrainedConfig, own: dict[str, Any]) -> dict[str, int]:
    sizes = {}
    for value, names in _SIZES.items():
        for name in names.split():
            old = _value(config, name)
            is_size = isinstance(old, int) and not isinstance(old, bool)
            is_size = is_size or (old is None and name in _OFTEN_NONE and name in vars(config))
            if name not in own and is_size:
                sizes[name] = value
    return sizes


def _made_small(config: PreTrainedConfig, own: dict[str, Any]) -> PreTrainedConfig:
    if _value(config, "num_hidden_layers") is not None:
        _set(config, "per_layer_config", None)
    for name, value in _sizes_of(config, own).items():
        _set(config, name, value)
    _shorten_lists(config, own)
    for inner in list(vars(config).values()):
        if isinstance(inner, PreTrainedConfig):
            _made_small(inner, _OF_TYPE.get(inner.model_type, {}))
    return config


def _shorten_lists(config: PreTrainedConfig, own: dict[str, Any]) -> None:
    for name in _OF_EACH_LAYER:
        if name not in own and isinstance(_value(config, name), list):
            _set(config, name, _value(config, name)[:2])
    if getattr(config, "stage_names", None):
        # A backbone's stages are its layers.
        config.stage_names = ["stem", "stage1", "stage2"]
        config.set_output_features_output_indices(None, None)


def _value(config: PreTrainedConfig, name: str) -> Any:
    try:
        return getattr(config, name, None)
    except (RuntimeError, ValueError):
        return "another value for each layer"


def _set(config: PreTrainedConfig, name: str, value: Any) -> None:
    try:
        setattr(config, name, value)
    except (AttributeError, NotImplementedError, TypeError, ValueError):  # a property, or a value that is refused
        pass


def verdicts_on(model_type: str) -> Iterator[Verdict]:
    """Yield what the rule says about each encoder of a model type, made small."""
    try:
        config = small_config(model_type)
    except Exception as error:  # settings of another library's config
        yield Verdict(model_type, "", "", "not built", type(error).__name__)
        return
    for tower, inner in (towers_of(config) or {"": config}).items():
        verdict = _verdict(model_type, tower, inner)
        if verdict.reason.startswith(_MISFITS):
            # Small settings that do not fit together: those of its class, else two layers of the type's own sizes.
            verdict = _verdict(model_type, tower, _small(type(inner), _OF_TYPE.get(inner.model_type, {})))
        if verdict.reason.startswith(_MISFITS):
            own = _shortened(type(inner)())
            verdict = _verdict(model_type, tower, own) if _is_moderate(own) else verdict
        yield verdict


_MISFITS = ("transformers builds no model of its config", "its own forward pass fails", "its layers have ")


def _verdict(model_type: str, tower: str, config: PreTrainedConfig) -> Verdict:
    try:
        family = find_family(config)
    except UnsupportedEncoder as error:
        reason = str(error).partition("not supported: ")[2].rpartition("; supported")[0]
        # What is in parentheses differs between releases.
        return Verdict(model_type, tower, "", "refused", reason.partition(" (")[0])
    return Verdict(model_type, tower or family.tower, family.kind, "right", "")


def _is_moderate(config: PreTrainedConfig) -> bool:
    """Whether a model fits into a test: at most 2 billion weights, of which most are not made."""
    try:
        return sum(weight.numel() for weight in build_on_meta(config).parameters()) < 2e9
    except Exception:  # builds no model
        return True


def _shortened(config: PreTrainedConfig) -> PreTrainedConfig:
    for name in ("num_hidden_layers", "num_layers", "n_layers", "encoder_layers"):
        if isinstance(_value(config, name), int):
            _set(config, name, 2)
    _shorten_lists(config, {})
    return config


def stored_verdicts() -> dict[tuple[str, str], Verdict]:
    """Return the stored verdicts by model type and tower."""
    with FILE.open(encoding="utf-8", newline="") as file:
        rows = [Verdict(*row) for row in csv.reader(file)][1:]
    return {(row.model_type, row.tower): row for row in rows}


def sweep(model_types: Iterable[str]) -> list[Verdict]:
    """Return the verdicts on all encoders of some model types."""
    return [verdict for model_type in model_types for verdict in verdicts_on(model_type)]


if __name__ == "__main__":
    rows = sweep(text_vision_and_audio_types())
    with FILE.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(Verdict._fields)
        writer.writerows(rows)
    count = sum(row.verdict == "right" for row in rows)
    sys.stdout.write(f"{FILE}: {len(rows)} encoders, {count} right\n")
