"""Limits of a request, and the error that refuses it."""

from __future__ import annotations

from dataclasses import dataclass

CLIENT_IS_GONE = 499
"""Status of a request whose client left before its answer; it is counted and logged, and never sent."""


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
        self.status = status
        self.message = message
        self.kind = kind
        self.param = param
        self.headers = headers or {}

    def body(self) -> dict[str, dict[str, str | None]]:
        """Return the content of the response, in the form of OpenAI's errors."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": str(self.status)}}


@dataclass(frozen=True)
class ServeLimits:
    """Limits of a service, with the defaults of `hf-any3d serve`, whose help explains them.

    Points, clouds, characters and labels are those of a request, whose meshes may have twice as many faces as points;
    `seconds` pass until its answer, and `wait` until it is processed alone. Its head may take `head_seconds`, and its
    body `body_seconds` and one more for each `body_rate` bytes that have come.
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
    head_seconds: float = 10.0
    body_seconds: float = 10.0
    body_rate: int = 8 << 10
