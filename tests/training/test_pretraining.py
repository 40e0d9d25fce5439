"""The models of ACT's two stages, built from the arguments of their programs."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features

from hf_any3d import ActAutoencoder, PointCloudProcessor
from hf_any3d.model_card.run_report import TEST_CHOOSES
from hf_any3d.training import pretraining, program
from hf_any3d.training.pretraining import (
    AutoencoderTrainingArguments,
    LinearProbe,
    PretrainingDataArguments,
    ProbeArguments,
    ProbeCallback,
    StudentArguments,
    TeacherArguments,
    build_autoencoder,
    evaluate_pretraining,
    load_splits,
    pretraining_rows,
)
from hf_any3d.training.rows import evaluation_rows, training_rows
from tests.errors import raises
from tests.tiny_encoders import LAYERS, saved_encoder


def test_every_argument_about_the_teacher_reaches_it(monkeypatch):
    asked = {}

    def open_teacher(name, **settings):
        asked.update(settings, name=name)

    monkeypatch.setattr(ActAutoencoder, "from_teacher_pretrained", open_teacher)
    given = {"tower": "text", "teacher_revision": "v1", "teacher_layers": 2, "attn_implementation": "eager"}
    build_autoencoder(TeacherArguments("me/teacher", model_config='{"num_codes": 8}', **given), num_groups=4)
    assert asked == {
        **{"name": "me/teacher", "tower": "text", "revision": "v1", "num_layers": 2, "attn_implementation": "eager"},
        **{"num_codes": 8, "num_groups": 4},
    }


def test_without_a_teacher_the_autoencoder_is_plain():
    sizes = {"num_groups": 4, "group_size": 4, "num_codes": 8, "model_config": None}
    arguments = TeacherArguments("none", model_config={name: value for name, value in sizes.items() if value})
    assert build_autoencoder(arguments).config.encoder_config is None


@pytest.mark.parametrize("given", [{"random_teacher": True}, {"tower": "text"}, {"teacher_layers": 2}])
def test_without_a_teacher_its_settings_are_refused(given):
    with raises(ValueError, naming="--teacher"):
        TeacherArguments("none", **given)


def test_a_random_teacher_has_the_shape_of_the_named_one():
    sizes = {"num_groups": 4, "group_size": 4, "num_codes": 8}
    source, given = saved_encoder("bert"), {"attn_implementation": "eager", "model_config": sizes}
    models = [
        build_autoencoder(
            TeacherArguments(source, random_teacher=True, teacher_layers=layers, **given), hidden_size=24
        )
        for layers in (None, 1)
    ]
    assert [model.config.encoder_config.num_hidden_layers for model in models] == [LAYERS, 1]
    assert models[0].config.num_codes == 8 and models[0].config._attn_implementation == "eager"
    assert (
        build_autoencoder(
            TeacherArguments(saved_encoder("clip"), random_teacher=True, tower="text", model_config=sizes)
        ).config.encoder_tower
        == "text"
    )


def test_short_arguments_are_settings_of_the_student():
    given = StudentArguments("a", mask_ratio=0.5, mask_type="block", distillation_loss="l2", model_config={"x": 1})
    assert given.model_config == {"x": 1, "mask_ratio": 0.5, "mask_type": "block", "distillation_loss": "l2"}
    assert StudentArguments("a").model_config == {}
    with raises(ValueError, naming="--probe_every"):
        ProbeArguments(probe_every=-1)


def test_schedules_go_from_start_to_end_in_their_steps(tmp_path):
    settings = {"temperature_start": 2.0, "temperature_end": 0.5, "temperature_steps": 10}
    settings |= {"kl_weight_end": 0.3, "kl_weight_delay": 5, "kl_weight_steps": 10, "use_cpu": True}
    arguments = AutoencoderTrainingArguments(str(tmp_path), **settings)
    schedules = arguments.schedules()
    temperature, weight = schedules["temperature"], schedules["kl_weight"]
    assert (temperature(0), temperature(10), temperature(99)) == pytest.approx((2.0, 0.5, 0.5))
    assert 0.5 < temperature(9) < temperature(1) < 2.0
    assert (weight(0), weight(5), weight(15), weight(99)) == pytest.approx((0, 0, 0.3, 0.3)) and 0 < weight(10) < 0.3
    assert arguments.schedule_facts() == {
        "temperature": "2 to 0.5 in 10 steps", "kl_weight": "0 to 0.3 in 10 steps after 5"
    }  # fmt: skip


@pytest.fixture(scope="module")
def rows() -> Dataset:
    points = np.random.default_rng(0).standard_normal((4, 30, 3)).astype(np.float32)
    return Dataset.from_dict({"points": list(points)}, features=Features({"points": Array2D((30, 3), "float32")}))


def test_rows_of_pretraining_have_no_labels(rows):
    processor = PointCloudProcessor(num_points=20)
    made, plain = (build(rows, processor, ["scale"], seed=3) for build in (pretraining_rows, training_rows))
    assert made[2].keys() == {"points"}
    np.testing.assert_array_equal(made[2]["points"], plain[2]["points"])


@pytest.mark.parametrize("on_test", [True, False])
def test_weights_are_selected_on_the_test_split_on_request(rows, monkeypatch, on_test):
    splits = DatasetDict(train=rows, test=rows.select([0]))
    monkeypatch.setattr(program, "load_splits", lambda data: (splits, "given"))
    data = PretrainingDataArguments(select_on_test=on_test)
    found, origin = load_splits(data)
    assert ("validation" in found, origin) == ((True, TEST_CHOOSES) if on_test else (False, "given"))
    assert data.judged_splits() == (("test",) if on_test else ("validation", "test"))


def test_losses_and_probes_of_splits_are_one_result():
    logged = []
    trainer = SimpleNamespace(
        model="model",
        evaluate=lambda rows, metric_key_prefix: {f"{metric_key_prefix}_loss": len(rows), "epoch": 1},
        log_metrics=lambda *given: logged.append(given),
    )
    probe = SimpleNamespace(accuracies=lambda model, quiet: {"test": 0.5, "other": 0.25} if not quiet else {})
    assert evaluate_pretraining(trainer, {"validation": "ab"}, None) == ({"validation": {"loss": 2.0}}, {})
    metrics, _ = evaluate_pretraining(trainer, {"validation": "ab", "test": "a"}, probe)
    expected = {"validation": {"loss": 2.0}, "test": {"loss": 1.0, "probe_accuracy": 0.5}}
    assert metrics == expected | {"other": {"probe_accuracy": 0.25}}
    assert logged[-2:] == [
        ("test", {"test_loss": 1.0, "test_probe_accuracy": 0.5}), ("other", {"other_probe_accuracy": 0.25})
    ]  # fmt: skip


def test_a_probe_is_logged_every_few_epochs_of_the_first_process(rows, monkeypatch):
    probe = object.__new__(LinearProbe)
    vars(probe).update(
        splits=DatasetDict(train=rows, validation=rows, test=rows), processor=None, batch_size=3, cost=2
    )
    monkeypatch.setattr(LinearProbe, "__post_init__", lambda self: None)
    monkeypatch.setattr(LinearProbe, "accuracies", lambda self, model: {"validation": model})
    logged = []
    callback = ProbeCallback(SimpleNamespace(log=logged.append), probe, 3)
    assert set(callback.probe.splits) == {"train", "validation"} and callback.probe.batch_size == 3
    for epoch in (1.0, 2.0, 2.9999, 4.0, 6.0001):
        for is_first in (True, False):
            state = SimpleNamespace(epoch=epoch, is_world_process_zero=is_first)
            callback.on_epoch_end(None, state, None, model=epoch)
    assert logged == [{"eval_probe_accuracy": 2.9999}, {"eval_probe_accuracy": 6.0001}]


def test_a_probe_standardizes_features_and_has_its_cost(monkeypatch):
    made = []
    machine = pretraining._import_sklearn()[2]
    parts = pretraining._import_sklearn()[:2]
    monkeypatch.setattr(
        pretraining, "_import_sklearn", lambda: (*parts, lambda **given: made.append(given) or machine(**given))
    )
    generator = np.random.default_rng(0)
    features = generator.normal(size=(40, 2)) * (1, 1000) + (5, 0)
    labels = (features[:, 0] > 5).astype(int)
    rows = {name: {"label": labels[part]} for name, part in (("train", slice(0, 30)), ("test", slice(30, 40)))}
    probe = object.__new__(LinearProbe)
    vars(probe).update(splits=rows, cost=0.5)
    monkeypatch.setattr(
        LinearProbe,
        "_features",
        lambda self, model, rows, split, quiet: features[:30] if split == "train" else features[30:],
    )
    assert probe.accuracies(torch.nn.Identity())["test"] > 0.7
    assert made == [{"C": 0.5, "random_state": 0, "max_iter": 10_000}]


def labeled_splits(*names: str) -> DatasetDict:
    points = np.random.default_rng(0).standard_normal((4, 30, 3)).astype(np.float32)
    features = Features({"points": Array2D((30, 3), "float32"), "label": ClassLabel(names=["a", "b"])})
    columns = {"points": list(points), "label": [0, 1, 0, 1]}
    return DatasetDict({name: Dataset.from_dict(columns, features=features) for name in names})


PROCESSOR = PointCloudProcessor(num_points=20)


def test_features_of_a_probe_are_those_of_the_model_at_rest():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.sizes = torch.nn.Parameter(torch.ones(())), []

        def probe_features(self, points):
            assert not self.training and not torch.is_grad_enabled()
            self.sizes.append(len(points))
            return (points.mean(dim=1) + torch.rand(1)).double()

    splits = labeled_splits("train", "validation")
    probe = LinearProbe(splits, PROCESSOR, batch_size=3)
    model = Model().train()
    torch.manual_seed(5)
    found = probe._features(model, splits["train"], "train", True)
    torch.manual_seed(5)
    drawn = torch.get_rng_state()
    rows = np.stack([row["points"] for row in evaluation_rows(splits["train"], PROCESSOR).__getitems__([0, 1, 2, 3])])
    noise = torch.rand(2).numpy()
    np.testing.assert_allclose(found, rows.mean(axis=1) + noise[[0, 0, 0, 1], None], atol=1e-6)
    assert found.dtype == np.float32 and model.sizes == [3, 1] and model.training
    torch.set_rng_state(drawn)
    probe._features(model.eval(), splits["train"], "train", True)
    assert not model.training and torch.equal(torch.get_rng_state(), drawn)
