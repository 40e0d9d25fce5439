"""Tiny Point Transformer V3 models."""

import functools
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from hf_any3d.modeling.point_transformer_v3 import (
    PRESETS,
    PointTransformerV3ForPointCloudClassification,
    PointTransformerV3ForPointCloudSegmentation,
    PointTransformerV3ForZeroShotPointCloudSegmentation,
    PointTransformerV3Model,
)
from tests.common.case import POINTS, Case, spread_weights, varied_clouds
from tests.tiny_text_towers import saved_text_tower

SMALL = {
    "in_channels": 6,
    "grid_size": 0.05,
    "depths": (1, 2),
    "hidden_sizes": (16, 24),
    "num_attention_heads": (2, 2),
    "patch_sizes": (64, 64),
    "pooling_strides": (2,),
    "mlp_ratio": 2.0,
    "head_widths": (16,),
}


def tiny_ptv3(model_class: type[PreTrainedModel], **changes) -> PreTrainedModel:
    """Make a small model in eval mode."""
    torch.manual_seed(0)
    return model_class(model_class.config_class(**(SMALL | {"num_labels": 3} | changes))).eval()


# Channels of points among texts.
TEXTS = 20
LABELS = 3
FIND3D = {
    **PRESETS["find3d"],
    **SMALL,
    "decoder_depths": (1,),
    "decoder_hidden_sizes": (16,),
    "decoder_num_attention_heads": (2,),
    "text_head_widths": (16, 16),
    "text_embedding_size": TEXTS,
}


def tiny_find3d(**changes) -> PointTransformerV3ForZeroShotPointCloudSegmentation:
    """Make a small Find3D in eval mode whose text tower is a tiny SigLIP, with weights of different clouds."""
    tower = saved_text_tower("siglip")
    width = AutoConfig.from_pretrained(tower).text_config.projection_size
    own = {"in_channels": 9, "text_embedding_size": width, "parts": {"text_tower": {"name_or_path": tower}}}
    model = tiny_ptv3(PointTransformerV3ForZeroShotPointCloudSegmentation, **{**FIND3D, **own, **changes})
    for name, tensor in model.state_dict().items():
        if name.endswith("weight") and tensor.ndim > 1:
            tensor.mul_(4)  # features that differ between points
    return model


def _spread(model_class: type[PreTrainedModel], own: dict[str, Any] | None = None, **settings: Any) -> PreTrainedModel:
    model = tiny_ptv3(model_class, **({} if own is None else own) | settings)
    spread_weights(model)
    return model


def _points(rows: int, seed: int) -> dict[str, Any]:
    return {"points": varied_clouds(rows, channels=6, seed=seed)}


def _with_texts(rows: int, seed: int) -> dict[str, Any]:
    texts = torch.randn(LABELS, TEXTS, generator=torch.Generator().manual_seed(5))
    return _points(rows, seed) | {"text_embeds": texts}


def _point_labels(rows: int) -> dict[str, Any]:
    numbers = torch.arange(rows * POINTS).view(rows, POINTS) % LABELS
    numbers[:, ::7] = -100
    return {"labels": numbers}


_STILL = {"drop_path_rate": 0.0, "head_dropout": 0.0, "shuffle_curves": "never"}
CASES = (
    Case(
        PointTransformerV3Model,
        functools.partial(_spread, PointTransformerV3Model),
        _points,
        None,
        "pooler_output",
        still_settings=_STILL,
    ),
    Case(
        PointTransformerV3ForPointCloudClassification,
        functools.partial(_spread, PointTransformerV3ForPointCloudClassification),
        _points,
        lambda rows: {"labels": torch.arange(rows) % LABELS},
        "logits",
        "classifier.out",
        _STILL,
    ),
    Case(
        PointTransformerV3ForPointCloudSegmentation,
        functools.partial(_spread, PointTransformerV3ForPointCloudSegmentation),
        _points,
        _point_labels,
        "logits",
        "segmenter.out",
        _STILL,
    ),
    Case(
        PointTransformerV3ForZeroShotPointCloudSegmentation,
        # Blocks that are computed again in the backward pass cannot read the skip connection, which is refused.
        functools.partial(
            _spread, PointTransformerV3ForZeroShotPointCloudSegmentation, FIND3D | {"decoder_convolution": "sum"}
        ),
        _with_texts,
        _point_labels,
        "logits",
        still_settings=_STILL,
    ),
)
"""For `tests.common.models`."""
