"""Admission: what reaches the application, what is refused, and what is counted; without a model."""

import asyncio
import logging
from types import SimpleNamespace

import pytest
from starlette.requests import ClientDisconnect

from hf_any3d.serving import ServeLimits
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.metrics import Metrics
from hf_any3d.serving.middleware import AdmissionMiddleware, as_json
from hf_any3d.serving.service import Service
from hf_any3d.utils.http_hosts import Hosts
from tests.errors import raises


@pytest.fixture
def service():
    """A service without a model, which admits as the real one."""
    made = Service.__new__(Service)
    made.limits, made.metrics = ServeLimits(body_bytes=100, queue=2), Metrics()
    made.in_flight = made.unfinished = made.arriving_bytes = 0
    made.is_draining, made.batch = False, 4
    made.batcher = SimpleNamespace(seconds_per_batch=0.0)
    return made


def exchange(service, *pieces, app=None, method="POST", headers=(), hosts=None, breaks_off=False):
    """Send a request in pieces, the last of which may be missing; its answer, and what the application read."""
    sent, read = [], []
    messages = iter(
        [
            {"type": "http.request", "body": one, "more_body": breaks_off or n < len(pieces) - 1}
            for n, one in enumerate(pieces)
        ]
        + [{"type": "http.disconnect"}]
    )

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    async def echo(scope, receive, send):
        while (message := await receive())["type"] == "http.request":
            read.append((message["body"], message["more_body"]))
            if not message["more_body"]:
                break
        read.append(service.in_flight)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})
        read.append((await receive())["type"])

    scope = {"type": "http", "method": method, "path": "/a\x1b", "query_string": b"", "headers": list(headers)}
    asyncio.run(AdmissionMiddleware(app or echo, service, hosts)(scope, receive, send))
    head = {key.decode().lower(): value.decode() for key, value in sent[0]["headers"]} if sent else {}
    return SimpleNamespace(
        status=sent[0]["status"] if sent else None, head=head, body=sent[1:], read=read, scope=scope
    )


def test_a_body_of_the_largest_size_is_read(service):
    assert exchange(service, bytes(50), bytes(50)).status == 200
    found = exchange(service, bytes(50), bytes(51))
    assert found.status == 413 and b"more than 100 bytes" in found.body[0]["body"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [(b"job-7_a.b:c", True), (b"x" * 128, True), (b"x" * 129, False), (b"", False), (b"a b", False), (b"\xe4", False)],
)
def test_requests_keep_their_ids_if_they_are_words(service, given, kept):
    found = exchange(service, b"", headers=[(b"x-request-id", given)])
    own = found.head["x-request-id"]
    assert own == found.scope["state"]["request_id"] and (own == given.decode("latin1")) is kept
    assert kept or len(own) == 32


def test_errors_are_answered_once_and_counted_out(service, caplog):
    async def broken(scope, receive, send):
        raise RuntimeError("secret")

    async def late(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise Refused(400, "too late to say")

    async def gone(scope, receive, send):
        raise ConnectionError("the client is gone")

    with caplog.at_level(logging.INFO, "hf_any3d.serving"):
        found = exchange(service, b"", app=broken, headers=[(b"x-request-id", b"job")])
        assert found.status == 500 and b"the log has more about job" in found.body[0]["body"]
        assert b"secret" not in found.body[0]["body"] and b'"server_error"' in found.body[0]["body"]
        assert (found := exchange(service, b"", app=late)).status == 200 and found.body == []
        assert exchange(service, b"", app=gone).status is None
    assert service.in_flight == service.unfinished == service.arriving_bytes == 0
    assert any("the client is gone" in one for one in caplog.messages)


def counted(service) -> dict[str, float]:
    """Requests by status."""
    (metric,) = service.metrics.requests.collect()
    return {one.labels["status"]: one.value for one in metric.samples if one.name.endswith("_total")}


@pytest.mark.parametrize("pieces", [(), (b"half",)])
def test_an_upload_that_breaks_off_is_counted_apart_whatever_a_route_makes_of_it(service, pieces):
    async def refuse(scope, receive, send):
        while (await receive())["type"] == "http.request":
            pass
        raise Refused(400, "half a body")

    async def leave(scope, receive, send):
        while (await receive())["type"] == "http.request":
            pass
        raise ClientDisconnect

    for app in (refuse, leave, None):
        exchange(service, *pieces, app=app, breaks_off=True)
    assert counted(service) == {"499": 3} and service.in_flight == service.arriving_bytes == 0

    async def wrong(scope, receive, send):
        await receive()
        raise Refused(400, "a whole body")

    exchange(service, b"whole", app=wrong)
    assert counted(service) == {"499": 3, "400": 1}


def test_a_foreign_host_reaches_no_route(service):
    reached = []

    async def route(scope, receive, send):
        reached.append(scope["path"])

    for method in ("GET", "POST"):
        found = exchange(
            service, b"", app=route, method=method, headers=[(b"host", b"evil.example")], hosts=Hosts("::1")
        )
        assert found.status == 403 and b"'evil.example'" in found.body[0]["body"]
        assert b"--allowed-host" in found.body[0]["body"] and "x-request-id" in found.head
    assert not reached and counted(service) == {"403": 2} and service.unfinished == 0


def test_json_is_short_and_has_no_numbers_that_json_lacks():
    assert as_json({"a": [1, "ü"]}) == '{"a":[1,"ü"]}'.encode() and as_json("\ud800") == b'"?"'
    with raises(ValueError, naming="JSON compliant"):
        as_json([float("nan")])
