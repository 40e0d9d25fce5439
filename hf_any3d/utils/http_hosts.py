"""Names that a server on this machine is asked by.

A page of the internet may let its own name lead to the address of this machine (DNS rebinding). The browser then takes
a server that listens there for the page's own, and lets the page read its answers. The header `Host` still has the
page's name, so that a server that listens on this machine alone refuses names that are not its own.
"""

from __future__ import annotations

import ipaddress
import json
import re
import socket
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

from hf_any3d.utils.messages import cut

_NAME_AND_PORT = re.compile(r"(\[[^\]]*\]|[^:]*)(:\d*)?")
_Scope = MutableMapping[str, Any]
_Receive = Callable[[], Awaitable[Any]]
_Send = Callable[[Any], Awaitable[None]]


class Hosts:
    """The names that a server answers to.

    Args:
        bound: What it listens on, a name or an address.
        allowed: Further names, `*.example.org` for all below one, "*" for all names; without any, a server that other
            machines reach answers to all.
    """

    def __init__(self, bound: str, allowed: Iterable[str] = ()):
        names = [_checked(name) for name in allowed]
        self.answers_all = "*" in names or (not names and not _is_loopback(bound))
        self.names = {"localhost", _plain(bound), *names}

    def refusal(self, host: str | None) -> str | None:
        """Return why a request with this header is refused, None if it is not."""
        # Old clients and probes send none; browsers always do.
        if self.answers_all or host is None:
            return None
        match = _NAME_AND_PORT.fullmatch(host.strip())
        name = _plain(match[1]) if match else ""
        is_below = any(entry.startswith("*.") and name.endswith(entry[1:]) for entry in self.names)
        if name in self.names or is_below or _is_address_of_loopback(name):
            return None
        return f"the host {cut(host, 80)!r} is not one of this server (--allowed-host NAME admits it)"


class HostMiddleware:
    """ASGI middleware: requests to other hosts get 403."""

    def __init__(self, app: Any, hosts: Hosts):
        self.app = app
        self.hosts = hosts

    async def __call__(self, scope: _Scope, receive: _Receive, send: _Send) -> None:
        """Handle a request."""
        refusal = None
        if scope["type"] in ("http", "websocket"):
            sent = [value for name, value in scope["headers"] if name == b"host"]
            refusal = self.hosts.refusal(sent[0].decode("latin-1") if sent else None)
        if refusal is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1008, "reason": refusal[:100]})
        else:
            headers = [(b"content-type", b"application/json")]
            await send({"type": "http.response.start", "status": 403, "headers": headers})
            await send({"type": "http.response.body", "body": json.dumps({"error": refusal}).encode()})


def _checked(name: str) -> str:
    plain = _plain(name)
    if not plain or "/" in plain or (":" in plain and not _is_address(plain)):
        raise ValueError(f"--allowed-host {name!r}: expected a name such as example.org, without scheme and port")
    return plain


def _plain(name: str) -> str:
    """Return a name without brackets of IPv6, capitals, and the dot of the root."""
    return name.strip().lower().removeprefix("[").removesuffix("]").removesuffix(".")


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_address_of_loopback(name: str) -> bool:
    return _is_address(name) and ipaddress.ip_address(name).is_loopback


def _is_loopback(bound: str) -> bool:
    """Return whether only this machine reaches a server that listens on a name or an address."""
    try:
        found = {str(one[4][0]) for one in socket.getaddrinfo(_plain(bound), None)}
    except OSError:
        return False
    return all(map(_is_address_of_loopback, found))
