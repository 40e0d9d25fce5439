"""Encoders that no repository of their own offers: kept in the folder `encoder` of an adapter's repository."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from hf_any3d.modeling.encoders.frozen_encoder import FROZEN, freeze, open_encoder

FOLDER = "encoder"


def save_stored_encoder(model: PreTrainedModel, directory: str | os.PathLike) -> None:
    """Keep the frozen encoder of an adapted model beside its adapter, where its config says that it has no other home.

    Args:
        model: A model with adapters in its encoder.
        directory: Where the adapter is saved.
    """
    if model.config.encoder_name_or_path is not None:
        return
    encoder = getattr(model, model.base_model_prefix, model).encoder
    encoder.save_pretrained(Path(directory) / FOLDER, state_dict=_own_state(encoder))


def load_stored_encoder(
    name: str, config: PreTrainedConfig, dtype: torch.dtype | None, hub: dict[str, Any], **loading: Any
) -> PreTrainedModel:
    """Load what `save_stored_encoder` wrote.

    Args:
        name: Directory or hub repository of the adapter.
        config: Config of the model, whose `encoder_config` describes the encoder.
        dtype: Precision, float32 by default.
        hub: `revision`, `token`, `cache_dir` and the like.
        **loading: `device_map`, `quantization_config` and the like of `from_pretrained`.

    Raises:
        ValueError: If the repository holds no encoder, or one that lacks weights.
    """
    folder = "/".join(part for part in (hub.get("subfolder"), FOLDER) if part)
    try:
        encoder, missing = open_encoder(name, config.encoder_config, dtype, **(hub | {"subfolder": folder} | loading))
    except OSError as error:
        raise ValueError(
            f"{name}: an adapter whose config names no encoder, and the repository holds none in {folder}/; "
            "give encoder_name_or_path=…"
        ) from error
    if missing:
        raise ValueError(f"{name}: the encoder in {folder}/ lacks {', '.join(missing[:8])}")
    return freeze(encoder)


def _own_state(encoder: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The encoder's tensors under the names that they have without adapters."""
    modules = [module for module in encoder.modules() if FROZEN in vars(module)]
    own = {id(tensor) for module in modules for tensor in (*module._parameters.values(), *module._buffers.values())}
    state = encoder.state_dict(keep_vars=True)
    return {name.replace(".base_layer", ""): tensor.detach() for name, tensor in state.items() if id(tensor) in own}
