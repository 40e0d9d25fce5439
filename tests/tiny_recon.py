"""Tiny ReCon models, and their cases for the common suites."""

from __future__ import annotations

import functools
from typing import Any

import torch
from transformers import PreTrainedModel

from hf_any3d.modeling.recon import (
    ReconConfig,
    ReconForPartSegmentation,
    ReconForPointCloudClassification,
    ReconForPreTraining,
    ReconForSemanticSegmentation,
    ReconForZeroShotPointCloudClassification,
    ReconModel,
)
from tests.common.case import POINTS, Case, spread_weights, varied_clouds
from tests.tiny_act import PARTS, SMALL

LABELS = 3
# Features of images and texts
FEATURES = 10
_STILL = {
    **dict.fromkeys(("drop_path_rate", "decoder_drop_path_rate", "head_dropout"), 0.0),
    "segmentation_head_dropout": (0.0, 0.0),
}


def tiny_recon(model_class: type[PreTrainedModel], **changes: Any) -> PreTrainedModel:
    """Make a small model in eval mode with weights that tell clouds apart."""
    torch.manual_seed(0)
    sizes = {**SMALL, "num_labels": LABELS, "image_width": FEATURES, "text_width": FEATURES, "mask_ratio": 0.5}
    sizes |= {"decoder_num_hidden_layers": 1, "contrast_widths": (8, 6), "temperature": 0.5}
    if model_class is ReconForPartSegmentation:
        sizes |= PARTS
    model = model_class(ReconConfig(**(sizes | changes)))
    spread_weights(model)
    return model.eval()


def _clouds(rows: int, seed: int) -> dict[str, Any]:
    return {"points": varied_clouds(rows, seed=seed)}


def _with_category(rows: int, seed: int) -> dict[str, Any]:
    return _clouds(rows, seed) | {"category": torch.arange(rows) % 2}


def _with_texts(rows: int, seed: int) -> dict[str, Any]:
    texts = torch.randn(LABELS, FEATURES, generator=torch.Generator().manual_seed(5))
    return _clouds(rows, seed) | {"text_embeds": texts}


def _with_mask(rows: int, seed: int) -> dict[str, Any]:
    order = torch.rand(rows, SMALL["num_groups"], generator=torch.Generator().manual_seed(seed)).argsort(dim=1)
    return _clouds(rows, seed) | {"mask": order < 6}


def _features(rows: int) -> dict[str, Any]:
    images, texts = torch.randn(2, rows, FEATURES, generator=torch.Generator().manual_seed(5))
    return {"image_embeds": images, "text_embeds": texts, "labels": torch.arange(rows) % 2}


def _classes(rows: int) -> dict[str, Any]:
    return {"labels": torch.arange(rows) % LABELS}


def _classes_and_texts(rows: int) -> dict[str, Any]:
    return _classes(rows) | {"text_labels": torch.arange(LABELS)}


def _point_classes(rows: int) -> dict[str, Any]:
    return {"labels": torch.arange(rows * POINTS).view(rows, POINTS) % LABELS}


def _parts(rows: int) -> dict[str, Any]:
    even = (torch.arange(rows) % 2 == 0).unsqueeze(1)
    count = torch.arange(POINTS).expand(rows, -1)
    return {"labels": torch.where(even, count % 2, 2 + count % 3)}


_HEADS = (
    (ReconModel, _clouds, None, "last_hidden_state", None),
    (ReconForPointCloudClassification, _clouds, _classes, "logits", "classifier.out"),
    (ReconForSemanticSegmentation, _clouds, _point_classes, "logits", "segmenter.head.out"),
    (ReconForPartSegmentation, _with_category, _parts, "logits", "segmenter.head.out"),
    (ReconForZeroShotPointCloudClassification, _with_texts, _classes_and_texts, "logits_per_point_cloud", None),
    (ReconForPreTraining, _with_mask, _features, "predictions", None),
)
CASES = tuple(
    Case(model_class, functools.partial(tiny_recon, model_class), inputs, labels, answer, last, _STILL)
    for model_class, inputs, labels, answer, last in _HEADS
)
