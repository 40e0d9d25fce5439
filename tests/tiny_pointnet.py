"""Small PointNets and PointNets++ with random weights."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from hf_any3d.modeling.pointnet import PointNet2PreTrainedModel, PointNetPreTrainedModel

SIZES: dict[str, Any] = {"hidden_sizes": (32, 48, 64), "head_widths": (16,), "num_labels": 3}
LEVELS: dict[str, Any] = {
    "num_centers": (12, 4),
    "num_neighbors": (8, 4),
    "radii": (0.4, 0.8),
    "level_widths": ((8,), (16,)),
}
Model = TypeVar("Model", bound=PointNetPreTrainedModel)


def tiny_pointnet(model_class: type[Model], **settings: Any) -> Model:
    """Return a model of any PointNet class, in eval mode."""
    torch.manual_seed(0)
    levels = LEVELS if issubclass(model_class, PointNet2PreTrainedModel) else {}
    return model_class(model_class.config_class(**(SIZES | levels | settings))).eval()
