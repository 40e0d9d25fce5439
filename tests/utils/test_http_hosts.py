"""Which names a server answers to: its own, whatever way they are written, and those that are allowed."""

import asyncio

import pytest

from hf_any3d.utils.http_hosts import HostMiddleware, Hosts
from tests.errors import raises

OWN = [
    "localhost",
    "LOCALHOST:8000",
    "localhost.",
    "127.0.0.1",
    "127.0.0.1:80",
    "127.1.2.3",
    "[::1]",
    "[::1]:8000",
    None,
]
FOREIGN = [
    "evil.example",
    "evil.example:8000",
    "localhost.evil.example",
    "127.0.0.1.evil.example",
    "evil.example:localhost",
    "localhost@evil.example",
    "[::2]:80",
    "0.0.0.0",
    "10.0.0.5:8000",
    "",
    "[",
    "evil.example\tlocalhost",
    "\xe4",
]


@pytest.mark.parametrize("bound", ["127.0.0.1", "localhost", "::1", "[::1]", "127.0.0.2"])
def test_a_server_of_this_machine_alone_answers_to_its_own_names(bound):
    hosts = Hosts(bound)
    assert [host for host in OWN if hosts.refusal(host)] == []
    assert [host for host in FOREIGN if not hosts.refusal(host)] == []
    assert "--allowed-host" in (hosts.refusal("evil.example") or "")
    allowed = Hosts(bound, ["Example.org", "*.models.example"])
    for host in [*OWN, "example.org:443", "EXAMPLE.ORG.", "a.models.example", "a.b.models.example:1"]:
        assert allowed.refusal(host) is None
    for host in [*FOREIGN, "sub.example.org", "models.example", "notmodels.example", "example.org.evil.example"]:
        assert allowed.refusal(host)
    assert not any(map(Hosts(bound, ["*"]).refusal, [*OWN, *FOREIGN]))


@pytest.mark.parametrize("bound", ["0.0.0.0", "::", "10.0.0.5", ""])
def test_a_server_that_others_reach_has_any_name_unless_some_are_given(bound):
    assert not any(map(Hosts(bound).refusal, [*OWN, *FOREIGN]))
    hosts = Hosts(bound, ["example.org"])
    assert hosts.refusal("example.org") is None and hosts.refusal("evil.example") and not hosts.refusal("localhost")


@pytest.mark.parametrize("name", ["https://example.org", "example.org:8000", "", "example.org/path"])
def test_a_name_has_no_scheme_and_no_port(name):
    with raises(ValueError, naming="--allowed-host"):
        Hosts("127.0.0.1", [name])


@pytest.mark.parametrize("kind", ["http", "websocket", "lifespan"])
@pytest.mark.parametrize("host", ["localhost", "evil.example"])
def test_the_middleware_refuses_requests_and_connections(kind, host):
    sent, reached = [], []

    async def app(scope, receive, send):
        reached.append(kind)

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    scope = {"type": kind} | ({} if kind == "lifespan" else {"headers": [(b"host", host.encode())]})
    asyncio.run(HostMiddleware(app, Hosts("localhost"))(scope, receive, send))
    is_admitted = host == "localhost" or kind == "lifespan"
    assert bool(reached) is is_admitted and bool(sent) is not is_admitted
    if sent:
        assert sent[0].get("status", sent[0].get("code")) == {"http": 403, "websocket": 1008}[kind]
