"""Build a new model from pretrained parts."""

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
    """Build a model from pretrained parts, with randomly initialised modules between them.

    Parts given by name are recorded in `config.parts`, with commit and checksum: the model is saved without them,
    unless `store_parts()` is called.

    Args:
        point_encoder: A model that `AutoModel` loads, or its name or folder.
        qformer: A BLIP-2 model, whose query tokens initialise every query set, or its name or folder; None for a
            randomly initialised Q-Former.
        language_model: A model that `AutoModelForCausalLM` loads, or its name or folder.
        dtype: Dtype of the full model; by default that of the language model.
        revisions: Branch, tag or commit of parts given by name, with keys such as "point_encoder".
        quantization_config: Quantization of a language model given by name.
        **config: Further fields of `MiniGPT3DConfig`. `num_query_tokens` is that of the BLIP-2 model.

    Raises:
        ValueError: If a part lacks weights.
        OSError: If a part cannot be loaded.

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

    encoder = opened("point_encoder", point_encoder)
    text_model = opened("language_model", language_model, **quantized)
    blip2 = None if qformer is None else opened("qformer", qformer)
    settings = {"point_config": encoder.config, "text_config": text_model.config}
    if blip2 is not None:
        no_dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        settings["qformer_config"] = blip2.qformer.config.to_dict() | no_dropout
        settings["num_query_tokens"] = blip2.query_tokens.shape[1]
    attention = {part: part.config._attn_implementation for part in (encoder, text_model)}
    settings["parts"] = {part: recorded.to_dict() for part, recorded in named.items()} or None
    model = MiniGPT3DForConditionalGeneration(MiniGPT3DConfig(**settings | config), encoder, None, text_model)
    for part, implementation in attention.items():
        part.config._attn_implementation = implementation  # reset when the configs were nested
    if blip2 is not None:
        adopt_qformer(model, blip2)
    model.generation_config = text_model.generation_config
    cast_around(model, text_model.dtype if dtype is None else dtype)
    model.remember_parts()
    return model.eval()
