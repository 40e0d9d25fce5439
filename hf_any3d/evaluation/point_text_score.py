"""Scores of how well generated shapes match the texts that they were made for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from hf_any3d.evaluation.classification import refuse_nan
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.processing.point_clouds import PointCloudProcessor


@torch.no_grad()
def point_text_scores(
    model: PreTrainedModel,
    processor: PointCloudProcessor,
    clouds: Sequence[Any],
    texts: Sequence[str],
    batch_size: int = 8,
) -> dict[str, Any]:
    """Score clouds by the texts that they were generated from, with an encoder of the space of texts.

    Args:
        model: A model that compares clouds with texts, such as `Uni3DForZeroShotPointCloudClassification`.
        processor: Its processor.
        clouds: Clouds or meshes in any form that the processor takes.
        texts: The text of each cloud.
        batch_size: Clouds per batch.

    Returns:
        `scores`, for each cloud 100 times the cosine with its text, or 0 if that is negative, as CLIPScore without its
        factor (arXiv 2104.08718); `score`, their mean; `r_precision`, the share of clouds whose own text fits best
        among all different texts, as in text-to-3D generation.
    """
    if len(clouds) != len(texts):
        raise ValueError(f"{len(clouds)} clouds and {len(texts)} texts; expected as many of both")
    # Each text once: among equal ones `argmax` takes the first, so that all others would count as wrong.
    different = list(dict.fromkeys(texts))
    features = []
    with evaluation_mode(model):
        # Complete texts, not names of classes, so no templates.
        words = model.encode_labels(different, templates=["{}"]).float()  # pyright: ignore[reportCallIssue] a method
        for start in range(0, len(clouds), batch_size):
            points = processor(list(clouds[start : start + batch_size]))["points"].to(model.device)
            features.append(model.get_point_features(points).float())  # pyright: ignore[reportCallIssue] a method
    cosines = (torch.cat(features) @ words.T).cpu().numpy()  # (clouds, different texts)
    refuse_nan(cosines)
    # (clouds,), where the text of each cloud is among the different ones
    place_of_text = np.array([different.index(text) for text in texts])
    scores = 100 * cosines[np.arange(len(place_of_text)), place_of_text].clip(min=0)
    return {
        "scores": scores.tolist(),
        "score": float(scores.mean()),
        "r_precision": float(np.mean(cosines.argmax(axis=1) == place_of_text)),
    }
