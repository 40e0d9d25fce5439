"""Middleware of a service: admission, size of bodies, request ids, logs, and errors as JSON."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import tempfile
import time
import uuid
from functools import partial
from typing import IO, Any

from fastapi import Request, Response
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_any3d.serving.connections import FLUSH_SECONDS
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.service import Service
from hf_any3d.utils.messages import printable

logger = logging.getLogger("hf_any3d.serving")
# Bytes of a body that are kept in memory, and of a piece that the application gets.
_IN_MEMORY, _PIECE = 1 << 20, 1 << 18
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)


def as_json(value: Any) -> bytes:
    """Return a value as JSON; NaN and infinity, which JSON does not have, are errors."""
    return json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")


def json_response(body: bytes, headers: dict[str, str] | None = None, status: int = 200) -> Response:
    """Return a response with a body that is JSON already."""
    return Response(body, status, headers, "application/json")


def refused(_: Request, error: Refused) -> Response:
    """Return the response of an error."""
    return json_response(as_json(error.body()), error.headers, error.status)


class AdmissionMiddleware:
    """Admits requests, counts their bytes, gives them ids, and logs them.

    Args:
        app: The application behind.
        service: Its service.
    """

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await _Exchange(self, scope, receive, send).run()


class _Exchange:
    """One request and its response."""

    def __init__(self, middleware: AdmissionMiddleware, scope: Scope, receive: Receive, send: Send):
        self.app, self.service, self.scope = middleware.app, middleware.service, scope
        self._receive, self._send = receive, send
        self.start, self.status, self.bytes, self.is_started = time.monotonic(), 500, 0, False
        self.is_replayed = False
        headers = dict(scope["headers"])
        # latin1 decodes any bytes; the pattern then refuses what is not ASCII.
        given = headers.get(b"x-request-id", b"").decode("latin1")
        self.id = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        declared = headers.get(b"content-length", b"")
        self.declared = int(declared) if declared.isdigit() else 0
        scope.setdefault("state", {})["request_id"] = self.id

    async def run(self) -> None:
        """Admit the request and answer it."""
        try:
            if self.scope["method"] == "POST":
                await self._work()
            else:
                await self.app(self.scope, self._receive, self.send)
        except Refused as error:
            await self._refuse(error)
        except ConnectionError as error:
            logger.info("request %s: %s", self.id, error)
        except Exception:
            logger.exception("request %s: internal error", self.id)
            await self._refuse(Refused(500, f"internal error; the log has more about {self.id}", "server_error"))
        finally:
            self._log()

    async def _work(self) -> None:
        if self.declared > (most := self.service.limits.body_bytes):
            raise Refused(413, f"{self.declared} bytes; expected at most {most}")
        # A client whose body has not arrived takes no place in the queue, and one that is refused has sent it all, so
        # that it reads the answer.
        with tempfile.SpooledTemporaryFile(_IN_MEMORY) as body:
            if not await self._read_body(body):
                return
            self.service.admit()
            try:
                await self.app(self.scope, partial(self._replay, body), self.send)
            finally:
                self.service.leave()

    async def _read_body(self, body: IO[bytes]) -> bool:
        """Read the body into a file; False if the client has gone.

        Raises:
            Refused: It is too large, or arrives too slowly.
        """
        limits, begun = self.service.limits, time.monotonic()
        while True:
            allowed = limits.progress + self.bytes / limits.least_rate
            # A pause is limited, and so is the whole time at the least rate: a byte every few seconds would hold a
            # place for hours.
            left = min(limits.progress, begun + allowed + limits.progress - time.monotonic())
            try:
                async with asyncio.timeout(left):
                    message = await self._receive()
            except TimeoutError:
                text = f"{self.bytes} bytes of the body in {time.monotonic() - begun:.1f} s; expected at least "
                text += f"{limits.least_rate:g} a second, and a pause of at most {limits.progress:g} s"
                raise Refused(408, text, headers={"Connection": "close"}) from None
            if message["type"] == "http.disconnect":
                return False
            piece = message.get("body", b"")
            self.bytes += len(piece)
            if self.bytes > limits.body_bytes:
                raise Refused(413, f"more than {limits.body_bytes} bytes; expected at most that many")
            body.write(piece)
            if not message.get("more_body"):
                body.seek(0)
                return True

    async def _replay(self, body: IO[bytes]) -> Message:
        """Return the next piece of the body, then the messages of the connection."""
        if self.is_replayed:
            # The body is over; what can still come is the end of the connection, which cancels the work.
            return await self._receive()
        piece = body.read(_PIECE)
        self.is_replayed = len(piece) < _PIECE
        return {"type": "http.request", "body": piece, "more_body": not self.is_replayed}

    async def send(self, message: Message) -> None:
        """Send a part of the response, with the request's id."""
        if message["type"] == "http.response.start":
            self.is_started, self.status = True, message["status"]
            headers = MutableHeaders(scope=message)
            headers["X-Request-ID"] = self.id
            # So that the client opens its next connection to another server.
            if self.service.is_draining:
                headers["Connection"] = "close"
        try:
            async with asyncio.timeout(FLUSH_SECONDS):
                await self._send(message)
        except TimeoutError:
            raise ConnectionError("the client does not read the answer") from None

    async def _refuse(self, error: Refused) -> None:
        if not self.is_started:
            await refused(Request(self.scope), error)(self.scope, self._receive, self.send)

    def _log(self) -> None:
        seconds = time.monotonic() - self.start
        # The route's path and not that of the request, of which there are endlessly many: each would be a series in
        # Prometheus.
        route = getattr(self.scope.get("route"), "path", "other")
        self.service.metrics.requests.labels(route, str(self.status)).inc()
        self.service.metrics.seconds.labels(route).observe(seconds)
        logger.info(
            "request %s: %s %s %d, %d bytes, %.1f ms",
            self.id,
            self.scope["method"],
            printable(self.scope["path"])[:200],
            self.status,
            self.bytes,
            1000 * seconds,
        )
