"""Tiny 3DETRs, objects for them, and their cases of the common suites."""

from __future__ import annotations

import functools
import tempfile
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from hf_any3d import ActModel
from hf_any3d.modeling.detr3d import Detr3DConfig, Detr3DForPointCloudObjectDetection, Detr3DModel
from tests.common.case import Case, spread_weights, varied_clouds
from tests.tiny_act import tiny_act

SIZES: dict[str, Any] = {
    "num_tokens": 24,
    "num_neighbors": 8,
    "group_radius": 0.5,
    "group_widths": (16, 24),
    "encoder_hidden_size": 32,
    "encoder_layers": 2,
    "encoder_ffn_dim": 32,
    "attention_radii": (0.8, 1.2),
    "downsampling_radius": 0.8,
    "downsampling_neighbors": 6,
    "downsampling_widths": (24, 24),
    "hidden_size": 32,
    "decoder_layers": 2,
    "decoder_ffn_dim": 32,
    "num_queries": 8,
    "num_heading_bins": 4,
    "num_labels": 3,
}
Model = TypeVar("Model", bound=PreTrainedModel)


def tiny_detr3d(model_class: type[Model], **settings: Any) -> Model:
    """Return a small model, in eval mode."""
    torch.manual_seed(0)
    return model_class(Detr3DConfig(**(SIZES | settings))).eval()


BOX_FRAME: dict[str, Any] = {"center": False, "scale": None, "up_axis": "z"}
"""Settings of a processor for boxes."""


def answering_detector(**settings: Any) -> Detr3DForPointCloudObjectDetection:
    """Return a detector whose queries answer with different classes and scores."""
    names = {0: "chair", 1: "lamp", 2: "table"}
    model = tiny_detr3d(Detr3DForPointCloudObjectDetection, **({"id2label": names} | settings)).train()
    with torch.no_grad():
        for seed in range(3):  # statistics of the norms, without which all queries are alike
            model(varied_clouds(8, seed=seed))
    torch.nn.init.normal_(model.class_head.out.weight, std=2.0)
    return model.eval()


def objects(rows: int) -> list[dict[str, torch.Tensor]]:
    """Objects near the origin: none in the second cloud, one to three in the others."""
    generator = torch.Generator().manual_seed(9)
    labels = []
    for row in range(rows):
        count = 0 if row == 1 else 1 + row % 3
        centers = torch.rand(count, 3, generator=generator) - 0.5
        sizes = 0.2 + torch.rand(count, 3, generator=generator)
        headings = torch.rand(count, 1, generator=generator) * 3 - 1.5
        labels.append({"class_labels": torch.arange(count) % 3, "boxes": torch.cat([centers, sizes, headings], dim=1)})
    return labels


def _spread(model_class: type[PreTrainedModel], **settings: Any) -> PreTrainedModel:
    model = tiny_detr3d(model_class, **settings)
    spread_weights(model)
    return _with_varied_queries(model)


@functools.cache
def _saved_encoder() -> str:
    directory = tempfile.mkdtemp(prefix="tiny-point-encoder-")
    encoder = tiny_act(ActModel)
    spread_weights(encoder)
    encoder.save_pretrained(directory)
    return directory


def _on_encoder(**settings: Any) -> PreTrainedModel:
    torch.manual_seed(0)
    own = ("hidden_size", "decoder_layers", "decoder_ffn_dim", "num_queries", "num_heading_bins", "num_labels")
    model = Detr3DForPointCloudObjectDetection.from_point_encoder_pretrained(
        _saved_encoder(), **({name: SIZES[name] for name in own} | settings)
    )
    core = model.detr3d
    for part in (*core.children(), *model.children()):
        if part not in (core, core.point_encoder):
            spread_weights(part)
    return _with_varied_queries(model)


def _with_varied_queries(model: PreTrainedModel) -> PreTrainedModel:
    with torch.no_grad():
        # Queries of random weights read much the same, and the norms of the heads would blow up what little differs,
        # rounding included: let their positions tell them apart.
        for layer in (model.base_model.positions.projection[0], model.base_model.positions.projection[2]):
            layer.weight.mul_(3)
        for layer in model.base_model.layers:
            for attention in (layer.self_attn, layer.encoder_attn):
                attention.v_proj.weight.mul_(0.1)
            layer.mlp.fc2.weight.mul_(0.1)
    return model.eval()


def _points(rows: int, seed: int) -> dict[str, Any]:
    return {"points": varied_clouds(rows, seed=seed)}


_STILL = {"dropout": 0.0, "encoder_dropout": 0.0, "head_dropout": 0.0}
CASES = (
    Case(
        Detr3DModel, functools.partial(_spread, Detr3DModel), _points, None, "last_hidden_state", still_settings=_STILL
    ),
    Case(
        Detr3DForPointCloudObjectDetection,
        functools.partial(_spread, Detr3DForPointCloudObjectDetection),
        _points,
        lambda rows: {"labels": objects(rows)},
        "logits",
        "class_head.out",
        _STILL,
    ),
)
"""For `tests.common.models`."""
ON_ENCODER = Case(
    Detr3DForPointCloudObjectDetection,
    _on_encoder,
    _points,
    lambda rows: {"labels": objects(rows)},
    "logits",
    "class_head.out",
    _STILL,
    owns_encoder=True,
    variant="OnEncoder",
)
"""A detector on a pretrained point encoder, for `tests.common.tuners`."""
