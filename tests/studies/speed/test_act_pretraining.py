"""The benchmark of ACT's pretraining step: both sides are the same step, and saved bytes count once."""

import pytest
import torch

from studies.speed import act_pretraining


@pytest.fixture
def step():
    torch.manual_seed(0)
    model = act_pretraining.build("tiny")
    points = torch.rand(3, 48, 3) - 0.5
    return model, points, act_pretraining.random_mask(torch.zeros(3, 8, 3), 6)


def test_transcription_is_the_released_step(step):
    difference = act_pretraining.largest_difference(*step)
    assert difference["loss"] < 1e-5 and difference["gradients"] < 1e-3


@pytest.mark.slow
def test_default_saves_fewer_than_half_of_the_bytes():
    rows = act_pretraining.measure("tiny", batch=2, points=48, rounds=1)["rows"]
    assert rows[act_pretraining.TRANSCRIPTION]["times_fewer_bytes"] == 1
    assert rows["ours, default"]["times_fewer_bytes"] > 2
