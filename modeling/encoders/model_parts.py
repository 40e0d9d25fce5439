"""Whole pretrained models as parts of other models: opened without their heads, and restored in saved models."""

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.frozen_encoder import FrozenEncoderMixin
from hf_any3d.modeling.encoders.loading import load_encoder
from hf_any3d.modeling.pretrained_parts import (
    PretrainedPart,
    own_state,
    remember_weights,
    tensors_checksum,
    unused_weights_expected,
)
from hf_any3d.modeling.pretrained_parts.sources import EncoderMismatchError, commit_of


def open_pretrained_part(
    part: PretrainedPart, config: PreTrainedConfig | None = None, hub: Mapping[str, Any] | None = None
) -> tuple[PreTrainedModel, PretrainedPart]:
    """Open a pretrained model without its head, as a part of another one, in full precision.

    Args:
        part: Its record; the checksum is compared if there is one.
        config: Its config in a saved model; None for that of the checkpoint, of which the vision tower is taken if it
            has several.
        hub: `token`, `cache_dir` and the like.

    Returns:
        The model, and its record with commit and checksum.

    Raises:
        EncoderMismatchError: If the weights have another checksum than the recorded one.
        ValueError: If weights are missing, or there is an adapter with them.
        OSError: If it cannot be found.
    """
    name = part.name_or_path
    assert name is not None
    loading = dict(hub or {}) | ({} if part.revision is None else {"revision": part.revision})
    if config is None:
        config = AutoConfig.from_pretrained(name, **loading)
        config = getattr(config, "vision_config", None) or config
    with unused_weights_expected():  # heads and other towers
        model, report = AutoModel.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True, **loading
        )
    if getattr(model, "_hf_peft_config_loaded", False):
        raise ValueError(
            f"{name}: holds an adapter with the pretrained weights; expected weights only: merge it "
            "(merge_and_unload) and save the result"
        )
    # Poolers are not read, and heads of classifiers have none.
    if missing := sorted(key for key in report["missing_keys"] if not key.startswith("pooler.")):
        raise ValueError(f"{name}: lacks weights of a {type(model).__name__}: {', '.join(missing[:8])}")
    checksum = tensors_checksum(own_state(model))
    if part.checksum not in (None, checksum):
        raise EncoderMismatchError(
            f"{name}: the weights have checksum {checksum}; expected {part.checksum}, that of the weights that the "
            "model around them was made with"
        )
    commit = part.revision if os.path.isdir(name) else commit_of(name, model.config, part.revision)
    remember_weights(model)
    return model, replace(part, revision=commit, checksum=checksum)


def restore_part(model: PreTrainedModel, part: PretrainedPart) -> None:
    """Load the weights of a part that are kept elsewhere, and those of frozen encoders inside it, while it is opened.

    Args:
        model: The part, built from its config.
        part: Its record.
    """
    if part.is_elsewhere:
        _take_weights(model, open_pretrained_part(part, model.config)[0])
    for inner in model.modules():
        if isinstance(inner, FrozenEncoderMixin) and inner.owns_part("encoder"):
            inner._encoder_is_random = False
            if inner.config.part("encoder").is_elsewhere:
                _take_weights(inner.encoder, load_encoder(inner.config, dtype=inner.encoder.dtype))


@torch.no_grad()
def _take_weights(model: PreTrainedModel, source: PreTrainedModel) -> None:
    """Copy the weights of a model that was opened elsewhere, and let transformers know that they are complete."""
    model.load_state_dict(source.state_dict(), assign=any(weight.is_meta for weight in model.parameters()))
    # Buffers outside the state dict (rotary frequencies) are uninitialized memory at this point.
    for buffer, loaded in zip(model.buffers(), source.buffers(), strict=True):
        buffer.data = loaded.data if buffer.is_meta else loaded.data.to(buffer)
    for module in model.modules():
        module._is_hf_initialized = True
    for tensor in (*model.parameters(), *model.buffers()):
        tensor._is_hf_initialized = True
    remember_weights(model)
