"""The contrastive loss between clouds and texts, where several of a batch may mean the same."""

from __future__ import annotations

import torch
from torch import nn


def right_pairs(cloud_labels: torch.Tensor, text_labels: torch.Tensor) -> torch.Tensor:
    """Which texts mean what a cloud shows, `(clouds, texts)` of 0 and 1.

    Args:
        cloud_labels: `(clouds,)` what each cloud shows.
        text_labels: `(texts,)` what each text means.

    Raises:
        ValueError: If no cloud has a text of its own.
    """
    right = (cloud_labels.unsqueeze(1) == text_labels.unsqueeze(0)).float()
    if not right.any():
        raise ValueError(
            f"no text means what a cloud shows: labels {cloud_labels.unique().tolist()} of the clouds and "
            f"{text_labels.unique().tolist()} of the texts; expected some in common"
        )
    return right


def contrastive_loss(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """InfoNCE in both directions, in which every pair of equal labels is a right one.

    A batch of few classes holds clouds whose texts would be false negatives of each other; here the right answers of a
    row share its target in equal parts (SupCon, arXiv 2004.11362, with the sum inside the target). With labels that
    are all different this is CLIP's loss. Rows without any right answer do not count.

    Args:
        logits: `(clouds, texts)`.
        right: `(clouds, texts)`, see `right_pairs`.
    """
    return (_one_way(logits.float(), right) + _one_way(logits.float().T, right.T)) / 2


def _one_way(logits: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    answered = right.any(dim=1)
    targets = right[answered] / right[answered].sum(dim=1, keepdim=True)
    return nn.functional.cross_entropy(logits[answered], targets)
