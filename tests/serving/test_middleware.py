"""Admission: what reaches the application, what is refused, and what is counted; without a model."""

import asyncio
import logging
from types import SimpleNamespace

import pytest

from hf_any3d.serving import ServeLimits
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.metrics import Metrics
from hf_any3d.serving.middleware import AdmissionMiddleware, as_json
from hf_any3d.serving.service import Service
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


def exchange(service, *pieces, app=None, method="POST", headers=()):
    """Send a request in pieces; its answer, and what the application read."""
    sent, read = [], []
    messages = iter(
        [{"type": "http.request", "body": one, "more_body": n < len(pieces) - 1} for n, one in enumerate(pieces)]
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
    asyncio.run(AdmissionMiddleware(app or echo, service)(scope, receive, send))
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


def test_json_is_short_and_has_no_numbers_that_json_lacks():
    assert as_json({"a": [1, "ü"]}) == '{"a":[1,"ü"]}'.encode() and as_json("\ud800") == b'"?"'
    with raises(ValueError, naming="JSON compliant"):
        as_json([float("nan")])
