"""Arguments of MiniGPT-3D's stages: published values, schedules in steps, and what does not fit together."""

import pytest

from hf_any3d.training.minigpt3d_stages import ConversationArguments, StageArguments, StageTrainingArguments
from hf_any3d.training.schedules import StepCosine

PARTS = {"point_encoder": "a", "qformer": "b", "language_model": "c"}


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (
            {"data_ratios": [1.0]},
            "--data_ratios 1.0; expected 3 numbers above 0, for detailed, single_round, multi_ro",
        ),
        ({"batch_sizes": [1, 0, 1]}, "--batch_sizes 1 0 1; expected 3 numbers above 0"),
        ({"batch_sizes": [1, 1, 1, 1]}, "--batch_sizes 1 1 1 1; expected 3 numbers"),
    ],
)
def test_ratios_and_sizes_fit_the_conversations(given, text):
    with pytest.raises(ValueError, match=text):
        ConversationArguments(**given).choose(3)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"stage": 0} | PARTS, "stage=0; expected one of 1, 2, 3, 4"),
        (
            {"stage": 1, "model_name_or_path": "x", "qformer": "y"},
            "--model_name_or_path and --qformer exclude each other",
        ),
        ({"stage": 1, "model_name_or_path": "x", "model_config": {"a": 1}}, "--model_name_or_path and --model_config"),
        (
            {"stage": 1, "qformer": "b", "language_model": "c"},
            "--point_encoder is not given; .*, or --model_name_or_pa",
        ),
        (
            {"stage": 1, "point_encoder": "a", "language_model": "c"},
            "--qformer is not given; .*, or none for a new one",
        ),
        ({"stage": 1, "processor_config": {"sampling": 1}} | PARTS, "--processor_config: 'sampling'"),
    ],
)
def test_contradictions_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        StageArguments(**given)


def training(folder, **settings) -> StageTrainingArguments:
    return StageTrainingArguments(str(folder), use_cpu=True, report_to="none", **{"max_steps": 12} | settings)


def test_a_schedule_is_divided_into_its_epochs(tmp_path):
    made = training(tmp_path, step_cosine='{"epochs": 3, "warmup_steps": 2, "min_lr": 0.5}')
    assert made.step_schedule == StepCosine(epochs=3, steps_per_epoch=4, warmup_steps=2, min_lr=0.5)
    assert made.step_cosine == {"epochs": 3, "warmup_steps": 2, "warmup_lr": 1e-6, "min_lr": 0.5}
    assert made.schedule_facts == {"lr_scheduler": "step_cosine", "step_cosine": made.step_cosine}
    assert training(tmp_path, step_cosine={"warmup_steps": 1}).step_schedule.steps_per_epoch == 12
    plain = training(tmp_path)
    assert plain.step_schedule is None and plain.schedule_facts == {} and plain.step_cosine is None


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"max_steps": 0}, "--max_steps 0; expected at least 1, since batches are drawn without end"),
        (
            {"rows_per_step": 8},
            "--rows_per_step is not for this task; use --batch_sizes",
        ),
        ({"step_cosine": {"epochs": 5}}, "--max_steps 12; expected a multiple of 5 epochs"),
    ],
)
def test_steps_that_cannot_be_are_refused(given, text, tmp_path):
    with pytest.raises(ValueError, match=text):
        training(tmp_path, **given)
