"""Parameters with weight decay: the published rule, and its use in Trainer."""

import json
import math

import pytest
import torch
from peft import get_peft_model
from torch import nn
from transformers import AutoConfig

from hf_any3d.conversions.any2point import VARIANTS
from hf_any3d.modeling.any2point import Any2PointConfig, Any2PointForPointCloudClassification
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.trainer import PointTrainer, decaying_parameters, scale_learning_rates
from hf_any3d.tuners import GuidedAdapterConfig
from tests.errors import raises
from tests.modeling.any2point.reference_case import FOLDER
from tests.turns import some

SPARED = {"scan": [], "modelnet": [r"class_token\..*token$"]}


def model_without_memory(name: str) -> nn.Module:
    """Build a released program's model in full size on the meta device."""
    variant = VARIANTS[name]
    with torch.device("meta"):
        encoder_config = AutoConfig.for_model(**variant.encoder)
        model = Any2PointForPointCloudClassification(Any2PointConfig(encoder_config=encoder_config, **variant.model))
        return get_peft_model(model, GuidedAdapterConfig(**variant.adapter))


def decayed_by_the_program(name: str) -> int:
    """Count the weights that decay in the released program, by its rule and shapes."""
    manifest = json.loads((FOLDER / f"any2point_{name.replace('-', '_')}.json").read_text())
    shapes = {key: manifest["state_dict"][key][0] for key in manifest["trainable"]}
    spared = ("cls_token",) if name.endswith("modelnet") else ()
    return sum(
        math.prod(shape)
        for key, shape in shapes.items()
        if len(shape) > 1 and not key.endswith(".bias") and key.split(".")[-1] not in spared
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", some(VARIANTS, left_out=VARIANTS.keys() - {"clip-scan", "clip-modelnet"}))
def test_number_of_decaying_weights_is_that_of_the_released_program(name):
    model = model_without_memory(name)
    decaying = set(decaying_parameters(model, SPARED[name.split("-")[1]]))
    ours = sum(p.numel() for key, p in model.named_parameters() if p.requires_grad and key in decaying)
    assert ours == decayed_by_the_program(name)


def test_norms_biases_and_vectors_never_decay():
    model = model_without_memory("clip-scan")
    decaying = decaying_parameters(model)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    for part in ("norm_weight", "qkv_bias", "out_bias", "view_norm", "voxel_norm", "output_norm"):
        assert any(part in name for name in trained) and not any(part in name for name in decaying), part
    for part in ("qkv_weight", "adapter_down.default.weight", "token", "position", "classifier"):
        assert any(part in name for name in decaying), part


def test_pattern_without_a_match_is_an_error():
    with raises(ValueError, naming="no_weight_decay"):
        decaying_parameters(nn.Linear(2, 2), ["cls_token"])
    with raises(ValueError, naming="learning_rate_factors"):
        scale_learning_rates(torch.optim.SGD(nn.Linear(2, 2).parameters()), nn.Linear(2, 2), {"cls_token": 10})


class Rows(torch.utils.data.Dataset):
    """Ten rows: three complete batches of three, and one more row."""

    def __len__(self) -> int:
        return 10

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"x": torch.full((4,), float(index)), "labels": torch.tensor(index % 2)}


class Toy(nn.Module):
    """Minimal model with four inputs."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 2), nn.LayerNorm(2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.norm(self.linear(x))
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def trainer(tmp_path, **settings) -> PointTrainer:
    settings = {"per_device_train_batch_size": 3, "per_device_eval_batch_size": 3, "num_train_epochs": 4} | settings
    arguments = PointTrainingArguments(
        str(tmp_path),
        eval_strategy="no",
        load_best_model_at_end=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        **settings,
    )
    return PointTrainer(Toy(), arguments, train_dataset=Rows(), eval_dataset=Rows())


def groups(trainer: PointTrainer) -> dict[float, int]:
    """Return the number of parameters for each weight decay."""
    made = trainer.create_optimizer().param_groups
    return {group["weight_decay"]: sum(p.numel() for p in group["params"]) for group in made}


def test_trainer_builds_the_requested_groups(tmp_path):
    assert groups(trainer(tmp_path, weight_decay_on="matrices", weight_decay=0.05)) == {0.05: 8, 0.0: 6}
    assert groups(trainer(tmp_path, weight_decay_on="all", weight_decay=0.05)) == {0.05: 14, 0.0: 0}
    spared = trainer(tmp_path, weight_decay_on="matrices", no_weight_decay=["linear"], weight_decay=0.05)
    assert groups(spared) == {0.05: 0, 0.0: 14}


def test_chosen_parameters_have_their_own_learning_rate_and_always_decay(tmp_path):
    settings = {"weight_decay_on": "matrices", "weight_decay": 0.05, "learning_rate": 1e-3}
    factors = {"linear.bias": 10, "linear": 0.5}
    run = trainer(tmp_path, **settings, always_weight_decay=["linear.bias"], learning_rate_factors=factors)
    names = {id(parameter): name for name, parameter in run.model.named_parameters()}
    found = {
        names[id(parameter)]: (group["weight_decay"], group["lr"])
        for group in run.create_optimizer().param_groups
        for parameter in group["params"]
    }
    assert found == {
        "linear.weight": (0.05, 5e-4),
        "linear.bias": (0.05, 1e-2),
        **dict.fromkeys(("norm.weight", "norm.bias"), (0.0, 1e-3)),
    }
    # A saved state fits the groups of another run.
    again = trainer(tmp_path, **settings, always_weight_decay=["linear.bias"], learning_rate_factors=factors)
    again.create_optimizer().load_state_dict(run.optimizer.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize(("drop_last", "steps"), [(True, 3), (False, 4)])
def test_trainer_follows_the_epoch_schedule_and_evaluates_all_rows(tmp_path, drop_last, steps):
    schedule = {"warmup_epochs": 1, "warmup_lr": 1e-6, "min_lr": 1e-5}
    run = trainer(tmp_path, epoch_cosine=schedule, dataloader_drop_last=drop_last, learning_rate=0.1, logging_steps=1)
    run.train()
    expected = [run.args.epoch_schedule.rate(epoch, 0.1) for epoch in range(4) for _ in range(steps)]
    rates = [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]
    assert rates == pytest.approx(expected, rel=1e-6)
    assert run.args.epoch_schedule.epochs == 4
    assert len(run.predict(Rows()).predictions) == 10
    assert run.args.dataloader_drop_last is drop_last


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"weight_decay_on": "some"}, "weight_decay_on='some'; expected one of 'trainer'"),
        ({"no_weight_decay": ["token"]}, "--no_weight_decay needs --weight_decay_on matrices"),
        ({"always_weight_decay": ["bias"], "weight_decay_on": "all"}, "--always_weight_decay needs"),
        ({"epoch_cosine": {"floor": 1}}, "unexpected keyword argument 'floor'"),
    ],
)
def test_errors_name_invalid_settings(tmp_path, settings, text):
    with pytest.raises((ValueError, TypeError), match=text):
        trainer(tmp_path, **settings)


def rates(run: PointTrainer) -> list[float]:
    return [entry["learning_rate"] for entry in run.state.log_history if "learning_rate" in entry]


@pytest.mark.parametrize(("drop_last", "accumulated"), [(True, 2), (False, 3)])
def test_an_incomplete_step_at_the_end_of_an_epoch_counts_as_one(tmp_path, drop_last, accumulated):
    batches = 3 if drop_last else 4
    run = trainer(
        tmp_path,
        epoch_cosine={"warmup_epochs": 1},
        dataloader_drop_last=drop_last,
        gradient_accumulation_steps=accumulated,
        logging_steps=1,
        num_train_epochs=3,
    )
    run.train()
    steps = math.ceil(batches / accumulated)
    expected = [
        run.args.epoch_schedule.rate(epoch, run.args.learning_rate) for epoch in range(3) for _ in range(steps)
    ]
    assert rates(run) == pytest.approx(expected)
    # Trained again, it begins anew.
    run.train()
    assert rates(run)[-len(expected) :] == pytest.approx(expected)


def test_a_scheduler_that_is_given_wins_over_the_arguments(tmp_path):
    run = trainer(tmp_path, epoch_cosine={"warmup_epochs": 1}, max_steps=2, logging_steps=1)
    optimizer = torch.optim.SGD(run.model.parameters(), lr=0.5)
    run.optimizer, run.lr_scheduler = optimizer, torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    run.train()
    assert rates(run) == [0.5, 0.5]
