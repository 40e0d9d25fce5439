"""Settings of a new model for little data: what `from_encoder_pretrained` fills in where the caller gives nothing.

They are the best that this project measured on some hundred shapes and objects, around the sentence encoder
all-MiniLM-L6-v2 (`recipe.md`, `learning.md` and `segmentation.md` in `studies/results`), and cost less than
the paper's. The defaults of `Any2PointConfig` and `GuidedAdapterConfig` are the paper's and must stay: saved configs
leave them out.

The training programs fill in these settings, too, and the adapter's with the method "guided_adapter"; recipes of
published models give all of them. `GuidedAdapterConfig.light()` is the adapter for Python.
"""

from collections.abc import Mapping
from typing import Any

import torch
from transformers import PreTrainedConfig

from hf_any3d.modeling.any2point.starting_weights import misfit
from hf_any3d.modeling.encoders.loading import build_encoder
from hf_any3d.modeling.encoders.registry import find_family

LIGHT: dict[str, Any] = {
    "num_tokens": 64,
    "tokenizer": "patch",
    "tokenizer_width": 96,
    "tokenizer_weights": "generated_shapes",
    "tokenizer_neighbors": 32,
    "token_scale": 1.5,
    "line_cells": 8.0,
    "pooling": ["max", "mean", "cls"],
    "head_widths": [256],
    "head_dropout": 0.3,
}
"""For `Any2PointConfig`: classification, features and zero-shot."""

LIGHT_SEGMENTATION: dict[str, Any] = LIGHT | {
    "tokenizer_width": 64,
    "tokenizer_weights": "random",
    "tokenizer_neighbors": 24,
    "pooling": ["max", "mean"],
    "head_widths": [128],
    "head_dropout": 0.2,
}
"""For `Any2PointConfig`: part and semantic segmentation."""

LIGHT_ADAPTER: dict[str, Any] = {"gate": 0.2, "voxel_size": 0.5}
"""For `GuidedAdapterConfig`."""


def fill_in(light: Mapping[str, Any], encoder_config: PreTrainedConfig, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return given settings of an `Any2PointConfig`, and those of `light` for what is not given; None counts as given.

    The width is left to the config with another tokenizer than "patch", and so is `token_scale` around an encoder
    without learned positions, whose spread it needs. The tokenizer starts with random weights where those of the
    package do not fit.
    """
    # Defaults of the config are left to it, as saved configs leave them out.
    filled = {**light, **given}
    if filled["tokenizer"] != "patch" and "tokenizer_width" not in given:
        del filled["tokenizer_width"]
    if "token_scale" not in given:
        # It multiplies the deviation of the learned positions. Whether there are any needs the structure alone, so no
        # weight is allocated.
        with torch.device("meta"):
            encoder = build_encoder(encoder_config)
        if find_family(encoder_config).positions(encoder).weight is None:
            del filled["token_scale"]
    if "tokenizer_weights" not in given:
        complete = {"tokenizer_width": None, "token_scale": None, **filled}
        # Weights of the package fit one kind of tokenizer; random ones are no error where nobody asked for them.
        if misfit(complete, encoder_config.hidden_size):
            filled["tokenizer_weights"] = "random"
    return filled
