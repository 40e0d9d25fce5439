"""The packaged encoder's learning: a step of each loss, and going on from what is stored."""

import numpy as np
import torch

from studies import packaged_encoder as study


def test_an_arm_learns_and_goes_on(tmp_path, capsys):
    generator, count = np.random.default_rng(0), study.POOL + 3
    points = generator.normal(size=(count, 128, 3)).astype(np.float16)
    seen = generator.normal(size=(count, 24)).astype(np.float32)
    labels = generator.integers(3, size=count)
    np.savez(tmp_path / "pool.npz", points=points, labels=labels, classes=3, seen=seen)
    study.learn(tmp_path, "labels+views", 1)
    study.learn(tmp_path, "labels+views", 2)
    assert "step 2: points" in (told := capsys.readouterr().out) and "labels" in told and "views" in told
    encoder = study.learned_encoder(tmp_path / "labels+views.pt")
    assert study.features_of(encoder, points[:2].astype(np.float32)).shape == (2, 288)
    assert torch.load(tmp_path / "labels+views.pt", weights_only=True)["step"] == 2
