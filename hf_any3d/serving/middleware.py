"""Every request gets an id, a place among the unanswered ones, a limit of its size, and a line in the log."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
import uuid
from typing import Any

from fastapi import Request, Response
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from hf_any3d.serving.limits import Refused
from hf_any3d.serving.service import Service
from hf_any3d.utils.messages import printable

logger = logging.getLogger("hf_any3d.serving")
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
    """Admits requests, counts their bytes, gives them ids, and logs them."""

    def __init__(self, app: ASGIApp, service: Service):
        self.app, self.service = app, service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        service, limits, begun = self.service, self.service.limits, time.monotonic()
        headers = Headers(scope=scope)
        sent_id = headers.get("x-request-id", "")
        request_id = sent_id if _REQUEST_ID.fullmatch(sent_id) else uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        status, size, is_started = 500, 0, False

        async def counted() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limits.body_bytes:
                raise Refused(413, f"more than {limits.body_bytes} bytes; expected at most that many")
            return message

        async def identified(message: Message) -> None:
            nonlocal status, is_started
            if message["type"] == "http.response.start":
                is_started, status = True, message["status"]
                answer_headers = MutableHeaders(scope=message)
                answer_headers["X-Request-ID"] = request_id
                # So that the client opens its next connection to another server.
                if service.is_draining:
                    answer_headers["Connection"] = "close"
            # A client that does not read its answer would keep its place forever.
            async with asyncio.timeout(limits.seconds):
                await send(message)

        async def refuse(error: Refused) -> None:
            if not is_started:
                await refused(Request(scope), error)(scope, receive, identified)

        try:
            if scope["method"] == "POST":
                with service.place():
                    await self.app(scope, counted, identified)
            else:
                await self.app(scope, receive, identified)
        except Refused as error:
            await refuse(error)
        except (ConnectionError, TimeoutError):
            logger.info("request %s: the client is gone, or does not read the answer", request_id)
        except Exception:
            logger.exception("request %s: internal error", request_id)
            await refuse(Refused(500, f"internal error; the log has more about {request_id}", "server_error"))
        finally:
            seconds = time.monotonic() - begun
            # The route's path and not that of the request, of which there are endlessly many: each would be a series
            # in Prometheus.
            route = getattr(scope.get("route"), "path", "other")
            service.metrics.requests.labels(route, str(status)).inc()
            service.metrics.seconds.labels(route).observe(seconds)
            logger.info(
                "request %s: %s %s %d, %d bytes, %.1f ms",
                request_id,
                scope["method"],
                printable(scope["path"])[:200],
                status,
                size,
                1000 * seconds,
            )
