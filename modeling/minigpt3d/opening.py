"""Load the pretrained parts of a MiniGPT-3D model."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Blip2Config,
    Blip2PreTrainedModel,
    Blip2QFormerModel,
    PreTrainedConfig,
    PreTrainedModel,
)

from hf_any3d.modeling.encoders.sources import open_recorded, record_source
from hf_any3d.modeling.minigpt3d.lora import names_in
from hf_any3d.modeling.pretrained_parts import PretrainedPart, is_quantized, set_quantization

if TYPE_CHECKING:
    from hf_any3d.modeling.minigpt3d.modeling_minigpt3d import MiniGPT3DForConditionalGeneration


class QueriesAndQFormer(Blip2PreTrainedModel):
    """The query tokens and Q-Former of a BLIP-2 model; other weights of its repository are ignored.

    It can also be saved as a small repository of its own.
    """

    config_class = Blip2Config
    _keys_to_ignore_on_load_unexpected = [r"^(vision_model|language_model|language_projection)\."]

    def __init__(self, config: Blip2Config):
        super().__init__(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.post_init()


PART_CLASSES = {"point_encoder": AutoModel, "qformer": QueriesAndQFormer, "language_model": AutoModelForCausalLM}
"""Class that loads each pretrained part."""


def open_part(
    part: str,
    recorded: PretrainedPart,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
    model: str | os.PathLike | None = None,
    **loading: Any,
) -> tuple[PreTrainedModel, PretrainedPart]:
    """Load a pretrained part from its repository or directory.

    Args:
        part: One of `PART_CLASSES`.
        recorded: Its repository or directory, branch, tag or commit, and expected checksum; without a checksum, any
            weights are accepted.
        config: Its config; by default the stored one.
        dtype: Its dtype; by default the stored one.
        model: Directory of the model that the part belongs to, the base of relative paths.
        **loading: `attn_implementation`, `quantization_config` and the like of `from_pretrained`.

    Returns:
        The part, and its record with name, commit and checksum.

    Raises:
        EncoderMismatchError: If the weights differ from those recorded.
        ValueError: If the part lacks weights that its config requires.
        OSError: If it cannot be loaded.
    """
    source = open_recorded(recorded, model)
    if config is not None:
        loading["config"] = config
    if dtype is not None:
        loading["dtype"] = dtype
    opened, info = PART_CLASSES[part].from_pretrained(source.path, output_loading_info=True, **loading)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{part} {source.name!r} lacks weights that its config requires: {', '.join(missing[:8])}")
    set_quantization(opened)
    return opened, record_source(recorded.name_or_path, source)


@torch.no_grad()
def adopt_qformer(model: MiniGPT3DForConditionalGeneration, source: QueriesAndQFormer) -> None:
    """Copy a BLIP-2 model's Q-Former into a model, and its query tokens into every query set."""
    qformer, given = model.bridge.qformer, dict(source.qformer.named_parameters())
    for name, ours in names_in(qformer, given).items():
        qformer.get_parameter(ours).copy_(given[name])
    for queries in model.bridge.experts.queries:
        queries.copy_(source.query_tokens[0])


def cast_around(model: MiniGPT3DForConditionalGeneration, dtype: torch.dtype) -> MiniGPT3DForConditionalGeneration:
    """Cast a model to a dtype, except for a quantized language model."""
    if not is_quantized(model.language_model):
        return model.to(dtype)
    model.point_encoder.to(dtype)
    model.bridge.to(dtype)
    return model
