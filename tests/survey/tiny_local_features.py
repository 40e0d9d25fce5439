"""Small models of local features."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from hf_any3d import LocalFeaturesConfig
from hf_any3d_survey.local_features import LocalFeaturesPreTrainedModel
from tests.common.case import spread_weights

CHANNELS = 8
Model = TypeVar("Model", bound=LocalFeaturesPreTrainedModel)


def tiny_local_features(model_class: type[Model], **settings: Any) -> Model:
    """Return a small model in eval mode."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"in_channels": CHANNELS, "hidden_sizes": (12, 10), "members": 2, "num_labels": 3}
    model = model_class(LocalFeaturesConfig(**(sizes | settings))).eval()
    spread_weights(model)
    return model
