"""The benchmark of Any2Point's step: the transcription is the same step, and a wrong one is refused."""

import pytest

from studies.speed import any2point_wrapper as benchmark

SMALL = {"num_hidden_layers": 2, "hidden_size": 48, "num_attention_heads": 4, "intermediate_size": 64}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    encoder, model, adapter = benchmark.PRESETS["clip-scan"]
    narrow = {"tokenizer_width": 48, "tokenizer_bottlenecks": (8, 8, 8)}
    monkeypatch.setitem(benchmark.PRESETS, "clip-scan", (encoder | SMALL, model | narrow, adapter))


def test_transcription_is_the_same_step_and_saves_more():
    result = benchmark.measure("clip-scan", batch=3, points=96, tokens=16, neighbors=8, repeats=1)
    assert result["difference"]["loss"] < 1e-5 and result["difference"]["gradients"] < 1e-3
    rows = result["rows"]
    assert rows["transcription"]["saved_MB_per_cloud"] > 2 * rows["whole model"]["saved_MB_per_cloud"]
