"""Connections: when a head has to be there, which one is too many, and what is dropped at last."""

from types import SimpleNamespace

import h11
import pytest

from hf_any3d.serving import connections
from hf_any3d.serving.connections import limited_protocol


class Handle:
    is_canceled = False

    def cancel(self):
        self.is_canceled = True


class Wired:
    """A connection of the protocol without a loop: what it schedules, and whether it was dropped."""

    def __init__(self, monkeypatch, most: int = 2, open_: int = 1):
        self.planned, self.dropped, self.base = [], 0, []
        for name in ("connection_made", "data_received", "connection_lost", "timeout_keep_alive_handler"):
            monkeypatch.setattr(
                connections.H11Protocol, name, lambda protocol, *given, name=name: self.base.append((name, *given))
            )
        self.protocol = object.__new__(limited_protocol(most))
        self.protocol.loop, self.protocol.transport = self, self
        self.protocol.connections, self.protocol.conn = set(range(open_)), SimpleNamespace(their_state=h11.IDLE)

    def call_later(self, seconds, call):
        self.planned.append((seconds, call, handle := Handle()))
        return handle

    def abort(self):
        self.dropped += 1


def test_a_head_has_to_arrive_in_time(monkeypatch):
    wired = Wired(monkeypatch)
    wired.protocol.connection_made(wired)
    ((seconds, call, handle),) = wired.planned
    assert (seconds, call, wired.dropped) == (connections.HEAD_SECONDS, wired.abort, 0)
    wired.protocol.data_received(b"PO")
    assert len(wired.planned) == 1 and not handle.is_canceled, "a byte more does not begin the time anew"
    wired.protocol.conn.their_state = h11.SEND_BODY
    wired.protocol.data_received(b"ST / ...")
    assert handle.is_canceled and wired.protocol._giving_up is None
    wired.protocol.conn.their_state = h11.IDLE
    wired.protocol.data_received(b"PO")  # the next request of this connection
    assert len(wired.planned) == 2 and wired.planned[1][:2] == (connections.HEAD_SECONDS, wired.abort)
    wired.protocol.connection_lost(None)
    assert wired.planned[1][2].is_canceled and wired.protocol._giving_up is None
    assert [name for name, *_ in wired.base] == ["connection_made", *3 * ["data_received"], "connection_lost"]
    wired.protocol.connection_lost(None)


@pytest.mark.parametrize(("open_", "dropped"), [(2, 0), (3, 1)])
def test_one_connection_too_many_is_dropped(open_, dropped, monkeypatch):
    wired = Wired(monkeypatch, most=2, open_=open_)
    wired.protocol.connection_made(wired)
    assert wired.dropped == dropped and len(wired.planned) == 1 - dropped


def test_what_an_idle_client_does_not_read_is_dropped_at_last(monkeypatch):
    wired = Wired(monkeypatch)
    wired.protocol.timeout_keep_alive_handler()
    assert wired.base == [("timeout_keep_alive_handler",)]
    assert [one[:2] for one in wired.planned] == [(connections.FLUSH_SECONDS, wired.abort)]
