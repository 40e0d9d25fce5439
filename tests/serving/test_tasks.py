"""Settings of requests as arguments of pipelines, answers as JSON, and the server's end; without models."""

import asyncio
import base64
import inspect
import signal
import socket
import time
from types import SimpleNamespace

import numpy as np
import pytest
import uvicorn

from hf_any3d.data.files import PointCloudData
from hf_any3d.serving import ServeLimits, server
from hf_any3d.serving.chat_batches import ChatAnswer, Conversation
from hf_any3d.serving.limits import Refused
from hf_any3d.serving.openai_chat import ChatRequest, Chunks, check_request, completion, texts_of, uploads_of
from hf_any3d.serving.server import Server, listen
from hf_any3d.serving.tasks import (
    CLASSIFY,
    DETECT,
    PARTS_BY_NAME,
    SEGMENT,
    ZERO_SHOT,
    ClassifySettings,
    DetectSettings,
    FeatureSettings,
    Route,
    SegmentSettings,
    check_task,
    routes_of,
    run_each,
)
from tests.errors import raises

CLOUD = PointCloudData(np.eye(3))
MESH = PointCloudData(np.eye(3), faces=np.array([[0, 1, 2]]))


def route(task, settings, **attributes):
    usual = {
        "has_scores": True,
        "_sanitize_parameters": lambda **given: None,
        "label_names": lambda *given: ("a", *given),
    }
    return Route("/v1/x", task, SimpleNamespace(**usual | attributes), settings)


@pytest.mark.parametrize(
    ("settings", "arguments"),
    [
        (ClassifySettings(), {"top_k": 5}),
        (
            ClassifySettings(top_k=None, up_axis="z", labels="a, b", unknown=False, template="{}!"),
            {
                "top_k": None,
                "up_axis": "z",
                "candidate_labels": ("a", "b"),
                "unknown": False,
                "hypothesis_template": "{}!",
            },
        ),
        (FeatureSettings(), {}),
        (FeatureSettings(up_axis="x", feature="tokens"), {"up_axis": "x"}),
        (DetectSettings(), {"threshold": 0.5, "nms": "turned", "nms_iou": 0.25, "top_k": None, "up_axis": None}),
        (
            DetectSettings(nms=None, task="all", labels="a", align=False, grammar=True),
            {"threshold": 0.5, "nms": None, "nms_iou": 0.25, "top_k": None, "up_axis": None, "task": "all"}
            | {"candidate_labels": ("a",), "align": False, "grammar": True},
        ),
        (SegmentSettings(), {}),
        (
            SegmentSettings(category="ship", max_points=9, labels="a", up_axis="z", scores=True),
            {"category": "ship", "max_points": 9, "candidate_labels": ("a",), "up_axis": "z"},
        ),
    ],
)
def test_settings_become_arguments_of_the_pipeline(settings, arguments):
    assert route(CLASSIFY, type(settings))._arguments(settings) == arguments


def test_features_of_labels_are_an_array():
    found = route(ZERO_SHOT, ClassifySettings)._arguments(ClassifySettings(text_embeds=[[1, 2], [3, 4]]))[
        "text_embeds"
    ]
    assert found.dtype == np.float32 and found.tolist() == [[1, 2], [3, 4]]


@pytest.mark.parametrize(
    ("task", "settings", "param", "message"),
    [
        (CLASSIFY, ClassifySettings(labels="a"), "labels", "this model has labels of its own; expected none"),
        (CLASSIFY, ClassifySettings(template="{}"), "template", "labels of its own"),
        (CLASSIFY, ClassifySettings(text_embeds=[[1]]), "text_embeds", "labels of its own"),
        (SEGMENT, SegmentSettings(labels="a"), "labels", "labels of its own"),
        (ZERO_SHOT, ClassifySettings(), "labels", "labels: missing; expected the labels to choose from"),
        (PARTS_BY_NAME, SegmentSettings(), "labels", "labels: missing"),
        (ZERO_SHOT, ClassifySettings(labels="a,b,c"), "labels", "labels: 3; expected at most 2"),
        (DETECT, DetectSettings(labels="a"), "labels", "labels of its own"),
        (DETECT, DetectSettings(task="all"), "task", "task: this model writes no layouts; expected none"),
        (DETECT, DetectSettings(align=False), "align", "writes no layouts"),
        (DETECT, DetectSettings(grammar=False), "grammar", "writes no layouts"),
    ],
)
def test_settings_of_other_models_are_refused(task, settings, param, message):
    with pytest.raises(Refused, match=message) as refused:
        route(task, type(settings)).check(settings, ServeLimits(labels=2))
    assert (refused.value.status, refused.value.param) == (400, param)


def test_settings_that_fit_are_checked_by_the_pipeline():
    limits, asked = ServeLimits(labels=2), []
    fitting = [
        (ZERO_SHOT, ClassifySettings(labels="a,b", template="{}")),
        (PARTS_BY_NAME, SegmentSettings(labels="a")),
    ]
    for task, settings in (
        *fitting,
        (CLASSIFY, ClassifySettings()),
        (DETECT, DetectSettings()),
        (SEGMENT, SegmentSettings()),
    ):
        route(task, type(settings), _sanitize_parameters=lambda **given: asked.append(given)).check(settings, limits)
    assert len(asked) == 5
    writing = route(DETECT, DetectSettings, has_scores=False, _sanitize_parameters=lambda **given: asked.append(given))
    writing.check(DetectSettings(labels="a", task="all", align=True), limits)
    writing.check(DetectSettings(), limits)
    route(DETECT, FeatureSettings).check(FeatureSettings(), limits)

    def refuse(**given):
        raise TypeError("unknown arguments: x")

    with raises(Refused, naming="unknown arguments: x"):
        route(CLASSIFY, ClassifySettings, _sanitize_parameters=refuse).check(ClassifySettings(), limits)


def parts():
    mask = np.array([True, False, True])
    return {
        "labels": np.array([1, 0, 1]),
        "scores": np.array([0.5, 0.25, 1.0]),
        "points": np.eye(3),
        "segments": [{"label": "b", "mask": mask, "score": 0.75}],
    }


def test_parts_are_lists_or_bytes():
    own = route(SEGMENT, SegmentSettings)
    plain = own._shown(SegmentSettings(), CLOUD, parts())
    segments = [{"label": "b", "points": 2, "score": 0.75}]
    assert plain == {"num_points": 3, "names": ["a"], "segments": segments, "labels": [1, 0, 1]}
    found = own._shown(SegmentSettings(scores=True, encoding="base64", labels="x,y"), MESH, parts())
    assert found["names"] == ["a", ("x", "y")]
    for name, kind in (("labels", "<i4"), ("scores", "<f4"), ("points", "<f4")):
        values = np.frombuffer(base64.b64decode(found[name]), kind)
        np.testing.assert_array_equal(values, parts()[name].ravel())


def test_features_are_lists_and_those_of_tokens_have_their_centers():
    own = route(CLASSIFY, FeatureSettings)
    answer = {"pooled": np.ones(2), "tokens": np.ones((2, 1)), "centers": np.zeros((2, 3))}
    assert own._shown(FeatureSettings(), CLOUD, answer) == {"pooled": [1, 1]}
    assert own._shown(FeatureSettings(feature="tokens"), CLOUD, answer) == {
        "tokens": [[1], [1]],
        "centers": [[0] * 3] * 2,
    }
    refused = own._shown(FeatureSettings(feature="class_token"), CLOUD, answer)
    assert isinstance(refused, Refused) and refused.param == "feature" and refused.status == 400
    assert refused.message == "feature: this model has no class_token; expected pooled, tokens"
    assert route(CLASSIFY, ClassifySettings)._shown(ClassifySettings(), CLOUD, "x") == {"labels": "x"}
    assert route(DETECT, DetectSettings)._shown(DetectSettings(), CLOUD, "x") == {"boxes": "x"}


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


def test_tasks_without_a_route_are_named():
    check_task(DETECT, "m")
    with raises(ValueError, naming="'x' cannot be served; expected"):
        check_task("x", "m")
    (only,) = routes_of("point-cloud-feature-extraction", "pipe")
    assert (only.path, only.pipe, only.settings) == ("/v1/features", "pipe", FeatureSettings)
    (written,) = routes_of(DETECT, SimpleNamespace(feature_extractor=None))
    assert written.path == "/v1/detect"


def request(**fields):
    return ChatRequest(**{"model": "m", "messages": [{"role": "user", "content": "x"}]} | fields)


def service(layouts=None, new_tokens=9):
    return SimpleNamespace(name="m", layouts=layouts, limits=ServeLimits(new_tokens=new_tokens))


@pytest.mark.parametrize(
    ("fields", "given", "tokens"),
    [
        ({}, {}, 9),
        ({}, {"new_tokens": 1024}, 256),
        ({}, {"layouts": "pipe", "new_tokens": 1024}, 1024),
        ({"max_tokens": 3}, {}, 3),
        ({"max_completion_tokens": 4}, {}, 4),
        ({"max_tokens": 9}, {"layouts": "pipe"}, 9),
    ],
)
def test_an_answer_is_as_long_as_asked_for_and_as_the_server_allows(fields, given, tokens):
    from hf_any3d.serving.openai_chat import _tokens

    check_request(request(**fields), service(**given))
    assert _tokens(request(**fields), service(**given)) == tokens


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2},
        {"temperature": 0.01, "top_p": 0.1},
        {"seed": 0},
        {"seed": 2**63 - 1},
        {"n": 1},
        {"stream": True, "stream_options": {"include_usage": True}},
        {"user": "me"},
        {"max_tokens": 1},
    ],
)
def test_requests_at_their_bounds_are_answered(fields):
    check_request(request(**fields), service())


@pytest.mark.parametrize(
    "fields",
    [
        {"temperature": 2.1},
        {"temperature": -1},
        {"top_p": 0},
        {"top_p": 1.1},
        {"seed": -1},
        {"seed": 2**63},
        {"max_tokens": 0},
        {"messages": []},
    ],
)
def test_requests_beyond_their_bounds_are_refused(fields):
    with pytest.raises(ValueError, match=next(iter(fields))):
        request(**fields)


@pytest.mark.parametrize(
    ("fields", "status", "param"),
    [
        ({"model": "x"}, 404, "model"),
        ({"stream_options": {}}, 400, "stream_options"),
        ({"max_tokens": 10}, 400, "max_tokens"),
        ({"temperature": 0.001}, 400, "temperature"),
        ({"top_p": 0.5}, 400, "top_p"),
        ({"messages": [{"role": "user", "content": "x"}, {"role": "system", "content": "x"}]}, 400, "messages"),
    ],
)
def test_the_field_of_a_chat_that_is_wrong_is_named(fields, status, param):
    with pytest.raises(Refused) as refused:
        check_request(request(**fields), service())
    assert (refused.value.status, refused.value.param, refused.value.kind) == (status, param, "invalid_request_error")


def test_texts_and_clouds_of_a_chat_are_found_in_their_order():
    def cloud(name):
        return {"type": "point_cloud_url", "point_cloud_url": {"url": f"upload:{name}"}}

    asked = request(
        messages=[
            {"role": "user", "content": [cloud("b"), {"type": "text", "text": "x"}, cloud("a")]},
            {"role": "user", "content": "y"},
        ]
    )
    files = {name: SimpleNamespace(name=name, content=b"", file_type=None) for name in "ab"}
    assert sorted(texts_of(asked)) == ["x", "y"] and [one.name for one in uploads_of(asked, files)] == ["b", "a"]
    with raises(Refused, naming="'c' is in no message"):
        uploads_of(asked, files | {"c": files["a"]} | {"c": SimpleNamespace(name="c", content=b"", file_type=None)})
    with pytest.raises(Refused) as wrong:
        uploads_of(request(messages=[{"role": "user", "content": [{"type": "text", "text": "x"}, cloud("z")]}]), files)
    assert wrong.value.param == "messages.0.content.1.point_cloud_url.url"


@pytest.mark.parametrize(("complete", "reason"), [(True, "stop"), (False, "length")])
def test_answers_have_the_form_of_the_api(complete, reason, monkeypatch):
    monkeypatch.setattr(time, "time", lambda: 12.7)
    talk = Conversation(SimpleNamespace(input_ids=[1, 2, 3]), 9)
    answer = ChatAnswer("hi", 2, complete)
    used = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    message = {"role": "assistant", "content": "hi"}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
    head = {"id": "chatcmpl-job", "created": 12, "model": "m"}
    assert completion("m", "job", talk, answer) == {
        **head,
        "object": "chat.completion",
        "choices": [choice],
        "usage": used,
    }
    chunks, head = Chunks("m", "job"), head | {"object": "chat.completion.chunk"}
    piece = {"index": 0, "delta": {"content": "h"}, "finish_reason": None}
    assert chunks.delta({"content": "h"}) == {**head, "choices": [piece]}
    assert chunks.delta({}, answer)["choices"] == [{"index": 0, "delta": {}, "finish_reason": reason}]
    assert chunks.usage(talk, answer) == {**head, "choices": [], "usage": used}


@pytest.fixture
def stopping():
    def made(passed, in_flight=0, drain=30.0):
        one = Server(uvicorn.Config(lambda *_: None), SimpleNamespace(in_flight=in_flight, is_draining=False), drain)
        one.stopping_since = None if passed is None else time.monotonic() - passed
        return one

    return made


@pytest.mark.parametrize(
    ("passed", "in_flight", "ends", "unanswered"),
    [(None, 0, False, 0), (0, 0, False, 0), (1.5, 0, True, 0), (1.5, 2, False, 0), (31, 2, True, 2), (31, 0, True, 0)],
)
def test_a_server_ends_when_all_is_answered_or_its_time_is_over(passed, in_flight, ends, unanswered, stopping):
    one = stopping(passed, in_flight)

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


@pytest.mark.parametrize("unanswered", [0, 2])
def test_a_server_reads_small_heads_in_time_and_says_what_it_left(unanswered, monkeypatch, caplog):
    configs, made = [], []

    async def serve(one, sockets):
        configs.append(one.config)
        one.unanswered = unanswered

    monkeypatch.setattr(Server, "serve", serve)
    monkeypatch.setattr(server, "create_app", lambda *given: made.append(given) or "app")
    own = SimpleNamespace(limits=ServeLimits(connections=7))
    assert server.serve(own, "socket", 5.0, ["https://a"]) == unanswered
    (config,) = configs
    assert made == [(own, ["https://a"])] and config.app == "app" and config.http.most_connections == 7
    assert config.log_config is None and not config.access_log and config.lifespan == "on"
    assert not config.server_header and config.h11_max_incomplete_event_size == 32 << 10
    assert config.timeout_graceful_shutdown == 2 and bool(caplog.messages) is bool(unanswered)
    assert inspect.signature(server.serve).parameters["drain"].default == 30


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
