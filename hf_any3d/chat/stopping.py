"""When to stop generating."""

from __future__ import annotations

from threading import Event
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase, StoppingCriteria


class EndMarkReached(StoppingCriteria):
    """Stops an answer as soon as its text has the end mark, however tokens cut it.

    Args:
        tokenizer: Turns tokens into text.
        end_mark: What ends an answer.
        prompt_length: Tokens of the prompt, which is not looked at.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_mark: str, prompt_length: int):
        self.tokenizer, self.end_mark, self.prompt_length = tokenizer, end_mark, prompt_length
        # A token has at least one byte, so that a mark that ends now began no earlier.
        self.window = len(end_mark.encode())

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """Which of `(batch, tokens)` have ended."""
        last = input_ids[:, max(self.prompt_length, input_ids.shape[1] - self.window) :]
        texts = self.tokenizer.batch_decode(last, clean_up_tokenization_spaces=False)
        return torch.tensor([self.end_mark in text for text in texts], device=input_ids.device)


class Cancelled(StoppingCriteria):
    """Stops when nobody waits for the answer any more.

    Args:
        event: Set when that is so.
    """

    def __init__(self, event: Event):
        self.event = event

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        """The same for all of `(batch, tokens)`."""
        return torch.full((len(input_ids),), self.event.is_set(), device=input_ids.device)
