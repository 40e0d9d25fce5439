"""Answers that come word by word."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase, TextIteratorStreamer


class AnswerStreamer(TextIteratorStreamer):
    """Gives an answer's text piece by piece; together the pieces are the answer that comes without streaming.

    Whatever may belong to the end mark or to blanks at the end is held back until it is known not to.

    Args:
        tokenizer: Turns tokens into text.
        end_mark: What ends an answer.
        timeout: Seconds to wait for a piece; None for any number.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, end_mark: str, timeout: float | None = None):
        super().__init__(
            tokenizer, skip_prompt=True, timeout=timeout, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        self.end_mark = end_mark
        self._held, self._has_begun, self._has_ended = "", False, False

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        """Pass on what is sure to belong to the answer."""
        piece = "" if self._has_ended else self._sure(self._held + text, stream_end)
        if piece:
            self.text_queue.put(piece, timeout=self.timeout)
        if stream_end:
            self.text_queue.put(self.stop_signal, timeout=self.timeout)

    def _sure(self, text: str, stream_end: bool) -> str:
        if not self._has_begun:
            text = text.lstrip()
        if self.end_mark in text:
            self._has_ended = True
            text = text.split(self.end_mark)[0]
        if self._has_ended or stream_end:
            sure = text.rstrip()
        else:
            begun = next((n for n in range(len(self.end_mark) - 1, 0, -1) if text.endswith(self.end_mark[:n])), 0)
            sure = text[: len(text) - begun].rstrip()
        self._held = text[len(sure) :]
        self._has_begun = self._has_begun or bool(sure)
        return sure
