"""The study of ways to combine views: which of them recover offsets."""

from studies import rotary_pretraining, rotary_views
from tests.examples.conftest import tiny_shapes


def test_only_rules_that_separate_views_recover_offsets():
    encoder = rotary_pretraining.new_model(rotary_pretraining.PRETRAINING).model
    rows = tiny_shapes(rows=32)["test"]
    recovered = {
        rule: rotary_views.recovered_offsets(encoder, rule, rows, 16)
        for rule in ("split_frequencies", "split_heads", "mean_angle", "first_view")
    }
    assert recovered["split_frequencies"] > 0.8
    assert recovered["split_heads"] > 0.8
    assert recovered["mean_angle"] < 0.5
    assert recovered["first_view"] < 0.5
