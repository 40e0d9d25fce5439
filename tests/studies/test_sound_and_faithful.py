"""The study of attention across the batch: orders of the test clouds, and quirks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from studies import sound_and_faithful


class ByExtent(nn.Module):
    """Predicts the rounded extent of each cloud, independently of its batch."""

    def forward(self, points):
        extent = points.abs().amax(dim=(1, 2)).round().long()
        return SimpleNamespace(logits=nn.functional.one_hot(extent, 4).float())


class ByFirstCloud(nn.Module):
    """Predicts the rounded extent of the first cloud for all clouds of a batch."""

    def forward(self, points):
        answer = points.abs().amax(dim=(1, 2)).round().long()[:1].expand(len(points))
        return SimpleNamespace(logits=nn.functional.one_hot(answer, 4).float())


@pytest.fixture
def clouds():
    labels = np.array([2, 0, 1, 2, 0, 1, 2, 0])
    return torch.as_tensor(labels, dtype=torch.float32)[:, None, None].expand(-1, 4, 3), labels


def test_independent_predictions_are_the_same_in_every_order(clouds):
    measured = sound_and_faithful.measure(ByExtent(), *clouds, batch_size=3)
    assert [measured[name] for name in sound_and_faithful.ACCURACIES] == [1, 1, 1]
    assert [measured[name] for name in sound_and_faithful.CHANGES] == [0, 0, 0]


def test_predictions_by_batch_profit_from_sorted_batches(clouds):
    measured = sound_and_faithful.measure(ByFirstCloud(), *clouds, batch_size=3)
    assert measured["single"] == 1
    assert measured["sorted"] == 7 / 8
    assert measured["shuffled"] < measured["sorted"]
    assert measured["sorted_single"] == 1 / 8
    assert 0 < measured["sorted_shuffled"] <= 1


def test_only_the_faithful_model_has_the_quirks():
    options = sound_and_faithful.parse([])
    sound, faithful = (sound_and_faithful.settings_of(arm, options)["model"] for arm in ("sound", "faithful"))
    assert set(faithful) - set(sound) == set(sound_and_faithful.ACCIDENTS)
    assert faithful["attention_axis"] == "batch"
