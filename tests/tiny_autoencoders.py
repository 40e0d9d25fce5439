"""Tiny ACT autoencoders around tiny random teachers."""

from __future__ import annotations

from typing import Any

import torch

from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from tests.tiny_encoders import saved_encoder

SMALL_AUTOENCODER = {
    "num_groups": 6,
    "group_size": 8,
    "patch_widths": (8, 8, 16),
    "hidden_size": 16,
    "num_codes": 32,
    "graph_input_width": 8,
    "graph_widths": (8, 8, 16),
    "coarse_width": 16,
    "folding_width": 16,
    "num_prompts": 3,
}


def tiny_autoencoder(encoder: str | None = "vit", **changes: Any) -> ActAutoencoder:
    """Make an autoencoder in eval mode with a tiny teacher of a `model_type`, or without one."""
    settings = SMALL_AUTOENCODER | changes
    # Before the seed: the first call for an encoder draws random numbers.
    source = None if encoder is None else saved_encoder(encoder)
    torch.manual_seed(1)
    if source is None:
        return ActAutoencoder(ActAutoencoderConfig(**settings)).eval()
    return ActAutoencoder.from_teacher_pretrained(source, **settings)
