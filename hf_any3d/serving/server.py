"""Run a service with uvicorn; a signal lets it finish what it has accepted."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Sequence
from types import FrameType

import uvicorn

from hf_any3d.serving.app import create_app
from hf_any3d.serving.service import Service

logger = logging.getLogger("hf_any3d.serving")
# Seconds in which new requests get 503 at least, so that a load balancer sees `/ready` change.
LEAST_DRAIN = 1.0
_HEADERS_LIMIT = 32 << 10


class Server(uvicorn.Server):
    """A server that stops in two steps: at the first signal it refuses requests, and ends when all are answered.

    A second signal ends it at once, and so does the end of `drain` seconds.
    """

    def __init__(self, config: uvicorn.Config, service: Service, drain: float):
        super().__init__(config)
        self.service, self.drain = service, drain
        self.stopping_since: float | None = None
        self.unanswered = 0

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to stop, or stop at once."""
        if self.stopping_since is None:
            self.stopping_since = time.monotonic()
            self.service.is_draining = True
        else:
            self.unanswered = self.service.in_flight
            # Not uvicorn's own way, which raises the signal once more at the end, with a traceback in the log.
            self.should_exit = self.force_exit = True

    async def watch(self) -> None:
        """End the server when it is stopping and everything is answered, or its time is over."""
        while not self.should_exit:
            await asyncio.sleep(0.05)
            if self.stopping_since is None:
                continue
            passed = time.monotonic() - self.stopping_since
            # Checked in turns, since work is counted in the event loop that this runs in.
            if (passed >= LEAST_DRAIN and not self.service.in_flight) or passed >= self.drain:
                self.unanswered = self.service.in_flight
                self.force_exit = bool(self.unanswered)
                self.should_exit = True


def serve(service: Service, listening: socket.socket, drain: float = 30.0, origins: Sequence[str] = ()) -> int:
    """Serve until a signal, then finish the accepted requests within `drain` seconds.

    Pages of `origins` may ask from a browser. Returns the number of requests that were accepted but not answered.
    """
    config = uvicorn.Config(
        create_app(service, origins),
        log_config=None,
        access_log=False,
        lifespan="on",
        server_header=False,
        http="h11",
        limit_concurrency=service.limits.connections,
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
    return server.unanswered
