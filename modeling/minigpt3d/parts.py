"""A new model around pretrained parts."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import MiniGPT3DForConditionalGeneration
from hf_any3d.modeling.minigpt3d.opening import adopt_qformer, cast_around, open_part
from hf_any3d.modeling.pretrained_parts import PretrainedPart

Part = str | os.PathLike | PreTrainedModel


def build_from_parts(
    point_encoder: Part,
    qformer: Part | None,
    language_model: Part,
    dtype: torch.dtype | None = None,
    *,
    revisions: Mapping[str, str | None] | None = None,
    quantization_config: Any = None,
    **config: Any,
) -> MiniGPT3DForConditionalGeneration:
    """Build a model around pretrained parts; what lies between them starts fresh.

    Parts that are given by name are recorded in `config.parts`, with commit and checksum: the model is saved without
    them, unless `store_parts()` is called.

    Args:
        point_encoder: A model that `AutoModel` opens, or its name or folder.
        qformer: A BLIP-2 model, which gives every set of queries its own to start from, or its name or folder; None
            for a fresh Q-Former.
        language_model: A model that `AutoModelForCausalLM` opens, or its name or folder.
        dtype: Of the whole model; that of the language model if left out.
        revisions: Branch, tag or commit of parts that are given by name, by "point_encoder" and so on.
        quantization_config: Opens a language model given by name in fewer bits.
        **config: Further fields of `MiniGPT3DConfig`. `num_query_tokens` is that of the BLIP-2 model.

    Raises:
        ValueError: If a part lacks weights.
        OSError: If a part cannot be had.

    Source: MiniGPT-3D, Sec. 3.3.
    """
    quantized = {} if quantization_config is None else {"quantization_config": quantization_config}
    named: dict[str, PretrainedPart] = {}

    def opened(part: str, given: Part, **loading: Any) -> PreTrainedModel:
        if isinstance(given, PreTrainedModel):
            return given
        recorded = PretrainedPart(os.fspath(given), (revisions or {}).get(part))
        model, named[part] = open_part(part, recorded, dtype=dtype, **loading)
        return model

    eyes = opened("point_encoder", point_encoder)
    words = opened("language_model", language_model, **quantized)
    asking = None if qformer is None else opened("qformer", qformer)
    settings = {"point_config": eyes.config, "text_config": words.config}
    if asking is not None:
        undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        settings["qformer_config"] = asking.qformer.config.to_dict() | undropped
        settings["num_query_tokens"] = asking.query_tokens.shape[1]
    attention = {part: part.config._attn_implementation for part in (eyes, words)}
    settings["parts"] = {part: recorded.to_dict() for part, recorded in named.items()} or None
    model = MiniGPT3DForConditionalGeneration(MiniGPT3DConfig(**settings | config), eyes, None, words)
    for part, implementation in attention.items():
        part.config._attn_implementation = implementation  # which a config of several parts takes back
    if asking is not None:
        adopt_qformer(model, asking)
    model.generation_config = words.generation_config
    cast_around(model, words.dtype if dtype is None else dtype)
    model.remember_parts()
    return model.eval()
