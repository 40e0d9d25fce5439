"""Weights from which a new tokenizer can start instead of random ones (`tokenizer_weights` of a config).

They come with the package. A file holds the state of a tokenizer of coordinates whose norm of tokens has the initial
gain 1, and says in its metadata how it was made. Further channels of a point, such as normals, start without
influence.
"""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

GENERATED_SHAPES = Path(__file__).with_name("tokenizer_generated_shapes.safetensors")
"""Learned on shapes generated from code, around the first layer of all-MiniLM-L6-v2, by `python -m
studies.starting_weights`."""

FILES: dict[str, Path] = {"generated_shapes": GENERATED_SHAPES}
"""By `config.tokenizer_weights`."""

FITS: dict[str, Any] = {"tokenizer": "patch", "tokenizer_width": 96, "hidden_size": 384}
"""Settings of the tokenizers that they fit; these also need a `token_scale`."""


def misfit(settings: Mapping[str, Any], hidden_size: int) -> str | None:
    """Say why the weights do not fit a tokenizer; None if they do."""
    # The width is the encoder's, which is no setting of the tokenizer.
    found = {**settings, "hidden_size": hidden_size}
    for name, needed in FITS.items():
        if found[name] != needed:
            return f"{name}={found[name]!r}; expected {needed!r}"
    return "token_scale=None; expected a number" if found["token_scale"] is None else None


@cache
def read_weights(name: str, in_channels: int = 3) -> dict[str, torch.Tensor]:
    """Read weights of the package, one of `FILES`; those of channels after xyz are zero."""
    weights = load_file(FILES[name])
    first = weights["local.lift.weight"]  # (width, 3)
    weights["local.lift.weight"] = nn.functional.pad(first, (0, in_channels - first.shape[1]))
    return weights
