"""Evaluation of saved models."""

import warnings

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features

from hf_any3d import PointCloudProcessor
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.protocol import ProtocolArguments
from hf_any3d.training.saved_models import EvaluationSettings, evaluate_classifier
from tests.tiny_encoders import tiny_model

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


def test_order_of_clouds_does_not_matter_for_batch_dependent_models(tmp_path):
    order = [0, 3, 1, 4, 2, 5]
    for name, settings in (("sound", {}), ("faithful", {"attention_axis": "batch"})):
        model = saved(tmp_path / name, **settings)
        assert judged(model, rows()) == pytest.approx(judged(model, rows().select(order)), rel=1e-4)
    together = [judged(model, some, batch_size=2)["loss"] for some in (rows(), rows().select(order))]
    assert together[0] != pytest.approx(together[1], rel=1e-4)


def test_other_classes_than_the_models_are_refused(tmp_path):
    model = saved(tmp_path / "model")
    with pytest.raises(ValueError, match="split test has the classes .*'cone'.*; expected the model's, .*'rod'"):
        judged(model, rows(["ball", "box", "cone"]))
