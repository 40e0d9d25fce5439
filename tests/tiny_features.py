"""Small models of features: descriptors and a tiny point encoder, standardized as the training of a head does."""

from __future__ import annotations

from typing import Any, TypeVar

import torch

from hf_any3d import ActModel, PointFeaturesConfig
from hf_any3d.modeling.point_features import PointFeaturesPreTrainedModel
from tests.common.case import spread_weights, varied_clouds
from tests.tiny_act import tiny_act

Model = TypeVar("Model", bound=PointFeaturesPreTrainedModel)


@torch.no_grad()
def tiny_features(model_class: type[Model], **settings: Any) -> Model:
    """Return a small model in eval mode, whose features have mean 0 and deviation 1 over 16 clouds."""
    encoder = tiny_act(ActModel, drop_path_rate=0.0)
    spread_weights(encoder)
    sizes = {"encoder_config": encoder.config, "encoder_weights": "pretrained", "copies": 3, "num_labels": 3}
    torch.manual_seed(0)
    model = model_class(PointFeaturesConfig(**(sizes | settings)), {"encoder": encoder}).eval()
    core = model.base_model
    features = core(varied_clouds(16, channels=core.config.in_channels, seed=11)).pooler_output
    core.mean.copy_(features.mean(dim=0))
    core.scale.copy_(features.std(dim=0).clamp(min=1e-2))
    return model


@torch.no_grad()
def fitted(model: Any, rows: int = 24, share: float | None = None) -> Any:
    """Fit the unknown score of a classifier on varied clouds and return the classifier."""
    output = model(varied_clouds(rows, seed=7))
    model.fit_unknown_score(model.base_model(varied_clouds(rows, seed=7)).pooler_output, output.logits)
    model.config.unknown.share = share
    return model
