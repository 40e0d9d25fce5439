"""Clients that send nothing, half a head or a body drop by drop, or never read: others do not wait for them."""

import asyncio
import contextlib
import socket
import statistics
import threading
import time
from dataclasses import replace

import httpx
import pytest
import uvicorn

from hf_any3d.serving import connections, middleware
from hf_any3d.serving.app import create_app
from hf_any3d.serving.connections import limited_protocol
from hf_any3d.serving.service import Service
from tests.serving.conftest import CLASSIFY, LIMITS, files
from tests.serving.test_app import error_of, wait_until

HEAD = b"POST /v1/classify HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
# What slow clients send before they wait: nothing, half a head, a head without its body, half a body.
PIECES = [(), (HEAD,), (HEAD + b"content-length: 900\r\n\r\n",), (HEAD + b"content-length: 900\r\n\r\n", b'{"point')]
SLOW = 300


class Running(uvicorn.Server):
    """A server in a thread of this process."""

    def install_signal_handlers(self) -> None:
        """Leave signals to the tests."""


@pytest.fixture
def running(pipes):
    """A function that starts a server with changed limits; it yields the service and the address."""
    with contextlib.ExitStack() as stack:

        def start(**limits):
            service = Service("tiny", CLASSIFY, pipes(CLASSIFY), replace(LIMITS, **limits))
            listening = socket.create_server(("127.0.0.1", 0), backlog=512)
            http = limited_protocol(service.limits.connections)
            server = Running(uvicorn.Config(create_app(service), log_config=None, http=http, lifespan="on"))
            thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listening])), daemon=True)
            thread.start()
            wait_until(lambda: server.started)

            def stop():
                server.should_exit = server.force_exit = True
                thread.join(20)

            stack.callback(stop)
            return service, listening.getsockname()

        yield start


def opened(address, *pieces: bytes) -> socket.socket:
    """Connect, and send some bytes."""
    client = socket.create_connection(address, timeout=20)
    for piece in pieces:
        client.sendall(piece)
    return client


def is_closed(client: socket.socket) -> bool:
    """Return whether the server has closed a connection, after its answer if there is one; without waiting."""
    client.settimeout(0.001)
    try:
        while client.recv(4096):
            pass
        return True
    except TimeoutError:
        return False
    except OSError:
        return True


def seconds_of_requests(address, count: int = 20) -> list[float]:
    """Return the seconds of ordinary requests, one after the other; all are answered."""
    with httpx.Client(base_url=f"http://{address[0]}:{address[1]}", timeout=60, trust_env=False) as client:
        spent = []
        for _ in range(count):
            begun = time.monotonic()
            assert client.post("/v1/classify", **files(0)).status_code == 200
            spent.append(time.monotonic() - begun)
    return spent


def test_slow_clients_take_no_place_and_are_closed(running, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 3.0)
    service, address = running(progress=3.0, wait=0.002)
    seconds_of_requests(address, 3)

    def busy_over_quiet() -> float:
        # In turns, so that what else this machine does falls on both.
        quiet, busy = [], []
        for _ in range(3):
            quiet += seconds_of_requests(address)
            slow = [opened(address, *PIECES[number % len(PIECES)]) for number in range(SLOW)]
            try:
                busy += seconds_of_requests(address)
                # Their places are free: not one request is refused.
                assert service.in_flight == 0
                left.extend(slow)
            except BaseException:
                _close(slow)
                raise
        return percentile_99(busy) / percentile_99(quiet)

    left: list[socket.socket] = []
    try:
        assert busy_over_quiet() < 3 or busy_over_quiet() < 3
        wait_until(lambda: all(is_closed(client) for client in left))
    finally:
        _close(left)


def percentile_99(values: list[float]) -> float:
    """The time that all but one of a hundred requests stay below."""
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def _close(clients: list[socket.socket]) -> None:
    for client in clients:
        client.close()


def test_a_body_that_drips_is_refused_with_the_rate(running):
    _, address = running(progress=0.5, least_rate=1000.0)
    client = opened(address, HEAD + b"content-length: 100000\r\n\r\n")
    with contextlib.suppress(OSError):
        for _ in range(40):
            client.sendall(b" ")
            time.sleep(0.1)
    client.settimeout(20)
    answer = client.recv(65536).decode()
    assert answer.startswith("HTTP/1.1 408") and "expected at least 1000 a second" in answer
    client.close()


def test_connections_beyond_the_limit_are_closed_at_once(running):
    _, address = running(connections=5)
    first = [opened(address) for _ in range(5)]
    wait_until(lambda: is_closed(opened(address)))
    assert not any(is_closed(client) for client in first)
    for client in first:
        client.close()


def test_an_answer_that_is_not_read_is_given_up(monkeypatch):
    monkeypatch.setattr(middleware, "FLUSH_SECONDS", 0.05)

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def stuck(message):
        await asyncio.sleep(60)

    class Counted:
        is_draining = False
        metrics = type("Metrics", (), {"requests": None, "seconds": None})

    exchange = object.__new__(middleware._Exchange)
    exchange.service, exchange._send, exchange.is_started, exchange.id = Counted(), stuck, False, "id"
    with pytest.raises(ConnectionError, match="does not read the answer"):
        asyncio.run(app({}, None, exchange.send))


def test_a_path_with_a_slash_is_unknown_and_leads_nowhere(client):
    answer = client().post("/v1/classify/", headers={"Host": "evil.example"}, follow_redirects=False, **files(0))
    assert answer.status_code == 404 and "location" not in answer.headers and "no such route" in error_of(answer)


def test_pages_of_an_allowed_origin_may_ask(pipes):
    from starlette.testclient import TestClient

    service = Service("tiny", CLASSIFY, pipes(CLASSIFY), LIMITS)
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for origins, allowed in ((["https://example.org"], True), (["https://other.example"], False), ((), False)):
        page = TestClient(create_app(service, origins))
        assert ("access-control-allow-origin" in page.options("/v1/classify", headers=asked).headers) is allowed
        answer = page.post("/v1/classify", content=b"x", headers={"Origin": "https://example.org"})
        if allowed:
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert sorted(exposed) == ["Idempotent-Replayed", "Retry-After", "X-Request-ID"]
        # Pages read refusals, too.
        service.is_draining = True
        refused = page.post("/v1/classify", content=b"x", headers={"Origin": "https://example.org"})
        assert refused.status_code == 503 and ("access-control-allow-origin" in refused.headers) is allowed
        service.is_draining = False
