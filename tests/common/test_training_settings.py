"""Numbers of a training that no one can mean are refused by name, at each door, before any work is done."""

from __future__ import annotations

import json
from dataclasses import fields
from math import inf, nan

import pytest
from transformers import TrainingArguments

from hf_any3d.modeling.act import ActConfig
from hf_any3d.training.arguments import RANGES, PointTrainingArguments
from hf_any3d.training.detection import DetectionTrainingArguments
from hf_any3d.training.minigpt3d_stages import StageTrainingArguments
from hf_any3d.training.pretraining import DistillationTrainingArguments
from tests.cli.conftest import run
from tests.errors import raises

OF_TRANSFORMERS = {entry.name: entry.type for entry in fields(TrainingArguments)}
OF_OURS = {
    "rows_per_step": [0, -1],
    "head_epochs": [-1],
    "few_tokens": [{"0": 0.5}, {"32": 0}, {"32": nan}, {"32": "most"}, {"few": 0.5}],
    "epoch_cosine": [{"warmup_epochs": -1}, {"epochs": 0}, {"epochs": -3}, {"min_lr": -1}, {"warmup_lr": nan}],
    "learning_rate_factors": [{"classifier": 0}, {"classifier": nan}],
}


def out_of_range(name: str) -> list:
    """Return numbers beyond both ends of what a setting may be."""
    low, high, above, below = RANGES[name]
    # Of a number of steps 2 is a number, of a share it is not.
    values: list = [low if above else low - 1, high if below else high + 1]
    is_count = "float" not in str(OF_TRANSFORMERS[name])
    # The parser of words reads no NaN and no infinity where a whole number is expected.
    return [int(value) if is_count else value for value in values if not (is_count and value == inf)] + (
        [] if is_count else [nan]
    )


WRONG = [(name, value) for name in RANGES if name in OF_TRANSFORMERS for value in out_of_range(name)]
# Steps between whole numbers, which transformers cuts off.
WRONG += [("warmup_steps", 1.5)]
WRONG += [(name, value) for name, values in OF_OURS.items() for value in values]
# No limit is no number out of range.
WRONG = [(name, value) for name, value in WRONG if (name, value) != ("max_grad_norm", inf)]


@pytest.mark.parametrize(("name", "value"), WRONG, ids=[f"{name}={value}" for name, value in WRONG])
@pytest.mark.parametrize("door", ["command", "class"])
def test_a_training_setting_out_of_range_is_refused_by_its_name(door, name, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    named = next(iter(value)) if isinstance(value, dict) else name
    if door == "command":
        word = json.dumps(value) if isinstance(value, dict) else value
        done = run("train", "shapes", "--way", "trained", f"--{name}={word}")
        # Options that the command itself has are refused as it reads them, with 2.
        assert (done.code in (1, 2), done.err.count("\n")) == (True, 1), done.err
        assert named in done.err.replace("-", "_")
        assert list(tmp_path.iterdir()) == []
    else:
        with raises(ValueError, naming=named):
            PointTrainingArguments("run", **{name: value})


@pytest.mark.parametrize("kind", [DetectionTrainingArguments, DistillationTrainingArguments, StageTrainingArguments])
def test_arguments_of_every_training_program_are_checked(kind):
    with raises(ValueError, naming="label_smoothing_factor"):
        kind("run", max_steps=8, label_smoothing_factor=2.0)


def test_plain_arguments_of_transformers_stay_theirs():
    assert TrainingArguments("run", label_smoothing_factor=2.0, use_cpu=True).label_smoothing_factor == 2.0


def test_the_bounds_themselves_are_taken():
    taken = {"max_grad_norm": inf, "weight_decay": 0, "warmup_steps": 100, "label_smoothing_factor": 0.0}
    made = PointTrainingArguments("run", **taken, max_steps=-1, save_total_limit=None, seed=2**32 - 1)
    assert (made.max_grad_norm, made.warmup_steps) == (inf, 100)


@pytest.mark.parametrize("value", [-0.1, 1.0, nan])
def test_a_dropout_out_of_range_is_refused_by_its_name(value):
    with raises(ValueError, naming="head_dropout"):
        ActConfig(head_dropout=value)
