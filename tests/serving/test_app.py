"""The routes for clouds: answers equal those of the pipelines, and whatever is wrong gets one clear error."""

import base64
import concurrent.futures
import json
import logging
import re
import struct
import time
from dataclasses import replace

import numpy as np
import pytest
from fastapi.testclient import TestClient
from transformers import pipeline

import hf_any3d
from hf_any3d.data.files import read_point_cloud
from hf_any3d.registry import TASKS
from hf_any3d.serving.app import create_app
from hf_any3d.serving.service import Service
from tests.serving.conftest import CHAT, CLASSIFY, DETECT, LIMITS, SEGMENT, ZERO_SHOT, files, held, ply
from tests.tiny_spatiallm import fitting_spatiallm, tiny_processor

MESH = b"OFF\n4 2 0\n0 0 0\n1 0 0\n0 1 0\n0 0 1\n3 0 1 2\n3 0 1 3\n"


def data_url(data: bytes, kind: str = "model/ply") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def error_of(response) -> str:
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["code"] == str(response.status_code)
    return error["message"]


def wait_until(condition) -> None:
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.mark.slow
def test_answers_are_those_of_the_pipeline_in_both_forms(client, pipes):
    service = client()
    answer = service.post("/v1/classify", **files(0, 1, top_k="2"))
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model"] == "tiny" and [one["name"] for one in body["answers"]] == ["0.ply", "1.ply"]
    for seed, one in enumerate(body["answers"]):
        expected = pipes(CLASSIFY)(read_point_cloud(ply(seed), file_type="ply"), top_k=2)
        assert [label["label"] for label in one["labels"]] == [label["label"] for label in expected]
        assert [label["score"] for label in one["labels"]] == pytest.approx([e["score"] for e in expected], abs=1e-5)
    voted = service.post("/v1/classify", **files(0, votes="3")).json()["answers"][0]["labels"]
    expected = pipes(CLASSIFY)(read_point_cloud(ply(0), file_type="ply"), top_k=5, votes=3)
    assert [label["score"] for label in voted] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    points = read_point_cloud(ply(0), file_type="ply").points.tolist()
    clouds = [{"url": data_url(ply(0))}, {"points": points}, {"url": data_url(ply(0), "application/octet-stream")}]
    others = service.post("/v1/classify", json={"point_clouds": clouds, "top_k": None}).json()["answers"]
    assert [one["name"] for one in others] == ["point_clouds.0", "point_clouds.1", "point_clouds.2"]
    for one in others:
        assert len(one["labels"]) == 3
        scores = [label["score"] for label in one["labels"][:2]]
        assert scores == pytest.approx([label["score"] for label in body["answers"][0]["labels"]], abs=1e-5)


@pytest.mark.slow
def test_requests_that_arrive_together_are_one_batch_with_the_answers_of_single_ones(client):
    service = client()
    alone = [service.post("/v1/features", **files(seed)).json()["answers"] for seed in range(4)]
    with concurrent.futures.ThreadPoolExecutor(4) as pool, held(service.service) as sizes:
        first = pool.submit(service.post, "/v1/classify", **files(9))
        wait_until(lambda: sizes)
        others = [pool.submit(service.post, "/v1/features", **files(seed)) for seed in range(3)]
        wait_until(lambda: len(service.service.batcher) == 3)
    assert first.result().status_code == 200
    # The three were in the queue when the model became free.
    text = service.get("/metrics").text
    assert 'hf_any3d_batch_size_bucket{le="2.0"} 5.0' in text and 'hf_any3d_batch_size_bucket{le="4.0"} 6.0' in text
    for other, one in zip(others, alone, strict=False):
        together = other.result().json()["answers"]
        assert np.allclose(together[0]["pooled"], one[0]["pooled"], atol=1e-5)
        assert not np.allclose(together[0]["pooled"], alone[3][0]["pooled"], atol=1e-3)


@pytest.mark.slow
def test_labels_of_a_request_are_those_of_zero_shot_models(client, pipes):
    service = client(ZERO_SHOT)
    cloud = read_point_cloud(ply(0), file_type="ply")
    expected = pipes(ZERO_SHOT)(cloud, candidate_labels=["chair", "lamp"])
    found = service.post("/v1/classify", **files(0, labels="chair, lamp")).json()["answers"][0]["labels"]
    assert [one["label"] for one in found] == [one["label"] for one in expected]
    assert [one["score"] for one in found] == pytest.approx([one["score"] for one in expected], abs=1e-5)
    assert error_of(service.post("/v1/classify", **files(0))).startswith("candidate_labels is missing")
    assert "once" in error_of(service.post("/v1/classify", **files(0, labels="chair,chair")))
    texts = {"point_clouds": [{"url": data_url(ply(0))}], "labels": ["a", "b"], "text_embeds": [[1.0], [1.0, 2.0]]}
    assert "inhomogeneous" in error_of(service.post("/v1/classify", json=texts))


@pytest.mark.slow
def test_parts_have_labels_for_points_and_the_points_of_meshes(client, pipes):
    service = client(SEGMENT)
    category = pipes(SEGMENT).model.config.category_names[0]
    answer = service.post("/v1/segment", **files(0, category=category, scores="true"))
    assert answer.status_code == 200, answer.text
    one = answer.json()["answers"][0]
    expected = pipes(SEGMENT)(read_point_cloud(ply(0), file_type="ply"), category=category)
    assert one["labels"] == expected["labels"].tolist() and one["num_points"] == 60
    assert one["scores"] == pytest.approx(expected["scores"].tolist(), abs=1e-5) and "points" not in one
    assert one["names"][0] == "top" and sum(part["points"] for part in one["segments"]) == 60
    mesh = {"point_clouds": [{"url": data_url(MESH, "model/off")}], "category": category, "encoding": "base64"}
    one = service.post("/v1/segment", json=mesh).json()["answers"][0]
    labels, points = (base64.b64decode(one[name]) for name in ("labels", "points"))
    assert len(labels) == 4 * one["num_points"] and len(points) == 12 * one["num_points"] > 0
    assert "category is missing" in error_of(service.post("/v1/segment", **files(0)))


@pytest.mark.slow
def test_boxes_are_those_of_the_pipeline_and_settings_choose_among_them(client, pipes):
    service = client(DETECT)
    answer = service.post("/v1/detect", **files(0, 1, threshold="0.1"))
    assert answer.status_code == 200, answer.text
    for seed, one in enumerate(answer.json()["answers"]):
        expected = pipes(DETECT)(read_point_cloud(ply(seed), file_type="ply"), threshold=0.1)
        assert len(one["boxes"]) == len(expected) > 1
        for found, box in zip(one["boxes"], expected, strict=True):
            assert found["label"] == box["label"] and found["score"] == pytest.approx(box["score"], abs=1e-5)
            for name in ("center", "size", "heading"):
                assert found["box"][name] == pytest.approx(box["box"][name], abs=1e-4)
            np.testing.assert_allclose(found["box"]["corners"], box["box"]["corners"], atol=1e-4)
    clouds = [{"url": data_url(ply(0))}]

    def count(**settings):
        boxes = service.post("/v1/detect", json={"point_clouds": clouds, "threshold": 0, **settings}).json()["answers"]
        return len(boxes[0]["boxes"])

    queries = pipes(DETECT).model.config.num_queries
    assert count(nms=None) == queries > count(nms="base", nms_iou=0) >= count(nms="base", nms_iou=0, top_k=1) == 1
    assert service.post("/v1/features", **files(0)).status_code == 200
    assert error_of(service.post("/v1/segment", **files(0))) == (
        "/v1/segment: no such route; this model answers /v1/detect, /v1/features"
    )
    routes = service.get("/openapi.json").json()["paths"]
    body = routes["/v1/detect"]["post"]["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    writing = {"task", "labels", "align", "grammar"}
    assert {"file", "threshold", "nms", "nms_iou", "top_k", "up_axis", "estimate_normals"} | writing == set(body)
    assert 'hf_any3d_requests_total{route="/v1/detect",status="200"} 4.0' in service.get("/metrics").text
    wrong = {"threshold": "1.5", "nms": "odd", "nms_iou": "-1", "top_k": "0", "up_axis": "w", "labels": "chair"}
    wrong |= {"task": "layout", "align": "false", "grammar": "true"}
    for name, value in wrong.items():
        refused = service.post("/v1/detect", **files(0, **{name: value}))
        assert refused.status_code == 400 and name in error_of(refused)


def test_a_model_that_writes_layouts_answers_with_boxes_and_has_no_features():
    processor = tiny_processor(num_bins=1280, stride=2, clean=False)
    model = fitting_spatiallm(processor)
    model.generation_config.max_new_tokens = 8
    pipe = pipeline(DETECT, model=model, processor=processor)
    with TestClient(create_app(Service("rooms", DETECT, pipe, LIMITS))) as service:
        answer = service.post("/v1/detect", **files(0))
        assert answer.status_code == 200 and answer.json()["answers"] == [{"name": "0.ply", "boxes": []}], answer.text
        assert "this model answers /v1/detect" in error_of(service.post("/v1/features", **files(0)))
        refused = error_of(service.post("/v1/detect", **files(0, threshold="0.1")))
        assert "threshold=0.1: SpatialLMForConditionalGeneration writes boxes without scores" in refused
        asked = {"task": "all", "labels": "chair, bed", "align": "unit,turn", "grammar": "true"}
        answer = service.post("/v1/detect", **files(0, **asked))
        # Held to the grammar, what fits into eight tokens of a byte each is nothing.
        assert answer.status_code == 200 and answer.json()["answers"][0]["boxes"] == [], answer.text
        clouds = {"point_clouds": [{"points": [[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]]}]}
        for settings in ({"align": False}, {"align": ["unit"]}, {"task": "layout"}):
            assert service.post("/v1/detect", json=clouds | settings).status_code == 200
        wrong = {"align": "tilt", "labels": "unicorn", "task": "rooms", "grammar": "perhaps"}
        for name, value in wrong.items():
            refused = service.post("/v1/detect", **files(0, **{name: value}))
            assert refused.status_code == 400 and name in error_of(refused), refused.text


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ({"json": {"point_clouds": [{"url": "http://10.0.0.1/x.ply"}]}}, 400, "this server does not download files"),
        ({"json": {"point_clouds": [{"url": data_url(b"what")}]}}, 400, "point_clouds.0: "),
        ({"json": {"point_clouds": [{"url": data_url(b"what", "text/x-what")}]}}, 400, "point_clouds.0"),
        ({"json": {"point_clouds": [{"points": [[0, 0, "x"]]}]}}, 400, "point_clouds.0.points.0.2: Input should be"),
        ({"json": {"point_clouds": [{"path": "/etc/passwd"}]}}, 400, "point_clouds.0.path: unknown field"),
        ({"json": {"point_clouds": []}}, 400, "the request has no point cloud"),
        ({"json": {"point_clouds": [{}] * 4}}, 413, "4 clouds; expected at most 3"),
        ({"json": {"points": []}}, 400, "the request has no point cloud"),
        ({"json": []}, 400, "the body is no JSON object (list)"),
        ({"content": b"{", "headers": {"content-type": "application/json"}}, 400, "the body is no JSON object"),
        ({"content": b"x"}, 415, "expected multipart/form-data or application/json"),
        (files(0, top_k="0"), 400, "top_k: Input should be greater than or equal to 1, not '0'"),
        (files(0, topk="1"), 400, "topk: unknown field"),
        (files(0, labels="a,b"), 400, "unknown arguments: candidate_labels"),
        (files(0, up_axis="w"), 400, "up_axis: "),
        ({"files": {"file": ("a.txt", b"no points")}}, 400, "a.txt"),
        ({"files": [("file", ("a.ply", b"")), ("file", ("a.ply", b""))]}, 400, "'a.ply' is given twice"),
        ({"content": iter([bytes(150_000)] * 2), "headers": {"content-type": "application/json"}}, 413, "more than"),
    ],
)
def test_bad_requests_are_refused_with_what_is_wrong(refusing, sent, status, message):
    answer = refusing.post("/v1/classify", **sent)
    assert answer.status_code == status and message in error_of(answer), answer.text
    assert refusing.service.in_flight == 0


@pytest.fixture(scope="module")
def refusing(pipes):
    service = Service("tiny", CLASSIFY, pipes(CLASSIFY), LIMITS)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:
        client.service = service
        yield client


def test_what_a_header_declares_is_not_believed(refusing):
    header = b"ply\nformat binary_little_endian 1.0\nelement vertex %d\nproperty float x\nproperty float y\n"
    header += b"property float z\nend_header\n"
    many = error_of(refusing.post("/v1/classify", files={"file": ("a.ply", header % 10**6)}))
    assert "a.ply" in many and "cut off" in many or "at most" in many
    full = header % 2001 + struct.pack("<3f", 0, 0, 1) * 2001
    text = error_of(refusing.post("/v1/classify", files={"file": ("a.ply", full)}))
    assert text == "a.ply: 2001 points; at most 2000 are read by this server"
    assert "2001 points; at most 2000" in error_of(
        refusing.post("/v1/classify", json={"point_clouds": [{"points": [[0, 0, 0]] * 2001}]})
    )


def test_errors_of_the_model_have_their_status(client):
    service = client(limits=replace(LIMITS, wait=0))
    service.service.batcher.run = lambda key, contents: 1 / 0
    answer = service.post("/v1/classify", **files(0), headers={"X-Request-ID": "my-id"})
    assert answer.status_code == 500 and "my-id" in error_of(answer) and "ZeroDivision" not in answer.text
    service.service.batcher.run = lambda key, contents: [ValueError("NaN in scores")] * len(contents)
    answer = service.post("/v1/classify", **files(0, 1))
    assert answer.status_code == 422 and error_of(answer) == "NaN in scores"


def test_a_full_queue_refuses_and_recovers(client):
    service = client()
    with concurrent.futures.ThreadPoolExecutor(4) as pool, held(service.service):
        accepted = [pool.submit(service.post, "/v1/classify", **files(seed)) for seed in range(4)]
        wait_until(lambda: service.service.in_flight == 4)
        refused = service.post("/v1/classify", **files(9))
        assert refused.status_code == 429 and 1 <= int(refused.headers["retry-after"]) <= 60
        assert "4 requests are waiting" in error_of(refused)
        assert service.get("/health").status_code == 200  # answers however long the queue is
    assert [answer.result().status_code for answer in accepted] == [200] * 4
    assert service.post("/v1/classify", **files(9)).status_code == 200
    assert 'hf_any3d_refused_total{reason="queue"} 1.0' in service.get("/metrics").text


@pytest.mark.slow
def test_late_requests_get_504_and_are_not_begun(client):
    service = client(limits=replace(LIMITS, seconds=0.3, wait=0))
    with held(service.service) as sizes:
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            first = pool.submit(service.post, "/v1/classify", **files(0))
            wait_until(lambda: sizes == [1])
            answers = [service.post("/v1/classify", **files(1)), first.result()]
        assert [answer.status_code for answer in answers] == [504, 504]
        assert error_of(answers[0]).startswith("no answer within 0.3 s")
    wait_until(lambda: not len(service.service.batcher))
    assert sizes == [1]


def test_a_stopping_service_refuses_and_is_not_ready(client):
    service = client()
    assert service.get("/ready").json() == {"status": "ready"}
    service.service.is_draining = True
    answer = service.post("/v1/classify", **files(0))
    assert answer.status_code == 503 and answer.headers["connection"] == "close" and "retry-after" in answer.headers
    assert service.get("/ready").status_code == 503 and service.get("/health").status_code == 200


def test_requests_have_ids_in_answers_and_logs(client, caplog):
    service = client()
    with caplog.at_level(logging.INFO, "hf_any3d.serving"):
        answer = service.post("/v1/classify", **files(0), headers={"X-Request-ID": "job-7"})
        other = service.get("/nowhere", headers={"X-Request-ID": "bad id\x1b"})
    assert answer.headers["x-request-id"] == "job-7"
    assert len(other.headers["x-request-id"]) == 32
    assert error_of(other) == "/nowhere: no such route; this model answers /v1/classify, /v1/features"
    assert "request job-7: POST /v1/classify 200, " in caplog.text
    text = service.get("/metrics").text
    assert 'hf_any3d_requests_total{route="/v1/classify",status="200"} 1.0' in text
    assert 'hf_any3d_requests_total{route="other",status="404"} 1.0' in text
    assert "hf_any3d_points_total 60.0" in text and "hf_any3d_requests_in_flight 0.0" in text


def test_the_api_describes_itself(client):
    service = client()
    (own,) = service.get("/v1/models").json()["data"]
    assert own.pop("created") == service.service.created
    assert own == {
        "id": "tiny",
        "object": "model",
        "owned_by": "hf_any3d",
        "task": CLASSIFY,
        "routes": ["/v1/classify", "/v1/features"],
    }
    described = service.get("/openapi.json").json()
    assert described["info"] == {"title": "hf_any3d: tiny", "version": hf_any3d.__version__}
    asked = described["paths"]["/v1/classify"]["post"]
    assert asked["summary"] == "Classify clouds" and asked["requestBody"]["required"]
    kinds = asked["requestBody"]["content"]
    assert set(kinds) == {"application/json", "multipart/form-data"} and "/v1/segment" not in described["paths"]
    clouds = kinds["application/json"]["schema"]["properties"]["point_clouds"]
    assert set(clouds["items"]["properties"]) == {"url", "file_type", "points", "colors", "normals"}
    files = kinds["multipart/form-data"]["schema"]["properties"]["file"]
    assert files == {"type": "array", "items": {"type": "string", "format": "binary"}}
    for kind in kinds.values():
        assert {"top_k", "labels"} <= set(kind["schema"]["properties"]) and kind["schema"]["type"] == "object"
    metrics = service.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain") and metrics.status_code == 200
    wrong = service.put("/v1/classify")
    assert wrong.status_code == 405 and error_of(wrong) == "Method Not Allowed" and wrong.headers["allow"] == "POST"
    long = error_of(service.get("/" + "a" * 300))
    assert long == "/" + "a" * 199 + "…: no such route; this model answers /v1/classify, /v1/features"


def test_a_service_that_ends_finishes_its_queue_and_is_not_ready(pipes):
    service = Service("tiny", CLASSIFY, pipes(CLASSIFY), LIMITS)
    with TestClient(create_app(service)) as asked:
        assert service.batcher.is_alive
        service.batcher.close()
        assert asked.get("/ready").status_code == 503
    service = Service("tiny", CLASSIFY, pipes(CLASSIFY), LIMITS)
    with TestClient(create_app(service)):
        pass
    assert not service.batcher.is_alive


def test_a_path_with_a_slash_is_unknown_and_leads_nowhere(client):
    answer = client().post("/v1/classify/", headers={"Host": "evil.example"}, follow_redirects=False, **files(0))
    assert answer.status_code == 404 and "location" not in answer.headers and "no such route" in error_of(answer)


def test_pages_of_an_allowed_origin_may_ask(pipes):
    service = Service("tiny", CLASSIFY, pipes(CLASSIFY), LIMITS)
    asked = {"Origin": "https://example.org", "Access-Control-Request-Method": "POST"}
    for origins, allowed in ((["https://example.org"], True), (["https://other.example"], False), ((), False)):
        page = TestClient(create_app(service, origins))
        assert ("access-control-allow-origin" in page.options("/v1/classify", headers=asked).headers) is allowed
        answer = page.post("/v1/classify", content=b"x", headers={"Origin": "https://example.org"})
        if allowed:
            exposed = answer.headers["access-control-expose-headers"].split(", ")
            assert sorted(exposed) == ["Retry-After", "X-Request-ID"]
        # Pages read refusals, too.
        service.is_draining = True
        refused = page.post("/v1/classify", content=b"x", headers={"Origin": "https://example.org"})
        assert refused.status_code == 503 and ("access-control-allow-origin" in refused.headers) is allowed
        service.is_draining = False


@pytest.mark.parametrize(
    ("task", "routes"),
    [
        (CLASSIFY, {"/v1/classify": ["up_axis"], "/v1/features": ["up_axis"]}),
        (ZERO_SHOT, {"/v1/classify": ["labels", "up_axis"], "/v1/features": ["up_axis"]}),
        (CHAT, {"/v1/chat/completions": ["question"]}),
    ],
)
def test_the_front_page_asks_what_the_routes_of_its_model_take(client, task, routes):
    page = client(task).get("/")
    assert page.status_code == 200 and f"This is {TASKS[task].kind}" in page.text
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page.text)
    assert {route["path"]: route["takes"] for route in json.loads(data)["routes"]} == routes


def test_pages_of_the_service_load_nothing_from_other_servers(client):
    service = client()
    docs = service.get("/docs").text
    assert "POST /v1/classify" in docs and "openapi.json" in docs and "<script" not in docs
    for text in (docs, service.get("/").text):
        addresses = re.findall(r'(?:href|src|action)="([^"]*)"', text)
        assert addresses and [address for address in addresses if "//" in address.partition("data:")[0]] == []
    assert service.get("/favicon.ico").headers["content-type"] == "image/svg+xml"


def test_the_description_has_the_content_types_of_the_answers(client):
    described = client(SEGMENT).get("/openapi.json").json()["paths"]
    kinds = {}
    for path, methods in described.items():
        for method in methods.values():
            kinds[path] = set(method["responses"]["200"]["content"])
    assert kinds.pop("/metrics") == {"text/plain"} and kinds.pop("/v1/segment/file") == {"application/octet-stream"}
    assert all(found == {"application/json"} for found in kinds.values())
