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

from hf_any3d.modeling.encoders.bits import is_quantized, settle_bits
from hf_any3d.modeling.encoders.sources import resolve_recorded
from hf_any3d.modeling.minigpt3d.lora import names_in

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
    name: str | os.PathLike,
    revision: str | None = None,
    checksum: str | None = None,
    config: PreTrainedConfig | None = None,
    dtype: torch.dtype | None = None,
    **loading: Any,
) -> tuple[PreTrainedModel, dict[str, str | None]]:
    """Open a part from its repository or directory.

    Args:
        part: One of `DOORS`.
        name: Of the repository or directory.
        revision: Branch, tag or commit.
        checksum: Which weights they must be; None takes those that are there.
        config: How it is built; by default as its own config says.
        dtype: Precision; by default the stored one.
        **loading: `attn_implementation`, `quantization_config` and the like of `from_pretrained`.

    Returns:
        The part; and its name, commit and checksum, by which it is found again.

    Raises:
        EncoderMismatchError: If the weights are others than `checksum` says.
        ValueError: If the part lacks weights that its config asks for.
        OSError: If it cannot be had.
    """
    source = resolve_recorded(name, revision, checksum)
    if config is not None:
        loading["config"] = config
    if dtype is not None:
        loading["dtype"] = dtype
    model, info = DOORS[part].from_pretrained(source.path, output_loading_info=True, **loading)
    if missing := sorted(info["missing_keys"]):
        raise ValueError(f"{part} {source.name!r} lacks weights that its config asks for: {', '.join(missing[:8])}")
    settle_bits(model)
    return model, {"name": os.fspath(name), "revision": source.revision, "checksum": source.checksum}


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
