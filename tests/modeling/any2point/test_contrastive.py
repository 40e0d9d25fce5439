"""The contrastive loss: CLIP's if all labels differ, with equal labels as positives."""

import pytest
import torch

from hf_any3d.modeling.point_encoders.zero_shot import contrastive_loss, matching_pairs


def test_texts_may_be_fewer_or_more_than_clouds():
    logits = torch.randn(4, 2, generator=torch.Generator().manual_seed(1))
    labels, texts = torch.tensor([0, 1, 1, 0]), torch.tensor([0, 1])
    to_texts = torch.nn.functional.cross_entropy(logits, labels)
    targets = torch.tensor([[0.5, 0, 0, 0.5], [0, 0.5, 0.5, 0]])
    to_clouds = torch.nn.functional.cross_entropy(logits.T, targets)
    torch.testing.assert_close(contrastive_loss(logits, matching_pairs(labels, texts)), (to_texts + to_clouds) / 2)


def test_rows_without_positives_are_ignored():
    logits = torch.randn(3, 2, generator=torch.Generator().manual_seed(2))
    loss = contrastive_loss(logits, matching_pairs(torch.tensor([0, 1, 7]), torch.tensor([0, 1])))
    to_texts = torch.nn.functional.cross_entropy(logits[:2], torch.tensor([0, 1]))
    to_clouds = torch.nn.functional.cross_entropy(logits.T, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, (to_texts + to_clouds) / 2)
    with pytest.raises(ValueError, match="no cloud has the label"):
        matching_pairs(torch.tensor([5, 5, 5]), torch.tensor([0, 1]))
