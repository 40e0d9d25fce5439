"""Answers of chat models to one question about a cloud."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from hf_any3d.tasks.answers import Answers, Row


class ChatAnswers(Answers):
    """A text."""

    column = "caption"
    is_called_whole = True

    def value(self, result: list[dict[str, Any]]) -> str:
        """Return the text."""
        return result[0]["generated_text"]

    def line(self, row: Row) -> str:
        """Return the text."""
        return row[self.column]

    @staticmethod
    def cells(row: Row) -> Iterable[Row]:
        """Return one row with the text."""
        return [{"caption": row["caption"]}] if "caption" in row else []

    @staticmethod
    def feature() -> Any:
        """Return the type of a text."""
        from datasets import Value

        return Value("string")
