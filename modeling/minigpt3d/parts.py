"""Putting MiniGPT-3D together from public parts."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Blip2Config,
    Blip2PreTrainedModel,
    Blip2QFormerModel,
    PreTrainedModel,
)

from hf_any3d.modeling.minigpt3d.configuration_minigpt3d import MiniGPT3DConfig
from hf_any3d.modeling.minigpt3d.lora import names_in
from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import MiniGPT3DForConditionalGeneration

Part = str | os.PathLike | PreTrainedModel


class QueriesAndQFormer(Blip2PreTrainedModel):
    """What of a BLIP-2 model serves here; opened from its repository, the rest is left out."""

    config_class = Blip2Config
    _keys_to_ignore_on_load_unexpected = [r"^(vision_model|language_model|language_projection)\."]

    def __init__(self, config: Blip2Config):
        super().__init__(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.post_init()


def build_from_parts(
    point_encoder: Part, qformer: Part | None, language_model: Part, dtype: torch.dtype | None = None, **config: Any
) -> MiniGPT3DForConditionalGeneration:
    """Build a model around pretrained parts; what lies between them starts fresh.

    Args:
        point_encoder: A model that `AutoModel` opens, or its name or folder.
        qformer: A BLIP-2 model, which gives every set of queries its own to start from, or its name or folder; None
            for a fresh Q-Former.
        language_model: A model that `AutoModelForCausalLM` opens, or its name or folder.
        dtype: Of the whole model; that of the language model if left out.
        **config: Further fields of `MiniGPT3DConfig`. `num_query_tokens` is that of the BLIP-2 model.

    Source: MiniGPT-3D, Sec. 3.3.
    """
    eyes = _opened(AutoModel, point_encoder)
    words = _opened(AutoModelForCausalLM, language_model)
    asking = None if qformer is None else _opened(QueriesAndQFormer, qformer)
    settings = {"point_config": eyes.config, "text_config": words.config}
    if asking is not None:
        undropped = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        settings["qformer_config"] = asking.qformer.config.to_dict() | undropped
        settings["num_query_tokens"] = asking.query_tokens.shape[1]
    attention = {part: part.config._attn_implementation for part in (eyes, words)}
    model = MiniGPT3DForConditionalGeneration(MiniGPT3DConfig(**settings | config), eyes, None, words)
    for part, implementation in attention.items():
        part.config._attn_implementation = implementation  # which a config of several parts takes back
    if asking is not None:
        _adopt(model, asking)
    model.generation_config = words.generation_config
    return model.to(words.dtype if dtype is None else dtype).eval()


@torch.no_grad()
def _adopt(model: MiniGPT3DForConditionalGeneration, asking: PreTrainedModel) -> None:
    qformer, given = model.bridge.qformer, dict(asking.qformer.named_parameters())
    for name, ours in names_in(qformer, given).items():
        qformer.get_parameter(ours).copy_(given[name])
    for queries in model.bridge.experts.queries:
        queries.copy_(asking.query_tokens[0])


def _opened(door: Any, part: Part) -> PreTrainedModel:
    return part if isinstance(part, PreTrainedModel) else door.from_pretrained(part)
