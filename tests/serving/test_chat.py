"""Chat in OpenAI's form: answers equal those of the pipeline, alone, in batches and in streams."""

import asyncio
import concurrent.futures
import json
import threading
from dataclasses import replace

import numpy as np
import pytest
from transformers import LogitsProcessor

from hf_any3d.data.files import read_point_cloud
from hf_any3d.serving.app import create_app
from hf_any3d.tasks.chat.batches import Conversation, answer_conversations
from tests.serving.conftest import CHAT, LIMITS, held, ply
from tests.serving.test_app import data_url, error_of, wait_until

URL = "/v1/chat/completions"
HELLO = {"role": "user", "content": "Hello"}


def part(seed: int = 0) -> dict:
    return {"type": "point_cloud_url", "point_cloud_url": {"url": data_url(ply(seed))}}


def asked(*questions: str, seed: int = 0, **fields) -> dict:
    """A request with a cloud in the first of several questions."""
    messages = []
    for number, question in enumerate(questions):
        content = [part(seed), {"type": "text", "text": question}] if number == 0 else question
        messages += [{"role": "user", "content": content}, {"role": "assistant", "content": "yes"}]
    return {"model": "tiny", "messages": messages[:-1], "max_tokens": 6, **fields}


def expected(pipes, *questions: str, seed: int = 0, **generation) -> str:
    cloud = read_point_cloud(ply(seed), file_type="ply")
    messages = []
    for number, question in enumerate(questions):
        parts = [{"type": "point_cloud", "point_cloud": cloud}] if number == 0 else []
        messages.append({"role": "user", "content": [*parts, {"type": "text", "text": question}]})
        messages.append({"role": "assistant", "content": [{"type": "text", "text": "yes"}]})
    answer = pipes(CHAT)(messages[:-1], return_full_text=False, max_new_tokens=6, **generation)
    return answer[0]["generated_text"]


def events(response) -> list:
    """Contents of the events of a stream, the last of which ends it."""
    lines = [line for line in response.text.split("\n\n") if line]
    assert all(line.startswith("data: ") for line in lines) and lines[-1] == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-1]]


@pytest.mark.slow
def test_answers_are_those_of_the_pipeline_at_once_and_in_a_stream(client, pipes):
    service = client(CHAT)
    for questions in (["What is this?"], ["What is this?", "Really?"]):
        text = expected(pipes, *questions, do_sample=False)
        body = service.post(URL, json=asked(*questions)).json()
        assert body["choices"][0]["message"] == {"role": "assistant", "content": text} and text
        assert body["object"] == "chat.completion" and body["model"] == "tiny"
        used = body["usage"]
        assert used["total_tokens"] == used["prompt_tokens"] + used["completion_tokens"]
        streamed = service.post(URL, json=asked(*questions, stream=True, stream_options={"include_usage": True}))
        assert streamed.headers["content-type"].startswith("text/event-stream")
        *chunks, last = events(streamed)
        assert chunks[0]["choices"][0]["delta"]["role"] == "assistant" and last["usage"] == used
        assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == text
        assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
        assert chunks[-1]["choices"][0]["finish_reason"] == body["choices"][0]["finish_reason"]
    assert "hf_any3d_generated_tokens_total" in service.get("/metrics").text


@pytest.mark.slow
def test_conversations_that_arrive_together_get_the_answers_of_single_ones(client, pipes):
    service = client(CHAT)
    requests = [asked("Hi"), asked("What is this thing made of?", seed=1, max_tokens=3), asked("A", "B", stream=True)]
    alone = [service.post(URL, json=one) for one in requests]
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        with held(service.service) as sizes:
            first = pool.submit(service.post, URL, json=asked("First", seed=2))
            wait_until(lambda: sizes == [1])
            together = [pool.submit(service.post, URL, json=one) for one in requests]
            wait_until(lambda: len(service.service.batcher) == 3)
        assert first.result().status_code == 200
        for one, other in zip(alone[:2], [future.result() for future in together[:2]], strict=True):
            assert one.json()["choices"] == other.json()["choices"]
            assert one.json()["usage"] == other.json()["usage"]
        texts = [[chunk["choices"] for chunk in events(stream)] for stream in (alone[2], together[2].result())]
        assert texts[0] == texts[1]
    assert 'hf_any3d_batch_size_bucket{le="2.0"} 4.0' in service.get("/metrics").text


@pytest.mark.slow
def test_sampled_answers_repeat_with_their_seed_and_are_never_in_a_batch(client):
    service = client(CHAT)
    sampled = asked("What is this?", temperature=2.0) | {"seed": 3}
    first, again = (service.post(URL, json=sampled).json()["choices"] for _ in range(2))
    assert first == again
    others = {
        service.post(URL, json={**sampled, "seed": n}).json()["choices"][0]["message"]["content"] for n in (4, 5)
    }
    assert others != {first[0]["message"]["content"]}
    one = Conversation(prompt=None, new_tokens=1, sampling={"do_sample": True})
    assert one.key != replace(one).key and Conversation(None, 1).key == Conversation(None, 1).key


def test_the_end_mark_ends_an_answer_and_its_reason_is_stop(pipes):
    pipe = pipes(CHAT)
    tokenizer = pipe.processor.tokenizer

    class Forced(LogitsProcessor):
        step = 0

        def __call__(self, input_ids, scores):
            scores = scores.new_full(scores.shape, -np.inf)
            for row, text in enumerate(("ab###cdefgh", "abcdefghijk")):
                scores[row, tokenizer(text, add_special_tokens=False)["input_ids"][self.step]] = 0
            self.step += 1
            return scores

    heard = [[], []]
    prompts = pipe.processor.prompts([[{"role": "user", "content": text}] for text in ("x", "longer")])
    conversations = [
        Conversation(prompt, tokens, listen=pieces.append)
        for prompt, tokens, pieces in zip(prompts, (8, 7), heard, strict=True)
    ]
    settings = pipe.generate_settings
    pipe.generate_settings = lambda given: settings(given) | {"logits_processor": [Forced()]}
    try:
        first, second = answer_conversations(pipe, conversations)
    finally:
        del pipe.generate_settings
    assert (first.text, first.is_complete, first.tokens) == ("ab", True, 5)
    assert (second.text, second.is_complete, second.tokens) == ("abcdefg", False, 7)
    assert ["".join(pieces) for pieces in heard] == ["ab", "abcdefg"]


@pytest.mark.slow
def test_files_of_a_form_are_clouds_of_the_messages(client):
    service = client(CHAT)
    request = asked("What is this?")
    alone = service.post(URL, json=request).json()["choices"]
    request["messages"][0]["content"][0]["point_cloud_url"]["url"] = "upload:chair.ply"
    form = {"data": {"request": json.dumps(request)}, "files": {"file": ("chair.ply", ply(0))}}
    assert service.post(URL, **form).json()["choices"] == alone
    unused = {**form, "files": [("file", ("chair.ply", ply(0))), ("file", ("lamp.ply", ply(1)))]}
    assert "file 'lamp.ply' is in no message" in error_of(service.post(URL, **unused))


@pytest.mark.parametrize(
    ("change", "status", "message"),
    [
        ({"model": "other"}, 404, "model: 'other'; this server has 'tiny'"),
        ({"max_tokens": 9}, 400, "max_tokens: 9; expected at most 8"),
        ({"frequency_penalty": 1}, 400, "frequency_penalty: unknown field"),
        ({"n": 2}, 400, "n: Input should be 1"),
        ({"top_p": 0.5}, 400, "top_p: without effect at temperature 0"),
        ({"messages": []}, 400, "messages: "),
        ({"messages": [{"role": "user", "content": "a \ud800"}]}, 400, "surrogates"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, 400, "the last is of role 'assistant'"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, 400, "messages.0.content.0: Input tag"),
        ({"messages": [{"role": "user", "content": "a <PointCloudHere>"}]}, 400, "a text has '<PointCloudHere>'"),
        ({"messages": [{"role": "user", "content": "a" * 600}]}, 400, "the language model takes 512"),
        ({"messages": [{"role": "user", "content": "a" * 60_000}]}, 413, "the texts have 60000 characters"),
        ({"messages": [{"role": "user", "content": [part()] * 4}]}, 413, "4 clouds; expected at most 3"),
    ],
)
def test_bad_requests_are_refused_before_the_model_runs(client, change, status, message):
    content = json.dumps({**asked("What is this?"), **change})
    answer = client(CHAT).post(URL, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status and message in error_of(answer), answer.text


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer(client, stream):
    """The application is called directly, since clients in the same process read every response to its end."""
    service = client(CHAT, limits=replace(LIMITS, new_tokens=400)).service
    app, began, steps = create_app(service), threading.Event(), []
    answer = service.pipe.answerer.generate

    def generate(prompts, settings, *rest):
        criterion = settings["stopping_criteria"][0]
        settings["stopping_criteria"][0] = lambda ids, scores: (steps.append(1), began.set(), criterion(ids, scores))[
            2
        ]
        return answer(prompts, settings, *rest)

    service.pipe.answerer.generate = generate
    body = json.dumps(asked("What is this?", stream=stream) | {"max_tokens": 400}).encode()
    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
    }
    scope |= {"path": URL, "raw_path": URL.encode(), "root_path": "", "scheme": "http", "query_string": b""}
    scope |= {"headers": [(b"content-type", b"application/json")], "client": ("test", 1), "server": ("test", 80)}
    sent = []

    async def visit():
        parts = iter([{"type": "http.request", "body": body}])

        async def receive():
            if (part := next(parts, None)) is not None:
                return part
            while not began.is_set():
                await asyncio.sleep(0.005)
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        await asyncio.wait_for(app(scope, receive, send), 30)

    try:
        asyncio.run(visit())
    finally:
        del service.pipe.answerer.generate
    assert service.in_flight == 0 and sent[0]["status"] == (200 if stream else 499)
    (after,) = answer_conversations(service.pipe, [Conversation(service.pipe.processor.prompts([[HELLO]])[0], 1)])
    assert after.tokens == 1 and len(steps) < 300


def test_forms_hold_one_request(client):
    service = client(CHAT)
    form = service.post(URL, data={"other": "{}"}, files={"file": ("a.ply", ply(0))})
    assert error_of(form) == "the form has the fields ['other']; expected 'request' and files"
    assert form.json()["error"]["param"] == "request"
    damaged = service.post(URL, data={"request": "{"}, files={"file": ("a.ply", ply(0))})
    assert error_of(damaged).startswith("request is no JSON object")


def test_tokens_and_points_are_counted_and_usage_comes_on_request(client):
    service = client(CHAT)
    used = service.post(URL, json=asked("Hi")).json()["usage"]
    text = service.get("/metrics").text
    assert f"hf_any3d_generated_tokens_total {used['completion_tokens']:.1f}" in text and "points_total 60.0" in text
    streamed = service.post(URL, json=asked("Hi", stream=True))
    assert streamed.headers["cache-control"] == "no-cache"
    assert all(chunk["choices"] and "usage" not in chunk for chunk in events(streamed))
    text = service.get("/metrics").text
    assert f"hf_any3d_generated_tokens_total {2 * used['completion_tokens']:.1f}" in text


@pytest.mark.parametrize("late", [True, False])
def test_streams_that_break_off_end_with_an_error(client, late, monkeypatch):
    service = client(CHAT, limits=replace(LIMITS, seconds=0.3 if late else 20, wait=0))
    released = threading.Event()
    service.service.batcher.run = lambda key, contents: released.wait(10) if late else 1 / 0
    text = service.post(URL, json=asked("Hi", stream=True)).text
    released.set()
    *_, last = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n") if line]
    kind, message = ("timeout_error", "no answer within 0.3 s") if late else ("server_error", "the answer broke off")
    assert last["error"]["type"] == kind and message in last["error"]["message"] and "DONE" not in text
