"""The models of ACT's two stages, built from the arguments of their programs."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features

from hf_any3d import PointCloudProcessor
from hf_any3d.training.pretraining import (
    AutoencoderTrainingArguments,
    StudentArguments,
    TeacherArguments,
    build_autoencoder,
    evaluate_pretraining,
    pretraining_rows,
)
from hf_any3d.training.rows import training_rows
from tests.errors import raises
from tests.tiny_encoders import LAYERS, saved_encoder


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
