"""Evaluation of saved models."""

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value

from hf_any3d import PointCloudProcessor
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.protocol import ProtocolArguments
from hf_any3d.training.saved_models import EVALUATIONS, EvaluationSettings, evaluate_classifier
from tests.errors import raises
from tests.tiny_autoencoders import tiny_autoencoder
from tests.tiny_encoders import tiny_model, tiny_part_model, tiny_scene_model

NAMES = ["ball", "box", "rod"]


def rows(names: list[str] = NAMES) -> Dataset:
    points = np.random.default_rng(0).standard_normal((6, 70, 3)).astype(np.float32)
    features = Features({"points": Array2D((70, 3), "float32"), "label": ClassLabel(names=names)})
    return Dataset.from_dict({"points": list(points), "label": [0, 1, 2, 0, 1, 2]}, features=features)


def saved(folder, **settings) -> str:
    model = tiny_model(id2label=dict(enumerate(NAMES)), **settings)
    # Larger logits, since those of an untrained head hardly differ.
    torch.nn.init.normal_(model.classifier.out.weight, std=2.0)
    model.save_pretrained(folder)
    PointCloudProcessor(num_points=48).save_pretrained(folder)
    return str(folder)


def judged(model: str, dataset: Dataset, **how) -> dict[str, float]:
    settings = EvaluationSettings(DataArguments(), ProtocolArguments(), use_cpu=True, **how)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return evaluate_classifier(model, dataset, "test", settings)[0]["test"]


@pytest.mark.slow
def test_order_of_clouds_does_not_matter_for_batch_dependent_models(tmp_path):
    order = [0, 3, 1, 4, 2, 5]
    for name, settings in (("sound", {}), ("faithful", {"released": {"attention_axis": "batch"}})):
        model = saved(tmp_path / name, **settings)
        assert judged(model, rows()) == pytest.approx(judged(model, rows().select(order)), rel=1e-4)
    together = [judged(model, some, batch_size=2)["loss"] for some in (rows(), rows().select(order))]
    assert together[0] != pytest.approx(together[1], rel=1e-4)


@pytest.mark.parametrize("pose", [None, "upright"])
def test_a_direction_that_is_given_is_that_of_all_clouds(tmp_path, pose):
    model = saved(tmp_path / "model")
    config = json.loads(Path(model, "config.json").read_text(encoding="utf-8")) | {"expected_pose": pose}
    Path(model, "config.json").write_text(json.dumps(config), encoding="utf-8")
    upright = rows()
    lying = upright.map(lambda row: {"points": turn_up_axis(np.float32(row["points"]), "y", "z")})
    expected = pytest.approx(judged(model, upright, up_axis="y"), rel=1e-4)
    assert judged(model, lying, up_axis="z") == expected
    assert judged(model, lying, up_axis="y") != expected


def test_other_classes_than_the_models_are_refused(tmp_path):
    model = saved(tmp_path / "model")
    with raises(ValueError, naming="'cone'"):
        judged(model, rows(["ball", "box", "cone"]))


def labeled(labels, label=None) -> Dataset:
    features = {"points": Array2D((70, 3), "float32"), "labels": List(labels)}
    columns = {"points": list(np.random.default_rng(0).random((2, 70, 3), np.float32)), "labels": [[0] * 70, [1] * 70]}
    if label is not None:
        features["label"], columns["label"] = label, [0, 1]
    return Dataset.from_dict(columns, features=Features(features))


def evaluated(command: str, model, folder, dataset: Dataset) -> tuple[dict, dict]:
    model.save_pretrained(folder)
    PointCloudProcessor(num_points=48).save_pretrained(folder)
    settings = EvaluationSettings(DataArguments(), ProtocolArguments(), use_cpu=True)
    metrics, by_class = EVALUATIONS[command](str(folder), dataset, "test", settings)
    return metrics["test"], by_class.get("test", {})


def test_scenes_are_judged_by_the_names_of_the_model_or_by_numbers(tmp_path):
    model = tiny_scene_model(id2label=dict(enumerate(NAMES)))
    named, numbered = (
        evaluated("segment", model, tmp_path, labeled(labels)) for labels in (ClassLabel(names=NAMES), Value("int64"))
    )
    assert named[0] == pytest.approx(numbered[0]) and {"mean_iou", "accuracy", "loss"} <= named[0].keys()
    for wrong in (labeled(ClassLabel(names=["a", "b"])), rows()):
        with pytest.raises(ValueError, match="split test has the classes of points .*; expected the model's"):
            evaluated("segment", model, tmp_path, wrong)


def test_parts_are_judged_with_the_categories_of_the_model(tmp_path):
    parts = ["top", "leg", "base", "pole", "shade"]
    model, labels = tiny_part_model(id2label=dict(enumerate(parts))), ClassLabel(names=parts)
    metrics, by_part = evaluated("segment", model, tmp_path, labeled(labels, ClassLabel(names=["table", "lamp"])))
    assert {"instance_miou", "category_miou"} <= metrics.keys() and {*by_part} <= {*parts}
    for other in (ClassLabel(names=["lamp", "table"]), None):
        with raises(ValueError, naming="'table', 'lam"):
            evaluated("segment", model, tmp_path, labeled(labels, other))


@pytest.mark.parametrize("label", [ClassLabel(names=NAMES), Value("int64")])
def test_reconstructions_are_compared_with_the_clouds_by_class(label, tmp_path):
    metrics, by_class = evaluated("reconstruct", tiny_autoencoder(None), tmp_path, rows().cast_column("label", label))
    assert {"chamfer_l1", "f_score", "codes_used", "loss"} <= metrics.keys()
    assert list(by_class) == (NAMES if isinstance(label, ClassLabel) else [])
