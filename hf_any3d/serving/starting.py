"""Answers of a server whose model is still being loaded: it is alive, and not ready."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import Any

_STEP = 0.1
"""Seconds after which the end of the start is noticed."""


class _Handler(BaseHTTPRequestHandler):
    """Answer `/health` with 200 and everything else with 503."""

    # Seconds; clients are answered one after the other, so that none may hold up the others for long.
    timeout = 1.0

    def do_GET(self) -> None:
        """Answer a request."""
        is_health = self.path == "/health"
        content: dict[str, Any] = {"status": "ok" if is_health else "starting"}
        if not is_health:
            message = "the model is loading; try again in a second"
            content["error"] = {"message": message, "type": "server_error", "param": None, "code": "503"}
        body = json.dumps(content).encode()
        self.send_response(200 if is_health else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Retry-After", "1")
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def version_string(self) -> str:
        """Return the server name, without version numbers."""
        return "hf_any3d"

    def log_message(self, format: str, *args: Any) -> None:
        """Leave out probes that come until the server is ready."""


@contextmanager
def answers_while_starting(listening: socket.socket) -> Iterator[None]:
    """Answer requests to a socket in a thread; at the end, connections that are waiting stay for the service."""
    server = HTTPServer(listening.getsockname()[:2], _Handler, bind_and_activate=False)
    server.socket.close()
    server.socket = listening
    # A client may leave before it is accepted, which must not block the end.
    listening.settimeout(_STEP)
    thread = Thread(target=server.serve_forever, args=(_STEP,), daemon=True)
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        listening.settimeout(None)
