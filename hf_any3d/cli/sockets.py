"""The socket on which a command listens."""

from __future__ import annotations

import socket


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens; port 0 stands for a free one."""
    try:
        # Only addresses of IPv6 have colons.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=512)
    except OSError as error:
        raise OSError(f"--host {host} --port {port}: {error.strerror or error}; expected a free port") from error
