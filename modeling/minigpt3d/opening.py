"""Opening the public parts that a MiniGPT-3D model stands on."""

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
    """What of a BLIP-2 model serves here; opened from its repository, the rest is left out.

    Saved, it is a small repository that serves as well.
    """

    config_class = Blip2Config
    _keys_to_ignore_on_load_unexpected = [r"^(vision_model|language_model|language_projection)\."]

    def __init__(self, config: Blip2Config):
        super().__init__(config)
        self.query_tokens = nn.Parameter(torch.zeros(1, config.num_query_tokens, config.qformer_config.hidden_size))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.post_init()


DOORS = {"point_encoder": AutoModel, "qformer": QueriesAndQFormer, "language_model": AutoModelForCausalLM}
"""What opens each part."""


def open_part(
    part: str,
    recorded: PretrainedPart,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
    model: str | os.PathLike | None = None,
    **loading: Any,
) -> tuple[PreTrainedModel, PretrainedPart]:
    """Open a part from its repository or directory.

    Args:
        part: One of `DOORS`.
        recorded: Its repository or directory, branch, tag or commit, and which weights they must be; a record without
            a checksum takes those that are there.
        config: How it is built; by default as its own config says.
        dtype: Precision; by default the stored one.
        model: Directory of the model that the part belongs to, from which a relative path counts.
        **loading: `attn_implementation`, `quantization_config` and the like of `from_pretrained`.

    Returns:
        The part; and its name, commit and checksum, by which it is found again.

    Raises:
        EncoderMismatchError: If the weights are others than those recorded.
        ValueError: If the part lacks weights that its config asks for.
        OSError: If it cannot be had.
    """
    source = open_recorded(recorded, model)
    if config is not None:
        loading["config"] = config
    if dtype is not None:
        loading["dtype"] = dtype
    opened, info = DOORS[part].from_pretrained(source.path, output_loading_info=True, **loading)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{part} {source.name!r} lacks weights that its config asks for: {', '.join(missing[:8])}")
    set_quantization(opened)
    return opened, record_source(recorded.name_or_path, source)


@torch.no_grad()
def adopt_qformer(model: MiniGPT3DForConditionalGeneration, asking: QueriesAndQFormer) -> None:
    """Give a model the weights of a BLIP-2 model's Q-Former, and every set of queries its queries."""
    qformer, given = model.bridge.qformer, dict(asking.qformer.named_parameters())
    for name, ours in names_in(qformer, given).items():
        qformer.get_parameter(ours).copy_(given[name])
    for queries in model.bridge.experts.queries:
        queries.copy_(asking.query_tokens[0])


def cast_around(model: MiniGPT3DForConditionalGeneration, dtype: torch.dtype) -> MiniGPT3DForConditionalGeneration:
    """Bring a model to a precision, but for a language model in few bits, which has that of its opening."""
    if not is_quantized(model.language_model):
        return model.to(dtype)
    model.point_encoder.to(dtype)
    model.bridge.to(dtype)
    return model
