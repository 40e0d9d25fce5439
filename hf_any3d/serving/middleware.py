"""Every request gets an id, a place among the unanswered ones, a limit of its size, and a line in the log."""

from __future__ import annotations

import asyncio
import json
import re
import time
import uuid
from contextlib import ExitStack, closing
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_any3d.serving.limits import CLIENT_IS_GONE, Refused
from hf_any3d.serving.logs import logger
from hf_any3d.serving.service import Service
from hf_any3d.utils.http_hosts import Hosts
from hf_any3d.utils.messages import printable

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


class _Body:
    """The body of a request while it arrives: counted, limited in size and time.

    With its last byte the request gets a place among the unanswered ones. Before, it has none: who sends slowly keeps
    nobody else out.
    """

    def __init__(self, receive: Receive, service: Service, headers: Headers):
        self.receive = receive
        self.service = service
        self.size = 0
        self.is_complete = False
        self.broke_off = False
        self.begun = time.monotonic()
        self.place = ExitStack()
        most = service.limits.body_bytes
        declared = headers.get("content-length", "")
        # Refused by its head, before any of the body is read
        if declared.isdecimal() and int(declared) > most:
            raise _too_large(most)

    async def __call__(self) -> Message:
        """Return the next piece, or what comes after the body."""
        if self.is_complete:
            return await self.receive()
        limits = self.service.limits
        allowed = limits.body_seconds + self.size / limits.body_rate
        try:
            # Relative, since clocks of event loops differ.
            async with asyncio.timeout(max(0.0, self.begun + allowed - time.monotonic())):
                message = await self.receive()
        except TimeoutError:
            text = f"{self.size} bytes of the body came in {allowed:.0f} s; expected {limits.body_rate} a second"
            raise Refused(408, text, "timeout_error") from None
        self.broke_off = message["type"] == "http.disconnect"
        count = len(message.get("body", b""))
        self.size += count
        self.service.arriving_bytes += count
        if self.size > limits.body_bytes:
            raise _too_large(limits.body_bytes)
        # What full places could hold; clients without one hold no more.
        if self.service.arriving_bytes > limits.queue * limits.body_bytes:
            self.service.metrics.refused.labels("queue").inc()
            text = "the bodies of other requests are arriving, which are large; try again in 5 s"
            raise Refused(429, text, "rate_limit_error", headers={"Retry-After": "5"})
        if message["type"] == "http.request" and not message.get("more_body", False):
            self.is_complete = True
            # From here on, the place stands for these bytes.
            self._forget()
            self.place.enter_context(self.service.place())
        return message

    def _forget(self) -> None:
        self.service.arriving_bytes -= self.size

    def close(self) -> None:
        """Leave the place, or end the arrival."""
        # A body that was refused, or broke off, never came to its end.
        if not self.is_complete:
            self.is_complete = True
            self._forget()
        self.place.close()


def _too_large(most: int) -> Refused:
    return Refused(413, f"more than {most} bytes; expected at most that many")


class AdmissionMiddleware:
    """Admits requests by the names in `hosts`, None for any; counts their bytes, gives them ids, and logs them."""

    def __init__(self, app: ASGIApp, service: Service, hosts: Hosts | None = None):
        self.app = app
        self.service = service
        self.hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        # Others, such as the start and the end of the server, have no answer to count.
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        await self._handle(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        service = self.service
        limits = self.service.limits
        begun = time.monotonic()
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        # What the log has of a request to which nothing was sent
        status = 500
        is_started = False
        body: _Body | None = None

        async def identified(message: Message) -> None:
            nonlocal status, is_started
            if message["type"] == "http.response.start":
                is_started = True
                status = message["status"]
                added = MutableHeaders(scope=message)
                added["X-Request-ID"] = request_id
                # So that the client opens its next connection to another server.
                if service.is_draining:
                    added["Connection"] = "close"
            elif body is not None and not message.get("more_body", False):
                # The work is done: a client that reads its answer slowly keeps no place.
                body.close()
            # A client that does not read its answer would stay forever.
            async with asyncio.timeout(limits.seconds):
                await send(message)

        async def refuse(error: Refused) -> None:
            # After the start of an answer there cannot be another one.
            if not is_started:
                await refused(Request(scope), error)(scope, receive, identified)

        try:
            # Before all else, so that a page of another name learns nothing.
            refusal = None if self.hosts is None else self.hosts.refusal(headers.get("host"))
            if refusal is not None:
                service.metrics.refused.labels("host").inc()
                raise Refused(403, refusal, "permission_error")
            if scope["method"] == "POST":
                with service.admitted():
                    body = _Body(receive, service, headers)
                    with closing(body):
                        await self.app(scope, body, identified)
            else:
                await self.app(scope, receive, identified)
        except Refused as error:
            await refuse(error)
        except (ConnectionError, TimeoutError, ClientDisconnect):
            logger.info("request %s: the client is gone, or does not read the answer", request_id)
            if not is_started:
                status = CLIENT_IS_GONE
        except Exception:
            logger.exception("request %s: internal error", request_id)
            await refuse(Refused(500, f"internal error; the log has more about {request_id}", "server_error"))
        finally:
            seconds = time.monotonic() - begun
            # Whatever a route made of half a body, nobody read.
            if body is not None and body.broke_off:
                status = CLIENT_IS_GONE
            # The route's path and not that of the request, of which there are endlessly many: each would be a series
            # in Prometheus.
            route = getattr(scope.get("route"), "path", "other")
            service.metrics.requests.labels(route, str(status)).inc()
            service.metrics.seconds.labels(route).observe(seconds)
            figures = {
                "request_id": request_id,
                "method": scope["method"],
                "path": printable(scope["path"])[:200],
                "status": status,
                "bytes": 0 if body is None else body.size,
                "milliseconds": round(1000 * seconds, 1),
            }
            line = "request %(request_id)s: %(method)s %(path)s %(status)d, %(bytes)d bytes, %(milliseconds).1f ms"
            logger.info(line, figures, extra={"request": figures})
