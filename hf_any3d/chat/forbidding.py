"""What an answer never says."""

from __future__ import annotations

import torch
from transformers import LogitsProcessor


class NeverSaid(LogitsProcessor):
    """Forbids one token.

    `SuppressTokensLogitsProcessor` looks every word of the vocabulary up in each step; this does not.

    Args:
        token: Its id.
    """

    def __init__(self, token: int):
        self.token = token

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        """Scores `(batch, vocabulary)` without it."""
        scores = scores.clone()
        scores[:, self.token] = -torch.inf
        return scores
