"""Records of published checkpoints: which tensors are missing, who judges which task, and what is written down."""

import importlib.metadata
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hf_any3d.evaluation import published_checks
from hf_any3d.evaluation.published_checks import Check
from hf_any3d.version import __version__

NAME = "stand-in/model"


class Tied(nn.Module):
    """A model whose output layer has the weights of its input layer, as many language models."""

    base_model_prefix = "base"

    def __init__(self):
        super().__init__()
        self.base = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Linear(2, 3))
        self.head = nn.Linear(2, 2, bias=False)
        self.head.weight = self.base[0].weight


WHOLE = {"0.weight": 0, "1.weight": 0, "1.bias": 0}


@pytest.mark.parametrize(
    ("files", "passed", "seen"),
    [
        ([WHOLE], True, "all 3, none missing or left over"),
        ([{f"base.{name}": 0 for name in WHOLE}], True, "all 3, none missing or left over"),
        ([{"0.weight": 0}, {"1.weight": 0, "1.bias": 0}], True, "all 3, none missing or left over"),
        ([{"head.weight": 0, "1.weight": 0, "1.bias": 0}], True, "all 3, none missing or left over"),
        ([{**WHOLE, "head.weight": 0}], True, "all 4, none missing or left over"),
        ([{"0.weight": 0, "1.bias": 0}], False, "1 missing, such as 1.weight"),
        ([{"1.weight": 0, "1.bias": 0}], False, "2 missing, such as 0.weight"),
        ([{**WHOLE, "z": 0, "b": 0}], False, "2 left over, such as b"),
        ([{"0.weight": 0, "1.bias": 0, "z": 0}], False, "1 missing, such as 1.weight, 1 left over, such as z"),
    ],
)
def test_tensors_of_the_files_are_those_of_the_model(files, passed, seen, tmp_path):
    for number, names in enumerate(files):
        save_file({name: torch.zeros(1) for name in names}, tmp_path / f"part-{number}.safetensors")
    (tmp_path / "other.bin").write_bytes(b"no tensors")
    assert published_checks._tensors(Tied(), tmp_path) == Check("tensors", passed, seen)


@pytest.fixture
def judged(monkeypatch):
    """Let every judge answer with its name and what it was asked."""

    def judge(name, given):
        return Check(name, None, repr(given))

    for name in ("_features", "_parts", "_room", "_boxes", "_chat"):
        monkeypatch.setattr(published_checks, name, lambda *given, name=name: judge(name, given))
    monkeypatch.setattr(published_checks, "_classifier", lambda *given: ("answers", *given))
    monkeypatch.setattr(published_checks, "_examples", lambda *given: judge("_examples", given))
    monkeypatch.setattr(published_checks, "_zero_shot", lambda *given: iter([judge("_zero_shot", given)] * 2))

    def run(task, tower=None):
        published = SimpleNamespace(text_tower=tower, texts="OpenCLIP")
        monkeypatch.setattr(published_checks, "find_published", lambda name: (name, None, published))
        monkeypatch.setattr(published_checks, "task_of_class", lambda kind: task if kind == "Stand" else None)
        model = type("Stand", (), {"__repr__": lambda self: "model"})()
        return [(check.name, check.seen) for check in published_checks._judge(NAME, model, 9)]

    return run


@pytest.mark.parametrize(
    ("task", "tower", "expected"),
    [
        ("zero-shot-point-cloud-classification", "clip", [("_zero_shot", "('stand-in/model', 9)")] * 2),
        (
            "zero-shot-point-cloud-classification",
            None,
            [
                ("zero-shot", "transformers has no class for its texts, OpenCLIP"),
                ("_features", "('stand-in/model', model, 9)"),
            ],
        ),
        ("point-cloud-classification", None, [("_examples", "(('answers', 'stand-in/model', model),)")]),
        ("zero-shot-point-cloud-segmentation", None, [("_parts", "('stand-in/model',)")]),
        ("point-cloud-segmentation", None, [("_room", "('stand-in/model', model)")]),
        ("point-cloud-object-detection", None, [("_boxes", "('stand-in/model',)")]),
        ("point-cloud-text-to-text", None, [("_chat", "('stand-in/model',)")]),
        ("point-cloud-reconstruction", None, [("_features", "('stand-in/model', model, 9)")]),
        (None, "clip", [("_features", "('stand-in/model', model, 9)")]),
    ],
)
def test_each_task_has_its_judge(task, tower, expected, judged):
    assert judged(task, tower) == expected


@pytest.mark.parametrize(
    ("found", "passed"),
    [([True, True], True), ([None, True], True), ([True, False], False), ([False, None], False)],
)
def test_a_record_has_all_checks_and_where_the_weights_are_from(found, passed, monkeypatch, tmp_path):
    model = nn.Linear(2, 3)
    source = {"file": "a.pt", "revision": "r", "sha256": "s", "weights_license": "mit", "more": 1}
    model.config = SimpleNamespace(published=source)
    ticks, opened = iter([10.0, 11.26, 14.5]), []
    monkeypatch.setattr(published_checks, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(
        published_checks, "open_published", lambda name, **given: opened.append((name, given)) or model
    )
    monkeypatch.setattr(published_checks, "published_directory", lambda name: tmp_path / name)
    monkeypatch.setattr(published_checks, "_tensors", lambda *given: Check("tensors", True, repr(given[1:])))
    monkeypatch.setattr(
        published_checks, "_judge", lambda *given: [Check(str(n), one, "") for n, one in enumerate(found)]
    )
    before = datetime.now(UTC).strftime("%Y-%m-%d")
    record = published_checks.check_published(NAME)
    assert before <= record.pop("date") <= datetime.now(UTC).strftime("%Y-%m-%d")
    assert opened == [(NAME, {"accept_license": False})]
    versions = {name: importlib.metadata.version(name) for name in ("torch", "transformers", "peft", "safetensors")}
    assert record == {
        "passed": passed,
        "checks": [
            {"name": "tensors", "passed": True, "seen": repr((tmp_path / NAME,))},
            {"name": "numbers", "passed": True, "seen": "finite"},
            *({"name": str(number), "passed": one, "seen": ""} for number, one in enumerate(found)),
        ],
        "class": "Linear",
        "parameters": 9,
        **{name: value for name, value in source.items() if name != "more"},
        "versions": {"hf-any3d": __version__, **versions},
        "seconds": {"open": 1.3, "judge": 3.2},
    }
