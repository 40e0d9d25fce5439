"""Settings of requests as arguments of pipelines, answers as JSON, and the server's end; without models."""

import asyncio
import signal
import socket
import time
from types import SimpleNamespace

import pytest
import uvicorn

from hf_any3d.cli.sockets import listen
from hf_any3d.serving import ServeLimits
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.server import Server
from hf_any3d.serving.tasks import SETTINGS_OF, Route, routes_of, run_each

ClassifySettings = SETTINGS_OF["/v1/classify"]


def route(task, settings, **attributes):
    usual = {
        "has_scores": True,
        "_sanitize_parameters": lambda **given: None,
        "label_names": lambda *given: ("a", *given),
    }
    return Route("/v1/classify", task, SimpleNamespace(**usual | attributes), settings)


def test_more_labels_than_allowed_are_refused():
    with pytest.raises(Refused) as refused:
        route("zero-shot-point-cloud-classification", ClassifySettings).check(
            ClassifySettings(labels="a,b,c"), ServeLimits(labels=2)
        )
    assert (refused.value.status, refused.value.param) == (400, "labels")


def test_a_bad_cloud_of_a_batch_is_an_error_of_its_own():
    asked = []

    def pipe(clouds, batch_size, progress, **arguments):
        asked.append((len(clouds), batch_size, progress, arguments))
        if "bad" in clouds:
            raise ValueError("bad")
        return [cloud.upper() for cloud in clouds]

    first, error, last = run_each(pipe, ["a", "bad", "c"], 8, {"top_k": 2})
    assert (first, last) == ("A", "C") and isinstance(error, ValueError)
    assert asked == [(3, 3, False, {"top_k": 2}), *[(1, 1, False, {"top_k": 2})] * 3]
    assert run_each(pipe, ["a", "b", "c"], 2, {}) == ["A", "B", "C"] and asked[-1][1] == 2


def test_models_without_a_head_or_clouds_have_one_route():
    (only,) = routes_of("point-cloud-feature-extraction", "pipe")
    assert (only.path, only.pipe, only.settings) == ("/v1/features", "pipe", SETTINGS_OF["/v1/features"])
    (written,) = routes_of("point-cloud-object-detection", SimpleNamespace(feature_extractor=None))
    assert written.path == "/v1/detect"


@pytest.fixture
def stopping():
    def made(passed, unfinished=0, drain=30.0):
        service = SimpleNamespace(unfinished=unfinished, is_draining=False, limits=ServeLimits())
        one = Server(uvicorn.Config(lambda *_: None), service, drain)
        one.stopping_since = None if passed is None else time.monotonic() - passed
        return one

    return made


@pytest.mark.parametrize(
    ("passed", "unfinished", "ends", "unanswered"),
    [(None, 0, False, 0), (0, 0, False, 0), (1.5, 0, True, 0), (1.5, 2, False, 0), (31, 2, True, 2), (31, 0, True, 0)],
)
def test_a_server_ends_when_all_is_answered_or_its_time_is_over(passed, unfinished, ends, unanswered, stopping):
    one = stopping(passed, unfinished)

    async def watch():
        try:
            await asyncio.wait_for(one.watch(), 0.2)
        except TimeoutError:
            pass

    asyncio.run(watch())
    assert (one.should_exit, one.unanswered, one.force_exit) == (ends, unanswered, bool(unanswered))


def test_the_first_signal_refuses_requests_and_the_second_ends_at_once(stopping):
    one = stopping(None, 3)
    one.handle_exit(signal.SIGTERM, None)
    assert one.service.is_draining and not one.should_exit and not one.force_exit
    assert 0 <= time.monotonic() - one.stopping_since < 60
    one.handle_exit(signal.SIGTERM, None)
    assert one.should_exit and one.force_exit and one.unanswered == 3


def test_a_socket_listens_on_a_free_port_or_says_which_is_taken():
    with listen("127.0.0.1", 0) as found:
        port = found.getsockname()[1]
        assert found.family == socket.AF_INET and port > 0
        with pytest.raises(OSError, match=f"--host 127.0.0.1 --port {port}: .*; expected a free port"):
            listen("127.0.0.1", port)
    if socket.has_ipv6:
        try:
            listen("::1", 0).close()
        except OSError as error:
            assert "--host ::1" in str(error)
