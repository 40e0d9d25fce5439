"""The benchmark of ACT's pretraining step: both sides are the same step, and bytes are counted once."""

import pytest
import torch

from tests.examples.conftest import EXAMPLES, imported_beside_others


@pytest.fixture(scope="module")
def program():
    with imported_beside_others("act_pretraining", EXAMPLES / "benchmarks") as module:
        yield module


@pytest.fixture
def step(program):
    torch.manual_seed(0)
    model = program.build("tiny")
    points = torch.rand(3, 48, 3) - 0.5
    return model, points, program.random_mask(torch.zeros(3, 8, 3), 6)


def test_the_transcription_is_the_released_step(program, step):
    apart = program.largest_difference(*step)
    assert apart["loss"] < 1e-5 and apart["gradients"] < 1e-3


def test_another_step_is_refused(program, step, monkeypatch):
    plain = program.pretraining_loss
    monkeypatch.setattr(program, "pretraining_loss", lambda *args: 1.001 * plain(*args))
    with pytest.raises(AssertionError):
        program.largest_difference(*step)


def test_the_default_keeps_fewer_than_half_of_the_bytes(program):
    rows = program.measure("tiny", batch=2, points=48, rounds=1)["rows"]
    assert rows[program.TRANSCRIPTION]["times_fewer_bytes"] == 1
    assert rows["ours, default"]["times_fewer_bytes"] > 2
