"""Answers of a chat model to several conversations at once, each with its own length, listener and end."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import StoppingCriteria

from hf_any3d.processing.chat_templates import Prompt
from hf_any3d.tasks.chat.generation import AnswerStreamer, EndMarkReached


@dataclass(eq=False)
class Conversation:
    """A conversation to be continued.

    `sampling` has arguments of `generate`, none for greedy answers; `listen` is called with pieces of the answer as
    they are generated, and `canceled` is set to end it.
    """

    prompt: Prompt
    new_tokens: int
    sampling: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    listen: Callable[[str], None] = lambda piece: None
    canceled: threading.Event = field(default_factory=threading.Event)

    @property
    def key(self) -> Any:
        """Conversations with equal keys are answered together.

        Sampled answers would depend on the other rows of their batch, so each is generated alone.
        """
        return id(self) if self.sampling else None

    @contextmanager
    def seeded(self) -> Iterator[None]:
        """Draw random numbers from the seed, which must not determine those of the next conversation."""
        with torch.random.fork_rng(enabled=self.seed is not None):
            if self.seed is not None:
                torch.manual_seed(self.seed)
            yield


@dataclass(frozen=True)
class ChatAnswer:
    """An answer with the number of its tokens, including the one that ends it; not complete if cut at its length."""

    text: str
    tokens: int
    is_complete: bool


def answer_conversations(pipe: Any, conversations: Sequence[Conversation]) -> list[ChatAnswer]:
    """Continue conversations with equal keys: their prompts are padded to one batch, and each ends by itself."""
    prompts = [one.prompt for one in conversations]
    # Prompts are filled up on the left, so all answers begin at the same place.
    start = max(len(prompt.input_ids) for prompt in prompts)
    longest = max(one.new_tokens for one in conversations)
    # The batch runs to the longest limit; `_Rows` ends each row at its own.
    generation = {"do_sample": False} | dict(conversations[0].sampling) | {"max_new_tokens": longest}
    settings = pipe.generate_settings(generation)
    config = settings.get("generation_config") or pipe.model.generation_config
    rows = _Rows(pipe.processor, conversations, start, config.eos_token_id)
    settings["stopping_criteria"] = [rows]
    with conversations[0].seeded():
        generated = pipe.answerer.generate(prompts, settings)
    answers = []
    for number, row in enumerate(rows.rows):
        row.end()
        # Behind a row's end, generate has filled up with padding.
        tokens = generated[number : number + 1, start : start + row.count]
        text = pipe.processor.decode_answers(tokens)[0]
        answers.append(ChatAnswer(text, row.count, row.is_complete))
    return answers


class _Row:
    """The answer to one conversation of a batch."""

    def __init__(self, processor: Any, conversation: Conversation, ends: set[int]):
        self.conversation = conversation
        self.ends = ends
        self.count = 0
        self.is_complete = False
        self.is_done = False
        self._streamer = AnswerStreamer(processor.tokenizer, processor.end_mark)
        self._streamer.put(torch.empty(0, dtype=torch.long))  # in the place of the prompt, which is skipped

    def add(self, token: int, has_mark: bool) -> bool:
        """Add a token, with which the end mark may be complete, and return whether the answer ends."""
        # The batch goes on until its longest answer has ended.
        if self.is_done:
            return True
        self.count += 1
        self._streamer.put(torch.tensor([token]))
        self._pass_on()
        self.is_complete = has_mark or token in self.ends
        is_over = self.count >= self.conversation.new_tokens or self.conversation.canceled.is_set()
        self.is_done = self.is_complete or is_over
        return self.is_done

    def end(self) -> None:
        """Pass on what was held back."""
        self._streamer.end()
        self._pass_on()

    def _pass_on(self) -> None:
        # The streamer's queue is meant for another thread, but listeners are called in this one.
        pieces = self._streamer.text_queue
        while not pieces.empty():
            if (piece := pieces.get_nowait()) is not self._streamer.stop_signal:
                self.conversation.listen(piece)


class _Rows(StoppingCriteria):
    """Follows the answers of a batch, and ends each row by itself."""

    def __init__(self, processor: Any, conversations: Sequence[Conversation], start: int, ends: Any):
        # Configs have one id, several or none.
        ids: set[int] = {ends} if isinstance(ends, int) else set(ends or ())
        self.rows = [_Row(processor, one, ids) for one in conversations]
        self.mark = EndMarkReached(processor.tokenizer, processor.end_mark, start)

    def __call__(self, input_ids: torch.LongTensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """Return which of `(batch, tokens)` have ended."""
        last = input_ids[:, -1].tolist()
        marks = self.mark(input_ids, scores).tolist()
        ended = [row.add(token, mark) for row, token, mark in zip(self.rows, last, marks, strict=True)]
        return torch.tensor(ended, device=input_ids.device)
