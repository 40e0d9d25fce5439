"""The recipes of MiniGPT-3D's four stages have the published values."""

import json
from pathlib import Path

import pytest

from hf_any3d.modeling.minigpt3d import STAGES
from hf_any3d.training.minigpt3d_stages import ConversationArguments, StageArguments, StageTrainingArguments
from hf_any3d.training.requests import parse_arguments
from tests.examples.conftest import EXAMPLES

FOLDER = EXAMPLES / "recipes"
CASES = json.loads((Path(__file__).parents[1] / "reference" / "minigpt3d_text.json").read_text(encoding="utf-8"))
KINDS = (StageArguments, ConversationArguments, StageTrainingArguments)


START = {1: ["--point_encoder", "a", "--qformer", "b", "--language_model", "c"]}


def parsed(stage: int):
    words = START.get(stage, ["--model_name_or_path", "before"])
    # Half precision on a GPU is refused where there is none.
    return parse_arguments(KINDS, [str(FOLDER / f"minigpt3d_stage{stage}.yaml"), *words, "--fp16", "false"])


@pytest.mark.parametrize("stage", STAGES)
def test_learning_rates_are_the_released_ones(stage):
    _, _, training = parsed(stage)
    schedule = training.step_schedule
    for epoch, step, rate in CASES["lr_schedule ([epoch, step in epoch, lr])"]["I" * stage if stage < 4 else "IV"]:
        assert schedule.rate(epoch * schedule.steps_per_epoch + step, training.learning_rate) == rate
