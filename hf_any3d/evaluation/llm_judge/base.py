"""The interface of judges."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol


class JudgeError(OSError):
    """A judge does not reply, and asking again does not help."""


class Judge(Protocol):
    """A function from a prompt to a reply, with facts about itself.

    Attributes:
        name: Name in tables and files.
        settings: Settings that its replies depend on.
        revisions: Versions that have replied so far: commits, checksums, or an endpoint's names of its model.
        reads_prompt: Whether it gets a prompt; otherwise it gets the bare answer.
        kinds: Kinds of protocols that it can judge.
        at_once: Number of concurrent requests.
    """

    name: str
    settings: Mapping[str, Any]
    revisions: Collection[str]
    reads_prompt: bool
    kinds: Collection[str]
    at_once: int

    def __call__(self, text: str) -> str:
        """Reply to a prompt, or to a bare answer.

        Raises:
            JudgeError: There is no reply.
        """


def replace_lone_surrogates(text: str) -> str:
    """Replace lone surrogates, which no file can store, by the replacement character."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
