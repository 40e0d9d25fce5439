"""The models of ACT's two stages, built from the arguments of their programs."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features

from hf_any3d.training.pretraining import StudentArguments, TeacherArguments, build_autoencoder, evaluate_pretraining
from tests.errors import raises


def test_without_a_teacher_the_autoencoder_is_plain():
    sizes = {"num_groups": 4, "group_size": 4, "num_codes": 8, "model_config": None}
    arguments = TeacherArguments("none", model_config={name: value for name, value in sizes.items() if value})
    assert build_autoencoder(arguments).config.encoder_config is None


@pytest.mark.parametrize("given", [{"random_teacher": True}, {"tower": "text"}, {"teacher_layers": 2}])
def test_without_a_teacher_its_settings_are_refused(given):
    with raises(ValueError, naming="--teacher"):
        TeacherArguments("none", **given)


def test_short_arguments_are_settings_of_the_student():
    given = StudentArguments("a", mask_ratio=0.5, mask_type="block", distillation_loss="l2", model_config={"x": 1})
    assert given.model_config == {"x": 1, "mask_ratio": 0.5, "mask_type": "block", "distillation_loss": "l2"}
    assert StudentArguments("a").model_config == {}


@pytest.fixture(scope="module")
def rows() -> Dataset:
    points = np.random.default_rng(0).standard_normal((4, 30, 3)).astype(np.float32)
    return Dataset.from_dict({"points": list(points)}, features=Features({"points": Array2D((30, 3), "float32")}))


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
