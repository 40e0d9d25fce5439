"""Settings of ACT's models that the shapes of a checkpoint's tensors imply."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from hf_any3d.conversions.renaming import count_of, size_of

_State = Mapping[str, torch.Tensor]


def student_sizes(state: _State) -> dict[str, Any]:
    """Return the settings of `ActConfig` for the student below `act.`, without attention heads and patch counts.

    Args:
        state: The result of `convert_act_state_dict`.

    Raises:
        ValueError: A tensor that a size is read from is missing, here and in the functions below.
    """
    state = _below(state, "act.")
    width = size_of(state, "norm.weight")
    return {
        "in_channels": size_of(state, "patch_encoder.lift.weight", 1),
        "hidden_size": width,
        "num_hidden_layers": count_of(state, r"blocks\.layers\.(\d+)\."),
        "mlp_ratio": size_of(state, "blocks.layers.0.mlp.fc1.weight") / width,
        "qkv_bias": "blocks.layers.0.attention.qkv.bias" in state,
        "use_class_token": "class_token.token" in state,
        "side_network": "side_alpha" in state,
    }


def classifier_sizes(state: _State) -> dict[str, Any]:
    """Return the settings of `ActConfig` for the head of a classifier, and `num_labels`."""
    head = _below(state, "classifier.")
    hidden = count_of(head, r"hidden\.(\d+)\.")
    return {
        "head_widths": [size_of(head, f"hidden.{number}.weight") for number in range(hidden)],
        "num_labels": size_of(head, "out.weight"),
    }


def segmenter_sizes(state: _State) -> dict[str, Any]:
    """Return the settings of `ActConfig` for the head of a segmentation model, and `num_labels`."""
    widths = ["segmenter.from_points.weight", "segmenter.head.hidden.0.weight"]
    return {
        "propagation_widths": [size_of(state, f"propagation.{name}.weight") for name in ("from_points", "out")],
        "segmentation_head_widths": [size_of(state, name) for name in widths],
        "num_labels": size_of(state, "segmenter.head.out.weight"),
    }


def category_sizes(state: _State) -> dict[str, int]:
    """Return `category_width` and `num_categories` of a part segmentation model."""
    return {
        "category_width": size_of(state, "category_embedding.weight", 1),
        "num_categories": size_of(state, "category_embedding.weight"),
    }


def autoencoder_sizes(state: _State) -> dict[str, Any]:
    """Return the settings of `ActAutoencoderConfig`, without the numbers of patches and graph neighbors.

    Args:
        state: The autoencoder's own tensors, as `convert_act_state_dict` returns them.
    """
    layers = count_of(state, r"graph_encoder\.layers\.(\d+)\.")
    sizes = {
        "in_channels": size_of(state, "patch_encoder.lift.weight", 1),
        "hidden_size": size_of(state, "codebook.weight", 1),
        "num_codes": size_of(state, "codebook.weight"),
        "graph_input_width": size_of(state, "graph_encoder.input.weight"),
        "graph_widths": [size_of(state, f"graph_encoder.layers.{number}.norm.weight") for number in range(layers)],
        "coarse_width": size_of(state, "decoder.coarse.0.weight"),
        "folding_width": size_of(state, "decoder.widen.weight"),
        # Three coordinates per coarse point, and a coarse point for every four points of a patch.
        "group_size": size_of(state, "decoder.coarse.4.weight") // 3 * 4,
    }
    if "teacher_in.weight" in state:
        deep = "prompts.tokens" in state and size_of(state, "prompts.tokens") > 1
        sizes["num_prompts"] = size_of(state, "prompts.tokens", 1) if "prompts.tokens" in state else 0
        sizes["prompt_depth"] = "deep" if deep else "shallow"
    return sizes


def pretraining_sizes(state: _State) -> dict[str, Any]:
    """Return the settings of `ActConfig` for pretraining's own layers, next to student and autoencoder."""
    return {
        "decoder_num_hidden_layers": count_of(state, r"decoder\.layers\.(\d+)\."),
        "class_token_loss": "decoder_class_position" in state,
        "feature_head_width": size_of(state, "feature_head.0.weight"),
    }


def teacher_sizes(frozen: _State) -> dict[str, int]:
    """Return width, depth and MLP width of a frozen teacher, given its tensors under transformers' names."""
    depth = count_of(frozen, r".*?layers?\.(\d+)\.")
    wide = next(
        (name for name in frozen if re.search(r"layers?\.0\.(mlp\.fc1|intermediate\.dense)\.weight$", name)),
        "the MLP of the first layer of the teacher",
    )
    return {
        "hidden_size": size_of(frozen, wide, 1),
        "intermediate_size": size_of(frozen, wide),
        "num_hidden_layers": depth,
    }


def _below(state: _State, prefix: str) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
