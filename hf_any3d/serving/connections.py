"""Connections that a slow or idle client cannot hold: a time limit for the head of a request, and a number of them.

uvicorn limits the time between requests alone. Bodies are limited by the middleware, which knows how large they are.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 5.0
"""Seconds in which the head of a request must arrive, counted from the connection or from its first byte."""
FLUSH_SECONDS = 30.0
"""Seconds in which a client must read the rest of an answer once the connection is to be closed."""


class LimitedProtocol(H11Protocol):
    """HTTP of a connection; a subclass has the limit, since uvicorn makes the instances."""

    most_connections: int

    def connection_made(self, transport: Any) -> None:
        """Wait for a request, or close a connection that is one too many."""
        self._giving_up: asyncio.TimerHandle | None = None
        super().connection_made(transport)
        if len(self.connections) > self.most_connections:
            # Aborted, as a closing handshake would wait for the client.
            transport.abort()
            return
        self._expect_head()

    def data_received(self, data: bytes) -> None:
        """Read a piece of a request; its head has to be complete in time."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._head_is_there()
        elif self._giving_up is None:
            self._expect_head()  # of another request of this connection

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._head_is_there()
        super().connection_lost(exc)

    def timeout_keep_alive_handler(self) -> None:
        """Close an idle connection; what its client does not read is dropped at last."""
        super().timeout_keep_alive_handler()
        self.loop.call_later(FLUSH_SECONDS, self.transport.abort)

    def _expect_head(self) -> None:
        self._giving_up = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _head_is_there(self) -> None:
        if self._giving_up is not None:
            self._giving_up.cancel()
            self._giving_up = None


def limited_protocol(most_connections: int) -> type[LimitedProtocol]:
    """Return the protocol for uvicorn with a limit of open connections."""
    return type("LimitedProtocol", (LimitedProtocol,), {"most_connections": most_connections})
