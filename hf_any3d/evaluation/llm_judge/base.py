"""What every judge is."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Protocol


class JudgeError(OSError):
    """A judge gives no reply, and asking again does not help."""


class Judge(Protocol):
    """A function from text to text that says who it is.

    Attributes:
        name: What it is called beside figures.
        settings: What sways its replies.
        revisions: What exactly replied so far: commits, checksums, or what an endpoint calls its model.
        reads_prompt: Whether it is told what to do; one that is not gets the bare answer.
        kinds: Kinds of protocols that it can judge.
        at_once: Replies that may be asked for at the same time.
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
