"""Limits of a request, and the error that refuses it."""

from __future__ import annotations

from dataclasses import dataclass


class Refused(Exception):
    """A request that is answered with an error of an HTTP status; `param` is the field that was wrong."""

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        param: str | None = None,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param
        self.headers = headers or {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the content of the response, in the form of OpenAI's errors."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": str(self.status)}}


@dataclass(frozen=True)
class ServeLimits:
    """Limits of a service; the values are the defaults of `hf-any3d serve`.

    Attributes:
        body_bytes: Bytes of a request.
        points: Points of a cloud; a mesh may have twice as many faces.
        clouds: Clouds of a request.
        seconds: Seconds from the arrival of a request to its answer.
        queue: Requests that are accepted and not yet answered.
        batch: Clouds or conversations that the model processes together.
        wait: Seconds that a request waits for others to be processed with.
        new_tokens: Tokens of an answer of a chat model.
        characters: Characters of all texts of a request.
        labels: Labels of a zero-shot request.
        connections: Open connections; requests of further ones get 503.
    """

    body_bytes: int = 64 << 20
    points: int = 1_000_000
    clouds: int = 16
    seconds: float = 60.0
    queue: int = 64
    batch: int = 8
    wait: float = 0.005
    new_tokens: int = 1024
    characters: int = 50_000
    labels: int = 1000
    connections: int = 1000
