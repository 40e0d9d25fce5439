"""The six released Any2Point programs as data, three encoders on two datasets, and their tensors under our names."""

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from hf_any3d.conversions.common_layers import BLOCK, CLIP_NAMES
from hf_any3d.conversions.renaming import HEAD, Names, as_linear, as_vector, rename_tensors, under
from hf_any3d.data.catalog import modelnet40, scanobjectnn

MODEL = "any2point."


def _vit_names(layer: str) -> dict[str, Any]:
    """Return the table of an encoder in timm's layout."""
    return {
        BLOCK + r"attn\.qkv\.(?P<tensor>\w+)": tuple(layer + f"attention.{part}_proj.{{tensor}}" for part in "qkv"),
        BLOCK + r"attn\.proj\.": layer + "attention.o_proj.",
        BLOCK + r"norm(?P<norm>[12])\.": layer + "norm{norm}.",
        BLOCK + r"mlp\.fc(?P<linear>[12])\.": layer + "mlp.fc{linear}.",
    }


DINOV2_NAMES: Names = {
    **_vit_names("encoder.layer.{layer}."),
    BLOCK + r"ls(?P<scale>[12])\.gamma": "encoder.layer.{layer}.layer_scale{scale}.lambda1",
}
IMAGEBIND_NAMES: Names = _vit_names("layers.{layer}.")
# Half of the programs store all but the head under this prefix.
_PREFIX = r"(?:encoder\.)?"
_FROZEN = "frozen."
_STAGE = r"patch_embed\.EncP\.LGA_list\.(?P<stage>\d)\.linear2\.(?P<block>\d)\."
_OUR_STAGE = MODEL + "point_tokenizer.stages.{stage}.blocks.{block}."
_ATTENTION = "{layers}.0.guided_adapter_attention."
# Patterns of trained tensors with our names. Our names may end in [view]: such tensors are stacked.
TRAINED_NAMES: Mapping[str, str] = {
    r"cls_token$": MODEL + "class_token.token",
    r"cls_pos$": MODEL + "class_token.position",
    r"norm\.": MODEL + "output_norm.",
    r"patch_embed\.EncP\.raw_point_embed\.net\.0\.": MODEL + "point_tokenizer.embed.",
    r"patch_embed\.EncP\.raw_point_embed\.net\.1\.": MODEL + "point_tokenizer.embed_norm.",
    _STAGE + r"net1\.0\.": _OUR_STAGE + "reduce.",
    _STAGE + r"net1\.1\.": _OUR_STAGE + "reduce_norm.",
    _STAGE + r"net2\.0\.": _OUR_STAGE + "expand.",
    _STAGE + r"net2\.1\.": _OUR_STAGE + "expand_norm.",
    BLOCK + r"adapter\.ln1\.": "{layers}.{layer}.guided_adapter_down.",
    BLOCK + r"adapter\.ln2\.": "{layers}.{layer}.guided_adapter_up.",
    BLOCK + r"out_transform_3d\.0\.(?P<tensor>\w+)": "{layers}.{layer}.guided_adapter_voxel_norm.{tensor}[0]",
    BLOCK + r"out_transform_[12]d\.(?P<view>\d)\.0\.(?P<tensor>\w+)": "{layers}.{layer}.guided_adapter_view_norm."
    "{tensor}[{view}]",
    r"attn1\.(?P<view>\d)\.qkv\.(?P<tensor>\w+)": _ATTENTION + "qkv_{tensor}[{view}]",
    r"attn1\.(?P<view>\d)\.proj\.(?P<tensor>\w+)": _ATTENTION + "out_{tensor}[{view}]",
    r"norm3\.(?P<view>\d)\.(?P<tensor>\w+)": _ATTENTION + "norm_{tensor}[{view}]",
    # The head of the programs for ScanObjectNN, then that of the programs for ModelNet40.
    r"prediction\.head\.0\.0\.": "classifier.hidden.0.",
    r"prediction\.head\.0\.1\.": "classifier.norms.0.",
    r"prediction\.head\.2\.0\.": "classifier.hidden.1.",
    r"prediction\.head\.2\.1\.": "classifier.norms.1.",
    r"prediction\.head\.4\.0\.": "classifier.out.",
    **{rf"cls_head_finetune\.{layer}": f"classifier.{ours}" for layer, ours in HEAD.items()},
}


@dataclass(frozen=True)
class Variant:
    """One released program.

    Args:
        encoder: Required values of the frozen encoder's config, its `model_type` first.
        encoder_changes: Values of that config that the program changed.
        encoder_name: The public checkpoint that the program started from; None if there is none on the hub.
        encoder_tower: Which tower, for checkpoints with several.
        encoder_names: The original's frozen tensors under transformers' names, starting from the encoder.
        layers: Path of the encoder's layers, which get the guided adapters.
        model: Settings of `Any2PointConfig`, the program's quirks included.
        adapter: Settings of `GuidedAdapterConfig`.
        processor: Settings of `PointCloudProcessor`.
        dataset: Name of the training dataset.
        accuracy: Percent on the test set, as the authors report.
    """

    encoder: dict[str, Any]
    encoder_changes: dict[str, Any]
    encoder_name: str | None
    encoder_tower: str | None
    encoder_names: Names
    layers: str
    model: dict[str, Any]
    adapter: dict[str, Any]
    processor: dict[str, Any]
    dataset: str
    accuracy: float


_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# Three encoders, each of two programs.
CLIP = {
    "encoder": {"model_type": "clip_text_model", **_SIZES, "max_position_embeddings": 77, "hidden_act": "quick_gelu"},
    "encoder_name": "openai/clip-vit-large-patch14",
    "encoder_tower": "text",
    "encoder_names": CLIP_NAMES,
    "layers": MODEL + "encoder.encoder.layers",
}
DINOV2 = {
    "encoder": {
        "model_type": "dinov2",
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "mlp_ratio": 4,
        "image_size": 518,
        "patch_size": 14,
        "hidden_act": "gelu",
    },
    "encoder_name": "facebook/dinov2-base",
    "encoder_tower": None,
    "encoder_names": DINOV2_NAMES,
    "layers": MODEL + "encoder.encoder.layer",
}
IMAGEBIND = {
    "encoder": {
        "model_type": "imagebind_audio",
        **_SIZES,
        "num_mel_bins": 128,
        "num_frames": 204,
        "hidden_act": "gelu",
    },
    "encoder_name": None,
    "encoder_tower": None,
    "encoder_names": IMAGEBIND_NAMES,
    "layers": MODEL + "encoder.layers",
}
# Quirks of all six programs, then of those of one kind of encoder or of one dataset: settings of `ReleasedAny2Point`.
_RELEASED = {"sampling_min_squared_norm": 1e-3, "sampling_tie_rule": "cuda"}
# Clouds come first where CLIP's layers expect tokens first: so they attend over the clouds of a batch.
_LINE = {"line_mapping": "wrap", "attention_axis": "batch"}
# The sampled positions have channels before tokens, and are read as if they had tokens first.
_PLANE = {"plane_mapping": "wrap", "transposed_plane_positions": True}
# Its 12 by 19 positions times 16, the size of a patch.
_IMAGEBIND_PLANE = {**_PLANE, "swapped_plane_shape": True, "plane_size": (192, 304)}
# Positions are added before every block, and not before them.
_DINOV2_PLANE = {**_PLANE, "plane_size": (518, 518), "position_injection": "every_layer"}
# Offsets are divided by the largest of their group, without an epsilon; a flat group gives NaN.
_SCAN_RELEASED = {**_RELEASED, "offset_normalization": "group_max", "offset_eps": 0.0, "final_norm_eps": 1e-6}
# One deviation of all offsets of a batch, so that features depend on the other clouds.
_MODELNET_RELEASED = {**_RELEASED, "offset_normalization": "batch_std", "offset_eps": 1e-5, "final_norm_eps": 1e-5}
_SCAN = {
    "normalize_centers": False,
    "id2label": dict(enumerate(scanobjectnn.DATASET.class_names)),
    "pooling": ("max", "cls"),
    "head_bias": False,
}
_MODELNET = {
    "normalize_centers": False,
    "id2label": dict(enumerate(modelnet40.CLASS_NAMES)),
    "pooling": ("cls", "max"),
    "head_bias": True,
}
_SAMPLED = {"num_points": 1024, "sampling": "farthest", "center": True}
# Clouds of ScanObjectNN keep their size: the program's settings switch the division by the radius off.
_SCAN_DATA = {"dataset": "ScanObjectNN (PB_T50_RS)", "processor": {**_SAMPLED, "scale": None}}
_MODELNET_DATA = {
    "dataset": "ModelNet40",
    "processor": {**_SAMPLED, "scale": "unit_sphere", "extent": "all", "min_squared_norm": 1e-3},
}


def _adapter(r: int, bottleneck: float, aggregation: float, cell_size: float, **others: Any) -> dict[str, Any]:
    """Return settings of `GuidedAdapterConfig`, with the scales of both branches."""
    # In training, the norms of cells count empty ones as rows of zeros.
    shared = {"attention_width": 12, "attention_heads": 6, "voxel_size": 0.16, "count_empty_cells": True}
    scales = {"bottleneck_scale": bottleneck, "aggregation_scale": aggregation}
    return {**shared, "r": r, **scales, "cell_size": cell_size, "pooling": "mean", **others}


VARIANTS = {
    "clip-scan": Variant(
        **CLIP,
        **_SCAN_DATA,
        encoder_changes={"layer_norm_eps": 1e-5},
        model={
            **_SCAN,
            "tokenizer_neighbors": 81,
            "line_direction": (-1.0, 0.0, 1.0),
            "released": {**_SCAN_RELEASED, **_LINE, "position_injection": "input_and_every_layer"},
        },
        adapter=_adapter(16, bottleneck=0.3, aggregation=0.3, cell_size=2.0, voxel_size=0.08),
        accuracy=91.9,
    ),
    "clip-modelnet": Variant(
        **CLIP,
        **_MODELNET_DATA,
        encoder_changes={"layer_norm_eps": 1e-5},
        model={
            **_MODELNET,
            "tokenizer_neighbors": 64,
            "line_direction": (1.0, -1.0, 0.0),
            "released": {**_MODELNET_RELEASED, **_LINE, "position_injection": "input"},
        },
        adapter=_adapter(16, bottleneck=0.3, aggregation=0.5, cell_size=2.0),
        accuracy=94.3,
    ),
    "dinov2-scan": Variant(
        **DINOV2,
        **_SCAN_DATA,
        encoder_changes={"layer_norm_eps": 1e-6},
        model={
            **_SCAN,
            "tokenizer_neighbors": 64,
            "plane_distance": 1.8,
            "released": {**_SCAN_RELEASED, **_DINOV2_PLANE},
        },
        adapter=_adapter(8, bottleneck=0.3, aggregation=0.7, cell_size=26.0),
        accuracy=87.7,
    ),
    "dinov2-modelnet": Variant(
        **DINOV2,
        **_MODELNET_DATA,
        encoder_changes={"layer_norm_eps": 1e-5},
        model={
            **_MODELNET,
            "tokenizer_neighbors": 81,
            "plane_distance": 1.4,
            "released": {**_MODELNET_RELEASED, **_DINOV2_PLANE},
        },
        adapter=_adapter(8, bottleneck=1.0, aggregation=0.1, cell_size=26.0, pooling="max_mean"),
        accuracy=93.2,
    ),
    "imagebind-scan": Variant(
        **IMAGEBIND,
        **_SCAN_DATA,
        encoder_changes={"layer_norm_eps": 1e-6, "add_bias_kv": False},
        model={
            **_SCAN,
            "tokenizer_neighbors": 64,
            "plane_distance": 1.4,
            "released": {**_SCAN_RELEASED, **_IMAGEBIND_PLANE, "position_injection": "input"},
        },
        adapter=_adapter(12, bottleneck=0.3, aggregation=0.5, cell_size=16.0),
        accuracy=87.0,
    ),
    "imagebind-modelnet": Variant(
        **IMAGEBIND,
        **_MODELNET_DATA,
        encoder_changes={"layer_norm_eps": 1e-5, "add_bias_kv": False},
        model={
            **_MODELNET,
            "tokenizer_neighbors": 81,
            "plane_distance": 1.4,
            "released": {**_MODELNET_RELEASED, **_IMAGEBIND_PLANE, "position_injection": "input"},
        },
        adapter=_adapter(8, bottleneck=1.0, aggregation=0.1, cell_size=16.0, pooling="max_mean"),
        accuracy=92.7,
    ),
}


def variant_of(names: Iterable[str]) -> dict[str, str] | None:
    """Return the argument `variant` of checkpoints with tensors of these names; None if they are not Any2Point's."""
    # Some programs store all but the head under this prefix.
    plain = [name.removeprefix("encoder.") for name in names]
    if not any(name.startswith("patch_embed.EncP.") for name in plain):
        return None
    # DINOv2 alone has layer scales, and of the others CLIP alone is written with torch's own attention.
    if any(".attn.in_proj_" in name for name in plain):
        encoder = "clip"
    elif any(".ls1.gamma" in name for name in plain):
        encoder = "dinov2"
    else:
        encoder = "imagebind"
    is_modelnet = any("cls_head_finetune." in name for name in plain)
    dataset = "modelnet" if is_modelnet else "scan"
    return {"variant": f"{encoder}-{dataset}"}


def convert_state_dict(
    original: Mapping[str, torch.Tensor], variant: Variant
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Rename, split, stack and reshape a released state dict.

    Returns:
        Tensors of the frozen encoder, under transformers' names, and all trained ones, under ours, adapters as PEFT
        stores them.
    """
    encoder: dict[str, torch.Tensor] = {}
    trained: dict[str, torch.Tensor] = {}
    # Numbered, as files may have them in any order.
    views: dict[str, dict[int, torch.Tensor]] = defaultdict(dict)
    for name, tensor in rename_tensors(original, names_of(variant)).items():
        of_view = re.fullmatch(r"(.+)\[(\d+)\]", name)
        if of_view:
            stacked, view = of_view.groups()
            if tensor.ndim:  # our stacked norms have no num_batches_tracked
                views[stacked][int(view)] = tensor
        elif name.startswith(_FROZEN):
            encoder[name.removeprefix(_FROZEN)] = _reshape(name, tensor)
        else:
            trained[name] = _reshape(name, tensor)
    # The released programs have a module for each view; ours has one with stacked weights.
    for name, tensors in views.items():
        trained[name] = torch.stack([tensors[view] for view in sorted(tensors)])
    return encoder, trained


def names_of(variant: Variant) -> Names:
    """Return the table of a program.

    Our names of frozen tensors begin with `frozen.`; those of tensors that are stacked end in `[view]`.
    """
    trained = {pattern: ours.replace("{layers}", variant.layers) for pattern, ours in TRAINED_NAMES.items()}
    names = {**under("", _FROZEN, variant.encoder_names), **trained}
    return {_PREFIX + pattern: ours for pattern, ours in names.items()}


def _reshape(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if "class_token" in name:
        return as_vector(tensor)
    if name.endswith("weight"):
        return as_linear(tensor)
    return tensor
