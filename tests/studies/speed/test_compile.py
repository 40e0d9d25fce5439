"""The comparison of compiled models times both sides, and refuses results that differ."""

from types import SimpleNamespace

import pytest
from torch import nn
from transformers.modeling_outputs import SequenceClassifierOutput

from studies.speed.compile import measure


class Small(nn.Module):
    """Scores of the mean point; random in training if `dropout` is."""

    config = SimpleNamespace(in_channels=3)

    def __init__(self, dropout: float = 0.0):
        super().__init__()
        self.linear, self.dropout = nn.Linear(3, 10), nn.Dropout(dropout)

    def forward(self, points, labels=None):
        logits = self.linear(self.dropout(points).mean(dim=1))
        return SequenceClassifierOutput(logits=logits, loss=None if labels is None else logits[:, labels].mean())


def test_both_sides_are_timed_and_compared():
    found = measure(lambda layers: Small(), 1, 2, 32, 1, "eager")
    assert found["difference"] < 1e-5 and found["step_compiled"] > 0 and found["inference"] > 0
    with pytest.raises(ValueError, match="compiled and uncompiled results differ"):
        measure(lambda layers: Small(dropout=0.5), 1, 2, 32, 1, "eager")
