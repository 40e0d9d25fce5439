"""The packaged encoder's learning: a step of each loss, its schedule, and going on from what is stored."""

from pathlib import Path

import numpy as np
import pytest
import torch

from studies import packaged_encoder as study
from studies.packaged_encoder import Run


@pytest.fixture
def points(tmp_path, monkeypatch) -> np.ndarray:
    """A pool of clouds without form, in a file of the study, and runs of a few shapes in a step."""
    monkeypatch.setattr(study, "SHAPES", 4)
    monkeypatch.setattr(study, "POINTS", 128)
    generator, count = np.random.default_rng(0), study.POOL + 3
    points = generator.normal(size=(count, 128, 3)).astype(np.float16)
    seen = generator.normal(size=(count, 24)).astype(np.float32)
    labels = generator.integers(3, size=count)
    np.savez(tmp_path / "pool.npz", points=points, labels=labels, classes=3, seen=seen)
    return points


def test_an_arm_learns_what_another_size_learns_too(tmp_path, points, capsys):
    for size, width in (("96x3", 288), ("160x5", 480)):
        path = study.learn(tmp_path, Run("labels+views", size), 1)
        assert "step 1: points" in (told := capsys.readouterr().out) and "labels" in told and "views" in told
        encoder = study.learned_encoder(path)
        assert study.features_of(encoder, points[:2].astype(np.float32)).shape == (2, width)


def test_an_interrupted_run_learns_the_same_bit_for_bit(tmp_path, points, monkeypatch):
    monkeypatch.setattr(study, "HEADS_ALONE", 1)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    start = Path(study.default_model())
    run = Run("labels+views", total=7004, start=start, first=7000)
    for folder, ends in ((whole, [7004]), (parts, [7001, 7003, 7004])):
        folder.mkdir()
        (folder / "pool.npz").symlink_to(tmp_path / "pool.npz")
        for steps in ends:
            study.learn(folder, run, steps)
    one, other = (torch.load(folder / f"{run.name}.pt", weights_only=True) for folder in (whole, parts))
    assert one["step"] == other["step"] == 7004
    for name, value in one["model"].items():
        assert torch.equal(value, other["model"][name]), name
    for name, value in one["average"].items():
        assert torch.equal(value, other["average"][name]), name
    moments, others = one["optimizer"]["state"], other["optimizer"]["state"]
    assert moments.keys() == others.keys()
    for number, state in moments.items():
        for name, value in state.items():
            assert torch.equal(value, others[number][name]), (number, name)


def test_the_rate_rises_once_for_heads_and_once_for_the_encoder_and_falls_to_zero():
    run = Run("labels", total=8000, start=Path("of a classifier"), first=7000)
    assert not run.learns_encoder(7099) and run.learns_encoder(7100)
    assert run.rate_at(7098) > run.rate_at(7100) and run.rate_at(7099) == run.rate_at(7300) == run.rate
    assert run.rate_at(7750) == pytest.approx(run.rate / 2) and 0 < run.rate_at(7999) < run.rate / 400
    # Without a total, learning can go on for ever.
    assert Run("labels").rate_at(100_000) == study.LEARNING_RATE
