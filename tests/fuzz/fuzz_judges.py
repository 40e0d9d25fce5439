"""Damaged answers of endpoints instead of a chat completion, and of judges instead of a verdict."""

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import numpy as np

from hf_any3d.evaluation import EndpointJudge, JudgeError, judge_answers
from tests.fuzz.damage import mutate
from tests.fuzz.target import Target

KEY = "a-key-that-must-not-be-told"
CLASSES = ["car", "glass box", "tv stand"]
ANSWERS = {
    "prompt": "What is this?",
    "model": "m",
    "results": [{"object_id": str(n), "ground_truth": 0, "model_output": "a car"} for n in range(2)],
}
REPLIES = [
    "T#the same",
    "f#another",
    "2#tv stand#it says so",
    "100#all of it",
    "NA",
    f"T#your key is {KEY}",
    "\ud83d",
    "\ud83d\ude00",
    "\x1b[2J\x00",
    "1" * 5000,
    "9" * 100_000 + "#",
    "1#" * 50_000,
    "#" * 100_000,
    "",
    "\u2028#\u202e",
]
_VALUES = [None, 3, -1, 1e308, True, [], {}, "", "x", [[]], {"content": None}, 10**400, KEY, float("nan")]


@dataclass
class Case:
    """The body of a response, and what is judged."""

    body: bytes
    kind: str


class Replies(Target):
    """A response becomes stored verdicts or a JudgeError without the key."""

    name = "judge replies"
    refusals = (JudgeError,)
    inputs = 300

    def prepare(self, folder: Path) -> None:  # noqa: D102
        (folder / "warm").mkdir()
        self.attempt(Case(_completion("T#yes"), "same"), folder / "warm")

    def make(self, generator: np.random.Generator, folder: Path) -> Case:  # noqa: D102
        reply = REPLIES[int(generator.integers(len(REPLIES)))]
        if generator.random() < 0.3:
            reply = mutate(reply.encode("utf-8", "surrogatepass"), generator).decode("utf-8", "surrogateescape")
        body = _completion(reply)
        kind = generator.random()
        if kind < 0.3:
            body = mutate(body, generator)
        elif kind < 0.5:
            body = _with_odd_value(json.loads(body), generator)
        elif kind < 0.6:
            depth = int(generator.choice([100, 10_000, 200_000]))
            opening = generator.choice([b"[", b'{"choices":', b'[{"a":', b'{"choices":[{"message":{"content":'])
            body = bytes(opening) * depth
        elif kind < 0.65:
            body = bytes(generator.integers(0, 256, int(generator.integers(0, 500)), dtype=np.uint8))
        return Case(body, str(generator.choice(["class", "same", "caption"])))

    def attempt(self, case: Case, folder: Path) -> None:  # noqa: D102
        judge = EndpointJudge("judge", "http://127.0.0.1:9/v1", key_variable="HF_ANY3D_FUZZ_KEY", attempts=1)
        judge._opener.open = lambda request, timeout: io.BytesIO(case.body)
        try:
            with patch.dict(os.environ, {"HF_ANY3D_FUZZ_KEY": KEY}):
                judge_answers(ANSWERS, case.kind, judge, folder / "judged.json", CLASSES)
        finally:
            stored = (folder / "judged.json").read_text(encoding="utf-8")
            assert KEY not in stored
        assert len(json.loads(stored)["results"]) == 2

    def check_refusal(self, error: BaseException, case: Case, folder: Path) -> None:  # noqa: D102
        assert KEY not in str(error) and len(str(error)) < 1000


def _completion(reply: str) -> bytes:
    return json.dumps({"model": f"judge {KEY}", "choices": [{"message": {"content": reply}}]}).encode()


def _with_odd_value(told: dict, generator: np.random.Generator) -> bytes:
    places = [
        (told, "model"),
        (told, "choices"),
        (told["choices"], 0),
        (told["choices"][0], "message"),
        (told["choices"][0]["message"], "content"),
    ]
    holder, key = places[int(generator.integers(len(places)))]
    holder[key] = _VALUES[int(generator.integers(len(_VALUES)))]
    return json.dumps(told).encode()


TARGETS = [Replies()]
