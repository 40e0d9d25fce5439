"""Small models that are trained from scratch: PointNets, PointNets++, DGCNNs and tokenizers without an encoder."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from hf_any3d.modeling.any2point import PointTokenizerPreTrainedModel
from hf_any3d.modeling.dgcnn import DgcnnPreTrainedModel
from hf_any3d.modeling.pointnet import PointNet2PreTrainedModel

POINTNET: dict[str, Any] = {"hidden_sizes": (32, 48, 64)}
LEVELS: dict[str, Any] = {
    "num_centers": (12, 4),
    "num_neighbors": (8, 4),
    "radii": (0.4, 0.8),
    "level_widths": ((8,), (16,)),
}
EDGES: dict[str, Any] = {"edge_widths": ((16, 20), (24,)), "hidden_sizes": (40,), "num_neighbors": 6}
TOKENIZER: dict[str, Any] = {
    "hidden_size": 48,
    "num_tokens": 8,
    "tokenizer_neighbors": 4,
    "tokenizer": "patch",
    "tokenizer_width": 24,
    "head_bias": True,
}
Model = TypeVar("Model", bound=PreTrainedModel)


def tiny_baseline(model_class: type[Model], **settings: Any) -> Model:
    """Return a small model of any of these classes, in eval mode."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"head_widths": (16,), "num_labels": 3, "head_dropout": 0.0}
    if issubclass(model_class, PointTokenizerPreTrainedModel):
        sizes |= TOKENIZER
    elif issubclass(model_class, DgcnnPreTrainedModel):
        sizes |= EDGES
    else:
        sizes |= POINTNET | (LEVELS if issubclass(model_class, PointNet2PreTrainedModel) else {})
    return model_class(model_class.config_class(**(sizes | settings))).eval()
