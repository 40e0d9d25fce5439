"""Chat with a model that writes layouts: its answers are those of the pipeline, and lines come as they are written."""

from dataclasses import replace

import pytest
import torch
from fastapi.testclient import TestClient
from transformers import pipeline

from hf_any3d.data.files import PointCloudData, point_cloud_bytes
from hf_any3d.modeling.spatiallm import Layout
from hf_any3d.pipelines import LayoutTextPipeline
from hf_any3d.serving.app import create_app
from hf_any3d.serving.service import Service
from tests.pipelines.test_room_layouts import CORNER, DETECT, ROOM, WRITE, Dictated, scan
from tests.serving.conftest import LIMITS
from tests.serving.test_app import data_url, error_of
from tests.serving.test_chat import URL, events
from tests.tiny_spatiallm import fitting_spatiallm, tiny_processor

TEXT = ROOM.quantized(1280).write()


@pytest.fixture(scope="module")
def pipe():
    processor = tiny_processor(num_bins=1280, stride=2, clean=False)
    processor.tokenizer.add_tokens(TEXT.split("\n"))  # so that answers are short
    model = fitting_spatiallm(processor)
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    return pipeline(DETECT, model=model, processor=processor)


@pytest.fixture
def client(pipe):
    with TestClient(create_app(Service("rooms", DETECT, pipe, replace(LIMITS, new_tokens=20)))) as made:
        yield made


@pytest.fixture
def dictated(pipe, client):
    """Lets the model write `ROOM`."""
    words = []

    class Writer(LayoutTextPipeline):
        def entities(self, request, generation):
            words.append(Dictated(self.processor.tokenizer, TEXT))
            return super().entities(request, {**generation, "logits_processor": [words[-1]]})

    client.app.state.service.layouts = Writer(model=pipe.model, processor=pipe.processor, task=WRITE)
    return words


def asked(text: str | None = "Detect walls, doors, windows, boxes.", **fields) -> dict:
    own = scan()
    cloud = data_url(point_cloud_bytes(PointCloudData(own[:, :3], colors=own[:, 3:]), "ply"))
    content = [{"type": "point_cloud_url", "point_cloud_url": {"url": cloud}}]
    content += [] if text is None else [{"type": "text", "text": text}]
    return {"model": "rooms", "messages": [{"role": "user", "content": content}], **fields}


def test_a_layout_is_written_in_the_frame_of_the_scan(client, dictated):
    assert client.get("/v1/models").json()["data"][0]["routes"] == ["/v1/detect", URL]
    body = client.post(URL, json=asked(max_tokens=12))
    assert body.status_code == 200, body.text
    (choice,) = body.json()["choices"]
    layout = Layout.parse(choice["message"]["content"], strict=True)
    assert layout.boxes[0].label == "chair" and layout.walls[1].by == pytest.approx(3.0 + CORNER[1], abs=0.03)
    assert choice["finish_reason"] == "stop" and "Detect walls, doors, windows, boxes." in dictated[0].prompt
    usage = body.json()["usage"]
    assert usage["completion_tokens"] == len(dictated[0].tokens) and usage["prompt_tokens"] == dictated[0].length
    cut = client.post(URL, json=asked("Detect boxes.", max_tokens=3)).json()
    assert cut["choices"][0]["finish_reason"] == "length" and cut["usage"]["completion_tokens"] == 3
    assert "Detect boxes." in dictated[-1].prompt


def test_lines_are_sent_as_they_are_written(client, dictated):
    whole = client.post(URL, json=asked(None, max_tokens=12)).json()["choices"][0]["message"]["content"]
    found = events(client.post(URL, json=asked(None, max_tokens=12, stream=True)))
    pieces = [one["choices"][0]["delta"].get("content", "") for one in found]
    assert "".join(pieces) == whole and [piece.strip() for piece in pieces if piece] == whole.split("\n")
    assert found[-1]["choices"][0]["finish_reason"] == "stop"


def test_answers_without_dictation_are_those_of_the_pipeline(client, pipe):
    writer = pipeline(WRITE, model=pipe.model, processor=pipe.processor)
    (expected,) = writer(scan(), max_new_tokens=8)
    body = client.post(URL, json=asked(max_tokens=8)).json()
    assert body["choices"][0]["message"]["content"] == expected["generated_text"]
    drawn = [client.post(URL, json=asked(max_tokens=8, temperature=1.5, seed=3)).json() for _ in range(2)]
    assert drawn[0]["choices"] == drawn[1]["choices"]
    state = torch.random.get_rng_state()
    client.post(URL, json=asked(max_tokens=8, temperature=1.5, seed=3))
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": [{"role": "user", "content": "Hello"}]}, "1 messages with 0 scans; expected one message"),
        (asked("What is this?"), "the model writes layouts and answers no questions; expected 'Detect walls"),
        ({"max_tokens": 9}, "max_tokens: 9; expected at most 8"),
    ],
)
def test_what_is_no_instruction_is_refused(pipe, change, message):
    with TestClient(create_app(Service("rooms", DETECT, pipe, LIMITS))) as client:
        refused = client.post(URL, json=asked() | change)
        assert refused.status_code == 400 and message in error_of(refused)
