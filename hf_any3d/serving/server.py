"""Run a service with uvicorn; a signal lets it finish what it has accepted."""

from __future__ import annotations

import asyncio
import logging
import math
import socket
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from hf_any3d.serving.app import create_app
from hf_any3d.serving.logs import logger
from hf_any3d.serving.service import Service
from hf_any3d.utils.http_hosts import Hosts

# Seconds in which new requests get 503 at least, so that a load balancer sees `/ready` change.
LEAST_DRAIN = 1.0
_HEADERS_LIMIT = 32 << 10
# Seconds that the end itself takes, of those that a signal leaves.
_END_SECONDS = 0.5
# Seconds in which a client may go on sending a body that was refused, so that it reads the refusal.
_REST_SECONDS = 5.0


class Server(uvicorn.Server):
    """A server that stops in two steps: at the first signal it refuses requests, and ends when all are answered.

    A second signal ends it at once, and so does the end of `drain` seconds.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain: float):
        super().__init__(config)
        self.service = service
        self.drain = drain
        self.stopping_since: float | None = None
        self.has_told_stop = False
        self.unanswered = 0
        # Connection -> what it has been waiting for, and since when.
        self.waiting: dict[Any, tuple[Any, float]] = {}

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or stop at once."""
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
            self.service.is_draining = True
        else:
            # Not uvicorn's own way, which raises the signal once more at the end, with a traceback in the log.
            self._end(self.service.unfinished)

    def _end(self, unanswered: int) -> None:
        self.unanswered = unanswered
        self.force_exit = bool(unanswered)
        self.should_exit = True
        if unanswered:
            # Of requests that break off now the log has their number, and needs no tracebacks.
            logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
            for connection in list(self.server_state.connections):
                # uvicorn would wait for clients that are still sending.
                _abort(connection)

    async def watch(self) -> None:
        """End the server when it is stopping and everything is answered, or its time is over.

        Until then, close connections whose clients let it wait.
        """
        while not self.should_exit:
            await asyncio.sleep(0.05)
            self.close_late(time.monotonic())
            if self.stopping_since is None:
                continue
            # Not in the handler of the signal, which may have interrupted another line of the log.
            if not self.has_told_stop:
                self.has_told_stop = True
                logger.info("stopping: %d requests to answer, within %g s", self.service.unfinished, self.drain)
            passed = time.monotonic() - self.stopping_since
            # Checked in turns, since work is counted in the event loop that this runs in.
            if (passed >= LEAST_DRAIN and not self.service.unfinished) or passed >= self.drain - _END_SECONDS:
                self._end(self.service.unfinished)

    def close_late(self, now: float) -> None:
        """Close connections that have waited too long for a head, or for the rest of a body that was refused.

        uvicorn has no time limit for either.
        """
        limits = self.service.limits
        before = self.waiting
        self.waiting = {}
        connection: Any
        for connection in list(self.server_state.connections):
            what = _awaited(connection)
            # Between two looks a request may have come and gone, after which its connection waits anew.
            state = what, id(connection.cycle)
            then, since = before.get(connection, (None, now))
            since = since if then == state else now
            if what is not None and now - since > (limits.head_seconds if what == "head" else _REST_SECONDS):
                _abort(connection)
            elif what is not None:
                self.waiting[connection] = state, since

    def make_room(self, new: Any) -> None:
        """Close the connection that has waited longest for a head if a new one is beyond the limit of connections.

        So idle clients and half heads keep nobody out.
        """
        connections: set[Any] = self.server_state.connections
        if len(connections) <= self.service.limits.connections:
            return
        heads = [connection for connection in connections if connection is not new and _awaited(connection) == "head"]
        if heads:
            oldest = min(heads, key=lambda connection: self.waiting.get(connection, (None, math.inf))[1])
            _abort(oldest)
            # uvicorn would do so in the next turn of the loop.
            connections.discard(oldest)


def _awaited(connection: Any) -> str | None:
    """Return what a connection of uvicorn waits for that no route does: a "head", or the "rest" of a body."""
    state = connection.conn.their_state
    if state is h11.IDLE:
        return "head"
    is_answered = connection.cycle is not None and connection.cycle.response_complete
    return "rest" if is_answered and state is h11.SEND_BODY else None


def _abort(connection: Any) -> None:
    connection.transport.abort()


def serve(
    service: Service,
    listening: socket.socket,
    drain: float = 30.0,
    origins: Sequence[str] = (),
    hosts: Hosts | None = None,
) -> int:
    """Serve until a signal, then finish the accepted requests within `drain` seconds.

    Pages of `origins` may ask from a browser. `hosts` are the names of this server, by default those of the address
    that it listens on. Returns the number of requests that were accepted but not answered.
    """

    class Protocol(H11Protocol):
        """uvicorn's connections, which make room for each other."""

        def connection_made(self, transport: asyncio.Transport) -> None:  # pyright: ignore[reportIncompatibleMethodOverride] as uvicorn has it
            super().connection_made(transport)
            server.make_room(self)

    config = uvicorn.Config(
        create_app(service, origins, hosts or Hosts(listening.getsockname()[0])),
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        http=Protocol,
        # Requests to change the protocol are answered as others are.
        ws="none",
        limit_concurrency=service.limits.connections + 1,
        h11_max_incomplete_event_size=_HEADERS_LIMIT,
        timeout_graceful_shutdown=2,
    )
    server = Server(config, service, drain)

    async def run() -> None:
        watching = asyncio.create_task(server.watch())
        await server.serve(sockets=[listening])
        watching.cancel()

    asyncio.run(run())
    if server.unanswered:
        logger.warning("stopped with %d requests unanswered", server.unanswered)
    else:
        logger.info("stopped; all requests are answered")
    return server.unanswered
