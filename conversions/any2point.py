"""Original Any2Point checkpoints: what each released program was set to, and its names against ours."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch

MODEL = "any2point."
BLOCK = r"encoder\.resblocks\.(?P<layer>\d+)\."


@dataclass(frozen=True)
class Variant:
    """One released program.

    Args:
        encoder: The frozen encoder's config, as `AutoConfig.for_model` takes it, its `model_type` first.
        model: What its `Any2PointConfig` sets, its accidents included.
        adapter: What its `GuidedAdapterConfig` sets.
        encoder_names: Patterns of the original's frozen tensors with the transformers names they become; a tuple of
            names splits the tensor along its first axis.
        layers: Path of the encoder's layers, where guided adapters stand.
    """

    encoder: dict[str, Any]
    model: dict[str, Any]
    adapter: dict[str, Any]
    encoder_names: dict[str, str | tuple[str, ...]]
    layers: str


# Patterns of the original's trained tensors with our names. Our names may end in [view]: such tensors are stacked.
TRAINED_NAMES = {
    r"encoder\.cls_token": MODEL + "class_token.token",
    r"encoder\.cls_pos": MODEL + "class_token.position",
    r"encoder\.norm\.": MODEL + "output_norm.",
    r"encoder\.patch_embed\.EncP\.raw_point_embed\.net\.0\.": MODEL + "point_tokenizer.embed.",
    r"encoder\.patch_embed\.EncP\.raw_point_embed\.net\.1\.": MODEL + "point_tokenizer.embed_norm.",
    r"encoder\.patch_embed\.EncP\.LGA_list\.(?P<stage>\d)\.linear2\.(?P<block>\d)\.net1\.0\.": MODEL
    + "point_tokenizer.stages.{stage}.blocks.{block}.reduce.",
    r"encoder\.patch_embed\.EncP\.LGA_list\.(?P<stage>\d)\.linear2\.(?P<block>\d)\.net1\.1\.": MODEL
    + "point_tokenizer.stages.{stage}.blocks.{block}.reduce_norm.",
    r"encoder\.patch_embed\.EncP\.LGA_list\.(?P<stage>\d)\.linear2\.(?P<block>\d)\.net2\.0\.": MODEL
    + "point_tokenizer.stages.{stage}.blocks.{block}.expand.",
    r"encoder\.patch_embed\.EncP\.LGA_list\.(?P<stage>\d)\.linear2\.(?P<block>\d)\.net2\.1\.": MODEL
    + "point_tokenizer.stages.{stage}.blocks.{block}.expand_norm.",
    BLOCK + r"adapter\.ln1\.": "{layers}.{layer}.guided_adapter_down.",
    BLOCK + r"adapter\.ln2\.": "{layers}.{layer}.guided_adapter_up.",
    BLOCK + r"out_transform_3d\.0\.(?P<tensor>\w+)": "{layers}.{layer}.guided_adapter_voxel_norm.{tensor}[0]",
    BLOCK + r"out_transform_[12]d\.(?P<view>\d)\.0\.(?P<tensor>\w+)": "{layers}.{layer}.guided_adapter_view_norm."
    "{tensor}[{view}]",
    r"encoder\.attn1\.(?P<view>\d)\.qkv\.(?P<tensor>\w+)": "{layers}.0.guided_adapter_attention.qkv_{tensor}[{view}]",
    r"encoder\.attn1\.(?P<view>\d)\.proj\.(?P<tensor>\w+)": "{layers}.0.guided_adapter_attention.out_{tensor}[{view}]",
    r"encoder\.norm3\.(?P<view>\d)\.(?P<tensor>\w+)": "{layers}.0.guided_adapter_attention.norm_{tensor}[{view}]",
    r"prediction\.head\.0\.0\.": "classifier.hidden.0.",
    r"prediction\.head\.0\.1\.": "classifier.norms.0.",
    r"prediction\.head\.2\.0\.": "classifier.hidden.1.",
    r"prediction\.head\.2\.1\.": "classifier.norms.1.",
    r"prediction\.head\.4\.0\.": "classifier.out.",
}

_ATTENTION = "encoder.layers.{layer}.self_attn."
CLIP_NAMES = {
    BLOCK + r"attn\.in_proj_(?P<tensor>\w+)": tuple(_ATTENTION + f"{part}_proj.{{tensor}}" for part in "qkv"),
    BLOCK + r"attn\.out_proj\.": _ATTENTION + "out_proj.",
    BLOCK + r"ln_(?P<norm>[12])\.": "encoder.layers.{layer}.layer_norm{norm}.",
    BLOCK + r"mlp\.c_fc\.": "encoder.layers.{layer}.mlp.fc1.",
    BLOCK + r"mlp\.c_proj\.": "encoder.layers.{layer}.mlp.fc2.",
}

VARIANTS = {
    "clip-scan": Variant(
        encoder={
            "model_type": "clip_text_model",
            "hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 77,
            "hidden_act": "quick_gelu",
            "layer_norm_eps": 1e-5,
        },
        model={
            "num_labels": 15,
            "tokenizer_neighbors": 81,
            "offset_normalization": "group_max",
            "offset_eps": 0.0,
            "normalize_centers": False,
            "line_direction": (-1.0, 0.0, 1.0),
            "line_mapping": "wrap",
            "position_injection": "input_and_every_layer",
            "pooling": ("max", "cls"),
            "final_norm_eps": 1e-6,
            "sampling_min_squared_norm": 1e-3,
            "sampling_tie_rule": "cuda",
            "attention_axis": "batch",
        },
        adapter={
            "r": 16,
            "bottleneck_scale": 0.3,
            "aggregation_scale": 0.3,
            "cell_size": 2.0,
            "voxel_size": 0.08,
            "pooling": "mean",
            "count_empty_cells": True,
        },
        encoder_names=CLIP_NAMES,
        layers=MODEL + "encoder.encoder.layers",
    ),
}


def rename(name: str, variant: Variant) -> tuple[bool, tuple[str, ...]]:
    """Whether an original tensor belongs to the frozen encoder, and our names for it.

    There are several names where it is split; a name ends in `[view]` where the tensor is one of a stack.

    Raises:
        KeyError: If the name belongs to no known part.
    """
    for frozen, table in ((True, variant.encoder_names), (False, TRAINED_NAMES)):
        for pattern, ours in table.items():
            match = re.match(pattern, name)
            if match:
                fields = {**match.groupdict(), "layers": variant.layers}
                names = ours if isinstance(ours, tuple) else (ours,)
                return frozen, tuple(ours_name.format(**fields) + name[match.end() :] for ours_name in names)
    raise KeyError(name)


def convert_state_dict(
    original: dict[str, torch.Tensor], variant: Variant
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Rename, split, stack and reshape a released state dict.

    Args:
        original: The released program's tensors.
        variant: The program that made it.

    Returns:
        Tensors of the frozen encoder, under transformers' names, and of everything trained, under ours, adapters as
        PEFT stores them.

    Raises:
        ValueError: If a tensor belongs to no known part; all such names are listed.
    """
    encoder: dict[str, torch.Tensor] = {}
    trained: dict[str, torch.Tensor] = {}
    stacks: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    unknown = []
    for name, tensor in original.items():
        try:
            frozen, names = rename(name, variant)
        except KeyError:
            unknown.append(name)
            continue
        for ours, piece in zip(names, tensor.chunk(len(names)) if len(names) > 1 else (tensor,), strict=True):
            stacked = re.fullmatch(r"(.+)\[(\d+)\]", ours)
            if stacked is None:
                (encoder if frozen else trained)[ours] = _reshape(ours, piece)
            elif piece.ndim:  # our stacked norms do not count batches
                stacks[stacked[1]][int(stacked[2])] = piece
    if unknown:
        raise ValueError(f"the checkpoint holds tensors that belong to no known part: {', '.join(sorted(unknown))}")
    for name, views in stacks.items():
        trained[name] = torch.stack([views[view] for view in sorted(views)])
    return encoder, trained


def _reshape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if "class_token" in name:
        return tensor.flatten()
    # Convolutions of kernel size 1 are linear layers here.
    return tensor.flatten(1) if name.endswith("weight") and tensor.ndim > 2 else tensor
