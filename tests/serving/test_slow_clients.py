"""One real server among clients that send slowly, half, or too much: they keep nobody out, and end by its limits."""

import contextlib
import socket
import struct
import time

import httpx
import pytest

from tests.serving.conftest import files
from tests.serving.test_server import servers as servers

HALF_HEAD = b"POST /v1/classify HTTP/1.1\r\nHost: localhost\r\nContent-Le"
HEAD = b"POST %s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def connect():
    """A function that opens a connection to an address and sends some bytes."""
    with contextlib.ExitStack() as opened:

        def made(address: str, content: bytes) -> socket.socket:
            one = socket.create_connection(("127.0.0.1", int(address.rpartition(":")[2])), timeout=20)
            one.sendall(content)
            return opened.enter_context(one)

        yield made


def status(address: str) -> int:
    return httpx.post(f"{address}/v1/classify", **files(0), timeout=30, trust_env=False).status_code


def seconds_until_closed(one: socket.socket, start: float) -> float:
    with contextlib.suppress(ConnectionError):
        while one.recv(1000):
            pass
    return time.monotonic() - start


@pytest.mark.slow
def test_slow_clients_keep_nobody_out_and_are_closed(servers, connect):
    address = servers.start("--max-queue", "4", "--max-connections", "40")
    start = time.monotonic()
    body = connect(address, HEAD % (b"/v1/classify", 100_000) + b"{")
    heads = [connect(address, HALF_HEAD) for _ in range(2)]
    bodies = [connect(address, HEAD % (b"/v1/classify", 100_000) + b"{") for _ in range(12)]
    # More half heads than connections, beside three times as many half bodies as places in the queue.
    heads += [connect(address, HALF_HEAD) for _ in range(60)]
    assert [status(address) for _ in range(3)] == [200] * 3
    # By its declared size, before it is sent.
    large = connect(address, HEAD % (b"/v1/classify", 2 << 30) + b"{")
    assert large.recv(12) == b"HTTP/1.1 413" and time.monotonic() - start < 9
    # A body that no route reads is not waited for without end, however it drips.
    dripping, dripped = connect(address, HEAD % (b"/nowhere", 100_000)), time.monotonic()
    with pytest.raises(ConnectionError):
        while time.monotonic() - dripped < 15:
            dripping.sendall(b" ")
            time.sleep(0.2)
    try:
        answer = body.recv(12)
    except ConnectionResetError:  # closed while the rest of the body was still on its way
        answer = b"HTTP/1.1 408"
    assert answer == b"HTTP/1.1 408"
    assert all(seconds_until_closed(one, start) < 20 for one in (*heads, *bodies, large))


BOUNDARY = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a.ply"\r\n\r\nply'
FORM = HEAD.replace(b"application/json", b"multipart/form-data; boundary=x")
CHUNKED = FORM.replace(b"Content-Length: %d", b"Transfer-Encoding: chunked")


@pytest.mark.slow
def test_uploads_that_break_off_are_counted_apart_and_foreign_hosts_refused(servers, connect):
    address = servers.start("--allowed-host", "example.org")
    path = b"/v1/classify"
    halves = [HEAD % (path, 5000) + b"{", FORM % (path, 5000) + BOUNDARY, FORM % (path, 5000)]
    halves += [CHUNKED % path + b"40\r\n" + BOUNDARY]
    ends = [
        lambda one: one.close(),
        lambda one: one.shutdown(socket.SHUT_WR),
        # A reset, as of a process that was killed
        lambda one: (one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)), one.close()),
    ]
    for half in halves:
        for end in ends:
            one = connect(address, half)
            time.sleep(0.1)
            end(one)
    left = f'hf_any3d_requests_total{{route="/v1/classify",status="499"}} {len(halves) * len(ends)}.0'
    deadline = time.monotonic() + 10
    while left not in (text := httpx.get(f"{address}/metrics", trust_env=False).text) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert left in text and 'status="400"' not in text and 'status="500"' not in text
    for host, expected in (("evil.example", 403), ("example.org", 200), ("localhost:1", 200), ("[::1]", 200)):
        answer = httpx.get(f"{address}/health", headers={"Host": host}, trust_env=False)
        assert answer.status_code == expected, host
    assert status(address) == 200


@pytest.mark.slow
def test_clients_that_are_still_sending_do_not_outlast_the_time_to_stop(servers, connect):
    address = servers.start("--drain-seconds", "2")
    for _ in range(24):
        connect(address, HEAD % (b"/v1/classify", 100_000) + b"{")
    assert status(address) == 200
    start = time.monotonic()
    servers.process.terminate()
    # Bodies that do not arrive would have ten seconds.
    assert servers.status() == 1 and time.monotonic() - start < 8
