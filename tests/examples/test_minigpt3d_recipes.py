"""The recipes of MiniGPT-3D's four stages have the published values."""

import pytest

from hf_any3d.modeling.minigpt3d import STAGES
from hf_any3d.training.minigpt3d_stages import ConversationArguments, StageArguments, StageTrainingArguments
from hf_any3d.training.requests import parse_arguments
from tests.examples.conftest import EXAMPLES
from tests.training.test_schedules import CASES

FOLDER = EXAMPLES / "recipes"
KINDS = (StageArguments, ConversationArguments, StageTrainingArguments)
TALKS = ["detailed", "single_round", "multi_round"]
# Learning rate, steps, conversations, batch sizes, ratios.
PUBLISHED = {
    1: (3e-5, 70_000, ["brief"], [9], [1]),
    2: (3e-5, 70_000, ["brief"], [9], [1]),
    3: (1e-5, 30_000, TALKS, [6, 10, 4], [2, 3, 3]),
    4: (5e-6, 10_000, TALKS, [6, 10, 4], [2, 3, 3]),
}
START = {1: ["--point_encoder", "a", "--qformer", "b", "--language_model", "c"]}


def parsed(stage: int):
    words = START.get(stage, ["--model_name_or_path", "before"])
    # Half precision on a GPU is refused where there is none.
    return parse_arguments(KINDS, [str(FOLDER / f"minigpt3d_stage{stage}.yaml"), *words, "--fp16", "false"])


@pytest.mark.parametrize("stage", STAGES)
def test_recipe_has_the_published_values(stage):
    start, data, training = parsed(stage)
    data.choose(start.stage)
    rate, steps, conversations, sizes, ratios = PUBLISHED[stage]
    assert start.stage == stage and data.num_points == 8192
    assert (training.learning_rate, training.max_steps) == (rate, steps)
    assert (data.conversations, data.batch_sizes, data.data_ratios) == (conversations, sizes, ratios)
    assert (training.weight_decay, training.weight_decay_on, training.no_weight_decay) == (0.05, "matrices", [])
    assert (training.optim, training.adam_beta1, training.adam_beta2) == ("adamw_torch", 0.9, 0.999)
    assert (training.max_grad_norm, training.gradient_accumulation_steps, training.seed) == (0, 1, 42)


@pytest.mark.parametrize("stage", STAGES)
def test_learning_rates_are_the_released_ones(stage):
    _, _, training = parsed(stage)
    schedule = training.step_schedule
    for epoch, step, rate in CASES["lr_schedule ([epoch, step in epoch, lr])"]["I" * stage if stage < 4 else "IV"]:
        assert schedule.rate(epoch * schedule.steps_per_epoch + step, training.learning_rate) == rate
