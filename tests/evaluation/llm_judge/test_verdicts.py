import json

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset
from huggingface_hub import get_token

from hf_any3d.evaluation.chat_evaluation import judge_protocols
from hf_any3d.evaluation.llm_judge import ClassNameJudge, EndpointJudge, JudgeError
from hf_any3d.evaluation.llm_judge.verdicts import judge_answers, read_class, read_same, read_score, read_verdict
from hf_any3d.evaluation.question_answering import PROTOCOLS, answer_question
from tests.errors import raises
from tests.evaluation.cases import CASES
from tests.evaluation.endpoints import LocalEndpoint
from tests.faults.killing import held_by_another

PARSING = CASES["judge_parsing"]


@pytest.mark.parametrize(("reply", "expected"), PARSING["open"])
def test_same_or_not_is_read_as_published(reply, expected):
    assert list(read_same(reply)) == expected


@pytest.mark.parametrize(("reply", "truth", "expected"), PARSING["closed"])
def test_classes_are_read_as_published(reply, truth, expected):
    number, label, reason = read_class(reply, 40)
    if expected[0] == "random":
        assert (number, label, reason) == (None, *expected[2:])
    else:
        assert [int(number == truth), number, label, reason] == expected


@pytest.mark.parametrize(("reply", "expected"), PARSING["caption"])
def test_scores_are_read_as_published(reply, expected):
    assert list(read_score(reply)) == expected


@pytest.mark.parametrize("reply", ["", " ", "\n", "#", "##", "###", "9" * 5000 + "#chair#x", "40#chair#x", "7#car"])
def test_malformed_replies_are_invalid(reply):
    assert read_same(reply)[1] == "INVALID"
    assert read_class(reply, 40)[:2] == (None, "INVALID")
    if not reply.startswith(("40", "7")):
        assert read_score(reply)[0] == -1


def test_the_first_of_several_answers_counts():
    assert read_class("perhaps 3#bed#soft\n4#bench#hard", 40)[:2] == (3, "bed")
    assert read_score("I say 20#little, later 30#more") == (20, "little, later 30")
    assert read_same("\n  t # both are cars")[1] == "T"


CLASSES = ["car", "glass box", "tv stand"]
ANSWERS = {
    "prompt": "What is this?",
    "model": "m",
    "results": [
        {"object_id": str(n), "ground_truth": "a car", "model_output": text}
        for n, text in enumerate(["a car", "a boat", "", "a van"])
    ],
}


def asked(url, **options):
    waits = []
    judge = EndpointJudge("judge", url, at_once=1, sleep=waits.append, timeout=5, **options)
    return judge, waits


class Answering:
    """A judge whose replies are a function of the prompt."""

    name, settings, revisions, reads_prompt, kinds = "function", {}, {"1"}, True, ("same",)

    def __init__(self, reply, at_once=1):
        self.reply, self.at_once = reply, at_once

    def __call__(self, text):
        return self.reply(text)


def test_requests_are_as_published_and_files_never_hold_the_key(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_KEY", "secret-key")
    with LocalEndpoint((200, "T#same")) as endpoint:
        judge, _ = asked(endpoint.url, key_variable="SOME_KEY", settings={"top_p": None})
        result = judge_answers(ANSWERS, "same", judge, tmp_path / "judged.json")
    path, headers, body = endpoint.requests[0]
    assert path == "/v1/chat/completions" and headers["Authorization"] == "Bearer secret-key"
    assert body["temperature"] == 1.0 and body["max_tokens"] == 2048 and "top_p" not in body
    assert "1. a car\n2. a car" in body["messages"][0]["content"]
    assert "2. ##" in endpoint.requests[2][2]["messages"][0]["content"]
    assert result["judge_revisions"] == ["judge-0613"] and result["figures"]["accuracy"] == 100
    assert "secret-key" not in (tmp_path / "judged.json").read_text()


def test_requests_hold_the_settings_as_recorded_at_any_address(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # is about the hub, not about a local server
    settings = {"response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "string"}}}, "seed": 3}
    with LocalEndpoint((200, "T#same")) as endpoint:
        judge, _ = asked(endpoint.url.replace("/v1", "/api/v4/"), settings=settings)
        assert judge("?") == "T#same"
    path, _, body = endpoint.requests[0]
    assert path == "/api/v4/chat/completions"
    asked_for = {"model": "judge", "messages": [{"role": "user", "content": "?"}], **judge.settings}
    assert body == asked_for
    assert judge.settings["response_format"] == settings["response_format"]


def test_the_token_of_the_hub_is_never_sent(monkeypatch):
    assert get_token() == "hf_tests"
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with LocalEndpoint((200, "T#same")) as endpoint:
        asked(endpoint.url)[0]("?")
    headers = {name.lower(): value for name, value in endpoint.requests[0][1].items()}
    assert "authorization" not in headers and "hf_tests" not in str(headers)


def test_busy_endpoints_and_garbage_replies_are_retried():
    replies = [(429, b"slow down"), (503, b""), (200, b"<html>"), (200, b'{"choices": []}')]
    replies += [(200, b'{"choices": [{"message": {"content": null}}]}'), (200, "T#yes")]
    with LocalEndpoint(*replies) as endpoint:
        judge, waits = asked(endpoint.url)
        assert judge("?") == "T#yes"
    assert len(endpoint.requests) == 6 and waits[0] == 7
    assert all(2**n <= wait <= 1.25 * 2**n for n, wait in enumerate(waits) if n)


@pytest.mark.parametrize(("status", "count"), [(401, 1), (400, 1), (302, 1), (500, 3), (408, 3), (529, 3)])
def test_refusals_of_the_endpoint_are_reported(status, count):
    with LocalEndpoint((status, b"no such model")) as endpoint:
        judge, _ = asked(endpoint.url, attempts=3)
        with pytest.raises(JudgeError, match=f"{status}.*no such model"):
            judge("?")
    assert len(endpoint.requests) == count


def test_unreachable_endpoints_are_reported():
    judge, waits = asked("http://127.0.0.1:9/v1", attempts=2)
    with pytest.raises(JudgeError, match="no reply in 2 attempts"):
        judge("?")
    assert len(waits) == 1


@pytest.mark.parametrize("status", [200, 400, 500])
def test_keys_in_replies_are_redacted_in_errors_and_files(tmp_path, monkeypatch, status):
    monkeypatch.setenv("SOME_KEY", "secret-key-of-mine")
    said = f"T#your key is secret-key-of-mine {'x' * 270} secret-key-of-mine"
    body = {"model": "m secret-key-of-mine", "choices": [{"message": {"content": said}}]}
    for reply in (json.dumps(body).encode(), b"no JSON: secret-key-of-mine" * 9):
        with LocalEndpoint((status, reply)) as endpoint:
            judge, _ = asked(endpoint.url, key_variable="SOME_KEY", attempts=2)
            try:
                result = json.dumps(judge_answers(ANSWERS, "same", judge, tmp_path / "judged.json"))
                assert status == 200 and "your key is [key]" in result
            except JudgeError as error:
                result = str(error)
        assert "secret" not in result and "secret" not in (tmp_path / "judged.json").read_text()
        assert "secret" not in " ".join(judge.revisions)
        (tmp_path / "judged.json").unlink()


def test_lone_surrogates_in_a_reply_lose_no_verdicts(tmp_path):
    replies = iter(["T#fine", "T#\ud83d lone \udc00", "F#\ud83d\ude00 a pair", "F#no"])
    result = judge_answers(ANSWERS, "same", Answering(lambda text: next(replies)), tmp_path / "judged.json")
    stored = json.loads((tmp_path / "judged.json").read_text(encoding="utf-8"))
    assert [entry["score"] for entry in stored["results"]] == [1, 1, 0, 0] and stored == result
    assert stored["results"][1]["reason"] == "\ufffd lone \ufffd"
    assert stored["results"][2]["reason"] == "\U0001f600 a pair"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["class", "same", "caption"])
@pytest.mark.parametrize(
    "reply", ["1" * 3_000_000, "1#" * 1_000_000, "#" * 3_000_000, "9#a" * 1_000_000 + "#", "T" * 4_000_000]
)
def test_long_replies_are_read_once(kind, reply):
    verdict = read_verdict(kind, reply, {"object_id": "1", "ground_truth": 0}, CLASSES)
    assert 0 <= verdict["score"] <= 100 or not verdict["is_valid"]


def test_answers_that_changed_are_judged_again_and_the_others_are_not(tmp_path):
    path, seen = tmp_path / "judged.json", []

    def reply(text):
        seen.append(text)
        return "F#b" if "a boat" in text else "T#a"

    judge = Answering(reply)
    first = judge_answers(ANSWERS, "same", judge, path)["figures"]
    changed = [
        entry | {"model_output": "a car"} if entry["object_id"] == "1" else entry for entry in ANSWERS["results"]
    ]
    again = judge_answers(ANSWERS | {"results": changed}, "same", judge, path)
    assert (first["correct"], again["figures"]["correct"], len(seen)) == (3, 4, 5)
    assert json.loads(path.read_text()) == again
    fewer = judge_answers(ANSWERS | {"results": changed[:2]}, "same", judge, path)
    assert len(fewer["results"]) == fewer["figures"]["total"] == 2 and len(seen) == 5


def test_verdicts_of_another_prompt_are_not_mixed_in(tmp_path):
    with LocalEndpoint((200, "T#a")) as endpoint:
        judge_answers(ANSWERS, "same", asked(endpoint.url)[0], tmp_path / "j.json")
        with raises(ValueError, naming="j.json"):
            judge_answers(
                ANSWERS, "same", asked(endpoint.url)[0], tmp_path / "j.json", prompt="{ground_truth} {model_output}"
            )
        with pytest.raises(ValueError, match="judge prompt has fields .*classes"):
            judge_answers(ANSWERS, "same", asked(endpoint.url)[0], tmp_path / "k.json", prompt="{classes}")


def rows():
    made = Dataset.from_dict(
        {
            "points": [np.full((4, 3), n).tolist() for n in range(5)],
            "label": [0, 1, 2, 0, 1],
            "object_id": list("abcde"),
        }
    )
    return made.cast_column("label", ClassLabel(names=CLASSES)).with_format("numpy")


class Model:
    """Draws a class for each cloud, and is interrupted after some batches."""

    def __init__(self, batches=99):
        self.batches, self.seen = batches, []

    def __call__(self, clouds, question, settings):
        if len(self.seen) == self.batches:
            raise KeyboardInterrupt
        self.seen.append((len(clouds), clouds[0].shape, question, settings["max_new_tokens"]))
        return [f"A {CLASSES[int(number)]}.###x" for number in torch.randint(3, (len(clouds),))]


@pytest.mark.parametrize(
    ("decoded", "stored"), [case[::2] for case in CASES["postprocess (decoded, after generate, after eval script)"]]
)
def test_answers_are_stored_as_published(tmp_path, decoded, stored):
    protocol = PROTOCOLS["modelnet40-instruction"]
    result = answer_question(rows(), protocol, lambda clouds, *_: [decoded] * len(clouds), tmp_path / "a.json", {})
    assert {entry["model_output"] for entry in result["results"]} == {stored}


def test_answers_are_judged_again_without_the_model(tmp_path):
    protocol = PROTOCOLS["modelnet40-completion"]
    answers = answer_question(rows(), protocol, Model(), tmp_path / f"{protocol.name}.json", {"model": "m"})
    right = sum(CLASSES[r["ground_truth"]] in r["model_output"] for r in answers["results"])
    by_names = judge_protocols([protocol], tmp_path, ClassNameJudge(CLASSES), CLASSES)[protocol.name]
    assert by_names["figures"]["correct"] == right and by_names["figures"]["invalid"] == 0
    with LocalEndpoint((200, "Output: 0#car#x")) as endpoint:
        by_model = judge_protocols([protocol], tmp_path, asked(endpoint.url)[0], CLASSES)[protocol.name]
    assert by_model["figures"]["correct"] == 2 and "1: glass box" in endpoint.requests[0][2]["messages"][0]["content"]
    assert by_model["judge"]["name"] == "judge" != by_names["judge"]["name"]
    assert len(list(tmp_path.glob("*judged-by-*"))) == 4
    other = PROTOCOLS["modelnet40-instruction"]
    answer_question(rows(), other, Model(), tmp_path / f"{other.name}.json", {"model": "m"})
    judge_protocols([other], tmp_path, ClassNameJudge(CLASSES), CLASSES)
    kept = json.loads((tmp_path / "summary.judged-by-class-names.json").read_text())
    assert kept[protocol.name] == by_names and list(kept) == [protocol.name, other.name]
    with raises(ValueError, naming="cannot judge objaverse-caption"):
        judge_protocols([PROTOCOLS["objaverse-caption"]], tmp_path, ClassNameJudge(CLASSES), CLASSES)


def test_a_second_process_cannot_write_the_same_verdicts(tmp_path):
    """Otherwise both would send all requests, and each would discard the other's verdicts."""
    (tmp_path / "objaverse-instruction.json").write_text(json.dumps(ANSWERS))
    path = tmp_path / "objaverse-instruction.judged-by-function.json"
    arguments = [PROTOCOLS["objaverse-instruction"]], tmp_path, Answering(lambda text: "T#same"), CLASSES
    with held_by_another(path.with_name(f".{path.name}.lock")) as other:
        with pytest.raises(BlockingIOError, match=f"judged-by-function.json: process {other} on .* is writing"):
            judge_protocols(*arguments)
    result = judge_protocols(*arguments)
    assert result["objaverse-instruction"]["figures"]["total"] == 4
