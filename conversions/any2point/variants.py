"""The six released Any2Point programs as data: three encoders, two datasets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hf_any3d.conversions.renaming import Names

MODEL = "any2point."
SCANOBJECTNN_CLASSES = "bag bin box cabinet chair desk display door shelf table bed pillow sink sofa toilet".split()
MODELNET40_CLASSES = (
    "airplane bathtub bed bench bookshelf bottle bowl car chair cone cup curtain desk door dresser flower_pot "
    "glass_box guitar keyboard lamp laptop mantel monitor night_stand person piano plant radio range_hood sink sofa "
    "stairs stool table tent toilet tv_stand vase wardrobe xbox"
).split()

BLOCK = r"(?:res)?blocks\.(?P<layer>\d+)\."


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
        model: Settings of `Any2PointConfig`, the program's accidents included.
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


_CLIP = "encoder.layers.{layer}."
_DINOV2 = "encoder.layer.{layer}."
_IMAGEBIND = "layers.{layer}."
CLIP_NAMES: Names = {
    BLOCK + r"attn\.in_proj_(?P<tensor>\w+)": tuple(_CLIP + f"self_attn.{part}_proj.{{tensor}}" for part in "qkv"),
    BLOCK + r"attn\.out_proj\.": _CLIP + "self_attn.out_proj.",
    BLOCK + r"ln_(?P<norm>[12])\.": _CLIP + "layer_norm{norm}.",
    BLOCK + r"mlp\.c_fc\.": _CLIP + "mlp.fc1.",
    BLOCK + r"mlp\.c_proj\.": _CLIP + "mlp.fc2.",
}
DINOV2_NAMES: Names = {
    BLOCK + r"attn\.qkv\.(?P<tensor>\w+)": tuple(_DINOV2 + f"attention.{part}_proj.{{tensor}}" for part in "qkv"),
    BLOCK + r"attn\.proj\.": _DINOV2 + "attention.o_proj.",
    BLOCK + r"norm(?P<norm>[12])\.": _DINOV2 + "norm{norm}.",
    BLOCK + r"ls(?P<scale>[12])\.gamma": _DINOV2 + "layer_scale{scale}.lambda1",
    BLOCK + r"mlp\.fc(?P<linear>[12])\.": _DINOV2 + "mlp.fc{linear}.",
}
IMAGEBIND_NAMES: Names = {
    BLOCK + r"attn\.qkv\.(?P<tensor>\w+)": tuple(_IMAGEBIND + f"attention.{part}_proj.{{tensor}}" for part in "qkv"),
    BLOCK + r"attn\.proj\.": _IMAGEBIND + "attention.o_proj.",
    BLOCK + r"norm(?P<norm>[12])\.": _IMAGEBIND + "norm{norm}.",
    BLOCK + r"mlp\.fc(?P<linear>[12])\.": _IMAGEBIND + "mlp.fc{linear}.",
}

_SIZES = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
# Three encoders, each of two programs.
CLIP = {
    "encoder": {
        "model_type": "clip_text_model",
        **_SIZES,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
    "encoder_name": "openai/clip-vit-large-patch14",
    "encoder_tower": "text",
    "encoder_names": CLIP_NAMES,
    "layers": MODEL + "encoder.encoder.layers",
}
DINOV2 = {
    "encoder": {
        "model_type": "dinov2",
        **{name: size for name, size in _SIZES.items() if name != "intermediate_size"},
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

_RELEASED = {
    "normalize_centers": False,
    "sampling_min_squared_norm": 1e-3,
    "sampling_tie_rule": "cuda",
}
_LINE = {"line_mapping": "wrap", "attention_axis": "batch"}
_PLANE = {"plane_mapping": "wrap", "transposed_plane_positions": True}
_IMAGEBIND_PLANE = {**_PLANE, "swapped_plane_shape": True, "plane_size": (192, 304), "plane_distance": 1.4}
_DINOV2_PLANE = {**_PLANE, "plane_size": (518, 518), "position_injection": "every_layer"}
_SCAN = {
    "id2label": dict(enumerate(SCANOBJECTNN_CLASSES)),
    "offset_normalization": "group_max",
    "offset_eps": 0.0,
    "pooling": ("max", "cls"),
    "head_bias": False,
    "final_norm_eps": 1e-6,
}
_MODELNET = {
    "id2label": dict(enumerate(MODELNET40_CLASSES)),
    "offset_normalization": "batch_std",
    "offset_eps": 1e-5,
    "pooling": ("cls", "max"),
    "head_bias": True,
    "final_norm_eps": 1e-5,
}
_SCAN_DATA = {
    "dataset": "ScanObjectNN (PB_T50_RS)",
    "processor": {"num_points": 1024, "sampling": "farthest", "center": True, "scale": None},
}
_MODELNET_DATA = {
    "dataset": "ModelNet40",
    "processor": {
        "num_points": 1024,
        "sampling": "farthest",
        "center": True,
        "scale": "unit_sphere",
        "extent": "all",
        "min_squared_norm": 1e-3,
    },
}
_ADAPTER = {"attention_width": 12, "attention_heads": 6, "voxel_size": 0.16, "count_empty_cells": True}

VARIANTS = {
    "clip-scan": Variant(
        **CLIP,
        **_SCAN_DATA,
        encoder_changes={"layer_norm_eps": 1e-5},
        model={
            **_RELEASED,
            **_SCAN,
            **_LINE,
            "tokenizer_neighbors": 81,
            "line_direction": (-1.0, 0.0, 1.0),
            "position_injection": "input_and_every_layer",
        },
        adapter={
            **_ADAPTER,
            "r": 16,
            "bottleneck_scale": 0.3,
            "aggregation_scale": 0.3,
            "cell_size": 2.0,
            "voxel_size": 0.08,
            "pooling": "mean",
        },
        accuracy=91.9,
    ),
    "clip-modelnet": Variant(
        **CLIP,
        **_MODELNET_DATA,
        encoder_changes={"layer_norm_eps": 1e-5},
        model={
            **_RELEASED,
            **_MODELNET,
            **_LINE,
            "tokenizer_neighbors": 64,
            "line_direction": (1.0, -1.0, 0.0),
            "position_injection": "input",
        },
        adapter={
            **_ADAPTER,
            "r": 16,
            "bottleneck_scale": 0.3,
            "aggregation_scale": 0.5,
            "cell_size": 2.0,
            "pooling": "mean",
        },
        accuracy=94.3,
    ),
    "dinov2-scan": Variant(
        **DINOV2,
        **_SCAN_DATA,
        encoder_changes={"layer_norm_eps": 1e-6},
        model={**_RELEASED, **_SCAN, **_DINOV2_PLANE, "tokenizer_neighbors": 64, "plane_distance": 1.8},
        adapter={
            **_ADAPTER,
            "r": 8,
            "bottleneck_scale": 0.3,
            "aggregation_scale": 0.7,
            "cell_size": 26.0,
            "pooling": "mean",
        },
        accuracy=87.7,
    ),
    "dinov2-modelnet": Variant(
        **DINOV2,
        **_MODELNET_DATA,
        encoder_changes={"layer_norm_eps": 1e-5},
        model={**_RELEASED, **_MODELNET, **_DINOV2_PLANE, "tokenizer_neighbors": 81, "plane_distance": 1.4},
        adapter={
            **_ADAPTER,
            "r": 8,
            "bottleneck_scale": 1.0,
            "aggregation_scale": 0.1,
            "cell_size": 26.0,
            "pooling": "max_mean",
        },
        accuracy=93.2,
    ),
    "imagebind-scan": Variant(
        **IMAGEBIND,
        **_SCAN_DATA,
        encoder_changes={"layer_norm_eps": 1e-6, "add_bias_kv": False},
        model={**_RELEASED, **_SCAN, **_IMAGEBIND_PLANE, "tokenizer_neighbors": 64, "position_injection": "input"},
        adapter={
            **_ADAPTER,
            "r": 12,
            "bottleneck_scale": 0.3,
            "aggregation_scale": 0.5,
            "cell_size": 16.0,
            "pooling": "mean",
        },
        accuracy=87.0,
    ),
    "imagebind-modelnet": Variant(
        **IMAGEBIND,
        **_MODELNET_DATA,
        encoder_changes={"layer_norm_eps": 1e-5, "add_bias_kv": False},
        model={**_RELEASED, **_MODELNET, **_IMAGEBIND_PLANE, "tokenizer_neighbors": 81, "position_injection": "input"},
        adapter={
            **_ADAPTER,
            "r": 8,
            "bottleneck_scale": 1.0,
            "aggregation_scale": 0.1,
            "cell_size": 16.0,
            "pooling": "max_mean",
        },
        accuracy=92.7,
    ),
}
