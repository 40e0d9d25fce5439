"""Published schedules of the learning rate, and scheduled model arguments."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainerControl, TrainerState, TrainingArguments

from hf_any3d.modeling.act import ActForPointCloudClassification
from hf_any3d.modeling.any2point import PointTokenizerConfig, PointTokenizerForPointCloudClassification
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.schedules import (
    EpochCosine,
    FewTokensFirst,
    HeadFirstCallback,
    ScheduledArguments,
    StepCosine,
)
from hf_any3d.training.trainer import PointTrainer
from tests.tiny_act import clouds, tiny_act


class RecordingModel(nn.Module):
    """Model that records its arguments."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.calls: list[tuple[bool, float]] = []

    def forward(self, x: torch.Tensor, heat: float = -1.0) -> dict[str, torch.Tensor]:
        self.calls.append((self.training, heat))
        return {"loss": (self.weight * x).mean(), "logits": x}


@pytest.mark.slow
def test_each_step_has_its_value_and_evaluation_the_default(tmp_path):
    model, rows = RecordingModel(), [{"x": torch.ones(2)} for _ in range(6)]
    arguments = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=2,
        per_device_eval_batch_size=6,
        num_train_epochs=1,
        eval_strategy="epoch",
        logging_steps=1,
        label_names=["x"],
        remove_unused_columns=False,
        report_to="none",
        save_strategy="no",
        use_cpu=True,
        disable_tqdm=True,
    )
    schedule = ScheduledArguments({"heat": lambda step: 10.0 + step})
    trainer = Trainer(model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[schedule])
    trainer.train()
    # Both accumulation steps have the value of the optimizer step.
    assert model.calls == [(True, heat) for heat in (10, 10, 11, 11, 12, 12)] + [(False, -1)]
    logged = [entry["heat"] for entry in trainer.state.log_history if "loss" in entry]
    assert logged == [10, 11, 12]
    model.train()
    model(torch.ones(2))
    assert model.calls[-1] == (True, -1)


PEAK, WARMUP_LR, FLOOR, EPOCHS = 5e-4, 1e-6, 1e-6, 300


def clock_value(clock: int) -> float:
    """Reference implementation of the released programs' rate."""
    if clock < 10:
        return WARMUP_LR + (PEAK - WARMUP_LR) * clock / 10
    return FLOOR + (PEAK - FLOOR) * (1 + math.cos(math.pi * clock / EPOCHS)) / 2


def rates(schedule: EpochCosine, epochs: int, steps_per_epoch: int = 3, peak: float = PEAK) -> list[list[float]]:
    """Return the rate of each step, epoch by epoch."""
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=peak)
    scheduler = schedule.scheduler(optimizer, steps_per_epoch)
    seen = []
    for _ in range(epochs):
        seen.append([])
        for _ in range(steps_per_epoch):
            seen[-1].append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
    return seen


def test_rates_are_those_of_the_programs_for_scanobjectnn():
    for number, steps in enumerate(rates(EpochCosine(epochs=EPOCHS), EPOCHS), start=1):
        assert steps == pytest.approx([clock_value(number - 1)] * 3, rel=1e-12), number


def test_rates_are_those_of_the_programs_for_modelnet():
    for number, steps in enumerate(rates(EpochCosine(epochs=EPOCHS, repeat_first=1), EPOCHS + 1)):
        assert steps == pytest.approx([clock_value(max(0, number - 1))] * 3, rel=1e-12), number


def test_a_rate_may_change_with_each_step_as_in_the_program_of_3detr():
    stored = json.loads((Path(__file__).parents[1] / "reference" / "detr3d_schedule.json").read_text())["runs"]
    for run in stored.values():
        given = run["arguments"]
        schedule = EpochCosine(
            given["max_epoch"], given["warm_lr_epochs"], given["warm_lr"], given["final_lr"], by_steps=True
        )
        for fraction, rate in zip(run["fraction"], run["lr"], strict=True):
            assert schedule.rate(fraction * given["max_epoch"], given["base_lr"]) == pytest.approx(rate, rel=1e-9)
    seen = rates(EpochCosine(epochs=4, warmup_epochs=1, by_steps=True), 4, steps_per_epoch=4)
    assert all(len(set(epoch)) == 4 for epoch in seen) and seen[1][0] == pytest.approx(PEAK)


def test_floor_may_differ_from_the_start_of_the_warmup():
    schedule = EpochCosine(epochs=100, warmup_lr=1e-6, min_lr=1e-7)
    assert schedule.rate(0, 1e-3) == 1e-6
    assert schedule.rate(100, 1e-3) == schedule.rate(170, 1e-3) == pytest.approx(1e-7)


@pytest.mark.parametrize("kind", ["epoch", "step"])
def test_parameter_groups_keep_their_own_peaks_in_every_step(kind):
    peaks = [0.1, 0.5, 0.02]
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in peaks]
    groups = [{"params": [parameter], "lr": peak} for parameter, peak in zip(parameters, peaks, strict=True)]
    optimizer = torch.optim.SGD(groups)
    if kind == "epoch":
        schedule = EpochCosine(epochs=6, warmup_epochs=2)
        scheduler = schedule.scheduler(optimizer, 1)
    else:
        schedule = StepCosine(epochs=1, steps_per_epoch=6, warmup_steps=2)
        scheduler = schedule.scheduler(optimizer)
    for step in range(6):
        expected = [schedule.rate(step, peak) for peak in peaks]
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected, rel=1e-9), step
        optimizer.step()
        scheduler.step()


def test_optimizer_gets_the_rate_of_each_step():
    schedule = StepCosine(epochs=2, steps_per_epoch=4, warmup_steps=3, warmup_lr=0.1, min_lr=0.2)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule.scheduler(optimizer)
    seen = []
    for _ in range(9):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert seen == pytest.approx([schedule.rate(step, 1.0) for step in range(9)], rel=1e-12)
    assert seen[:3] == pytest.approx([0.1, 0.4, 0.7]) and seen[8] == pytest.approx(0.2)
    assert seen[3] == pytest.approx(0.2 + 0.4 * (1 + math.cos(math.pi * 3 / 8)))


def test_warmup_longer_than_an_epoch_starts_again_in_the_next():
    schedule = StepCosine(epochs=3, steps_per_epoch=4, warmup_steps=6, warmup_lr=0.0)
    assert [schedule.rate(step, 0.6) for step in range(6)] == pytest.approx([0, 0.1, 0.2, 0.3, 0, 0.1])


@pytest.mark.slow
def test_the_head_learns_alone_at_first(tmp_path):
    model = tiny_act(ActForPointCloudClassification)
    model.act.class_token.requires_grad_(False)  # was frozen before, and stays so
    seen: list[dict[str, torch.Tensor]] = []

    class Seen(HeadFirstCallback):
        def on_epoch_end(self, *_, model, **__):
            seen.append({name: weight.detach().clone() for name, weight in model.named_parameters()})

    rows = [{"points": cloud, "labels": number % 3} for number, cloud in enumerate(clouds(3))]
    settings = {"num_train_epochs": 3, "learning_rate": 1e-2, "report_to": "none", "save_strategy": "no"}
    arguments = TrainingArguments(tmp_path, use_cpu=True, disable_tqdm=True, remove_unused_columns=False, **settings)
    start = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    Trainer(model, arguments, train_dataset=rows, callbacks=[Seen(2)]).train()

    def changed(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> set[str]:
        return {name for name in before if not torch.equal(before[name], after[name])}

    for before, after in ((start, seen[0]), (seen[0], seen[1])):
        assert changed(before, after) and all(name.startswith("classifier") for name in changed(before, after))
    assert any(name.startswith("act.") for name in changed(seen[1], seen[2]))
    frozen = [name for name, weight in model.named_parameters() if not weight.requires_grad]
    assert frozen == ["act.class_token.token", "act.class_token.position"]


def tokenizer_alone(**settings) -> PointTokenizerForPointCloudClassification:
    torch.manual_seed(0)
    settings = {"num_tokens": 8, "tokenizer": "patch", "tokenizer_width": 12, "tokenizer_neighbors": 4, **settings}
    config = PointTokenizerConfig(**{"num_labels": 3, "hidden_size": 12, **settings})
    return PointTokenizerForPointCloudClassification(config)


def arguments_of(folder: Path, **settings) -> TrainingArguments:
    quiet = {"use_cpu": True, "disable_tqdm": True, "report_to": "none", "save_strategy": "no"}
    return TrainingArguments(folder, remove_unused_columns=False, **quiet, **settings)


@pytest.mark.parametrize("indexed", [False, True], ids=["points", "point_index"])
def test_few_tokens_are_the_first_of_all(indexed):
    model, points = tokenizer_alone(token_scale=None).point_tokenizer_model, torch.rand(2, 32, 3)
    index = model.point_indexer(points) if indexed else None
    tokenizer = model.point_tokenizer
    for norm in tokenizer.local.modules():
        norm.eval()  # its statistics would be those of fewer tokens
    every = tokenizer(points, point_index=index)
    tokenizer.first_tokens = 3
    few = tokenizer(points, point_index=index)
    torch.testing.assert_close(few.tokens, every.tokens[:, :3])
    assert torch.equal(few.centers, every.centers[:, :3]) and torch.equal(few.index, every.index[:, :3])
    tokenizer.eval()
    assert tokenizer(points, point_index=index).tokens.shape == every.tokens.shape


def test_few_tokens_come_first_then_all_and_all_in_evaluation(tmp_path):
    model, seen = tokenizer_alone(), []
    model.point_tokenizer_model.input_tokens.register_forward_hook(
        lambda module, inputs, output: seen.append((module.training, output.shape[1]))
    )
    rows = [{"points": cloud, "labels": number % 3} for number, cloud in enumerate(torch.rand(4, 32, 3))]
    arguments = arguments_of(
        tmp_path,
        num_train_epochs=5,
        per_device_train_batch_size=4,
        eval_strategy="epoch",
        gradient_accumulation_steps=1,
    )
    Trainer(
        model, arguments, train_dataset=rows, eval_dataset=rows, callbacks=[FewTokensFirst({3: 0.4, 5: 0.4})]
    ).train()
    assert [count for training, count in seen if training] == [3, 3, 5, 5, 8]
    assert {count for training, count in seen if not training} == {8}
    # A training that ends early leaves the model with all tokens.
    Trainer(model, arguments_of(tmp_path, max_steps=1), train_dataset=rows, callbacks=[FewTokensFirst({3: 1})]).train()
    assert model.train()(points=torch.rand(2, 32, 3)).logits.shape == (2, 3) and seen[-1] == (True, 8)


@pytest.mark.parametrize(
    ("shares", "settings", "message"),
    [
        ({0: 0.5}, {}, "tokens=0"),
        ({3: 0}, {}, "share of 3 tokens=0"),
        ({3: 0.5, 5: 0.6}, {}, "sum of the shares=1.1"),
        ({9: 0.5}, {}, "tokens=9; expected at most num_tokens=8"),
        ({3: 0.5}, {"tokenizer": "point_pn", "tokenizer_width": None, "hidden_size": 24}, "has no tokenizer"),
    ],
)
def test_few_tokens_need_a_tokenizer_with_more(shares, settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        callback = FewTokensFirst(shares)
        callback.on_train_begin(arguments_of(tmp_path), TrainerState(), TrainerControl(), tokenizer_alone(**settings))


def test_shares_of_steps_add_up_in_spite_of_rounding():
    callback = FewTokensFirst({1: 0.1, 2: 0.2, 3: 0.4, 4: 0.3})
    assert [callback.tokens_at(step / 10) for step in range(10)] == [1, 2, 2, 3, 3, 3, 3, 4, 4, 4]
    assert FewTokensFirst({1: 0.7}).tokens_at(0.7) is None


def test_training_arguments_have_few_tokens_first(tmp_path):
    arguments = PointTrainingArguments(str(tmp_path), few_tokens='{"3": 0.5}', eval_strategy="no", save_strategy="no")
    trainer = PointTrainer(tokenizer_alone(), arguments, train_dataset=[])
    (callback,) = [one for one in trainer.callback_handler.callbacks if isinstance(one, FewTokensFirst)]
    assert arguments.few_tokens == callback.shares == {3: 0.5}
    plain = PointTrainingArguments(str(tmp_path), few_tokens="{}", eval_strategy="no", save_strategy="no")
    assert plain.few_tokens is None
    arguments.cuda_graphs = True
    with pytest.raises(ValueError, match="few_tokens: --cuda_graphs"):
        callback.on_train_begin(arguments, TrainerState(), TrainerControl(), tokenizer_alone())
