"""Evaluate classifiers with an unknown score, which may assign a cloud to none of their classes.

A model computes it by `UnknownScore`, and `is_none_of_these` compares it with the level in the model's config.
"""

from typing import Any

import numpy as np
import torch

from hf_any3d.modeling.layers.unknown_score import UnknownScore, is_none_of_these, unknown_settings

__all__ = ["UnknownScore", "is_none_of_these", "logits_with_unknown", "predicted_classes"]


def logits_with_unknown(outputs: tuple[torch.Tensor, torch.Tensor], _labels: Any) -> torch.Tensor:
    """Append the unknown scores `(samples,)` to the logits; a `preprocess_logits_for_metrics` for Trainer."""
    logits, unknown = outputs
    return torch.cat([logits.float(), unknown.float()[:, None]], dim=1)  # (samples, num_classes + 1)


def predicted_classes(predictions: np.ndarray, config: Any = None) -> np.ndarray:
    """Return the predicted class of each sample; `num_classes` for what is of none of them."""
    # Models without an unknown score, and predictions without its column, have an answer for each sample.
    if config is None or unknown_settings(config).share is None or predictions.shape[1] == config.num_labels:
        return predictions.argmax(axis=1)
    refused = is_none_of_these(predictions[:, -1], config)
    return np.where(refused, config.num_labels, predictions[:, :-1].argmax(axis=1))
