"""The benchmark of 3DETR: the transcription is the same step, saves more, and a wrong one is refused."""

import pytest

from studies.speed import detr3d as benchmark

SMALL = {
    **{"num_tokens": 64, "num_queries": 16, "num_neighbors": 8, "group_radius": 0.8, "group_widths": (16, 24)},
    **{"encoder_hidden_size": 32, "encoder_ffn_dim": 32, "downsampling_widths": (24, 24), "downsampling_radius": 1.5},
    **{"attention_radii": (1.0, 2.0, 3.0), "hidden_size": 32, "decoder_layers": 2, "decoder_ffn_dim": 32},
}


@pytest.mark.slow
def test_transcription_is_the_same_step_and_saves_more():
    result = benchmark.measure(points=600, rounds=1, settings=SMALL)
    assert result["difference"]["loss"] < 1e-4 and result["difference"]["gradients"] < 2e-2
    step = result["step"]
    assert step["transcription"]["saved_MB"] > step["3DETR-m"]["saved_MB"] > 0
    assert set(result["inference"]) == {"bare layers", "3DETR-m", "pipeline"}
    assert all(one["seconds"] > 0 for one in result["inference"].values())
