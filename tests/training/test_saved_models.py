"""Evaluation of saved models."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, List, Value
from transformers import default_data_collator

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.evaluation.reconstruction import CompareWithClouds, ComputeReconstructionMetrics
from hf_any3d.training import saved_models
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.pretraining import UnlabeledRows
from hf_any3d.training.protocol import ProtocolArguments
from hf_any3d.training.saved_models import EvaluationSettings, evaluate_classifier
from tests.errors import raises
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


def test_order_of_clouds_does_not_matter_for_batch_dependent_models(tmp_path):
    order = [0, 3, 1, 4, 2, 5]
    for name, settings in (("sound", {}), ("faithful", {"attention_axis": "batch"})):
        model = saved(tmp_path / name, **settings)
        assert judged(model, rows()) == pytest.approx(judged(model, rows().select(order)), rel=1e-4)
    together = [judged(model, some, batch_size=2)["loss"] for some in (rows(), rows().select(order))]
    assert together[0] != pytest.approx(together[1], rel=1e-4)


def test_other_classes_than_the_models_are_refused(tmp_path):
    model = saved(tmp_path / "model")
    with raises(ValueError, naming="'cone'"):
        judged(model, rows(["ball", "box", "cone"]))


@pytest.fixture
def opened(monkeypatch):
    """A function that opens a given model by any name, and notes what a function of the module is called with."""

    def set_up(model, function):
        calls = []
        found = model, PointCloudProcessor(num_points=48)
        monkeypatch.setattr(saved_models, "_open", lambda auto_class, name, hub: found if name == "me/x" else None)
        monkeypatch.setattr(
            saved_models, function, lambda *given, **more: calls.append((given, more)) or ("figures", "classes")
        )
        return calls

    return set_up


def settings(**given) -> EvaluationSettings:
    return EvaluationSettings(DataArguments(), ProtocolArguments(), use_cpu=True, **given)


@pytest.mark.parametrize(
    ("label", "names", "numbers"), [(ClassLabel(names=NAMES), NAMES, [0, 1, 2] * 2), (Value("int64"), [], None)]
)
def test_reconstructions_are_compared_with_the_clouds_by_class(opened, label, names, numbers):
    calls = opened(tiny_model(), "evaluate_reconstruction")
    given = rows().cast_column("label", label)
    assert saved_models.evaluate_autoencoder("me/x", given, "test", settings()) == ("figures", "classes")
    (((trainer, splits, categories, shown, ignored), _),) = calls
    assert (categories, shown) == ({"test": numbers}, names) and "loss" not in ignored and "whole_fine" not in ignored
    assert isinstance(splits["test"], UnlabeledRows) and splits["test"][0].keys() == {"points"}
    assert trainer.args.label_names == ["points"] and isinstance(trainer.compute_metrics, ComputeReconstructionMetrics)
    assert isinstance(trainer.preprocess_logits_for_metrics, CompareWithClouds)


def labeled(labels, label=None) -> Dataset:
    features = {"points": Array2D((70, 3), "float32"), "labels": List(labels)}
    columns = {"points": list(np.random.default_rng(0).random((2, 70, 3), np.float32)), "labels": [[0] * 70, [1] * 70]}
    if label is not None:
        features["label"], columns["label"] = label, [0, 1]
    return Dataset.from_dict(columns, features=Features(features))


def test_scenes_are_judged_by_the_names_of_the_model_or_by_numbers(opened):
    model = tiny_scene_model(id2label=dict(enumerate(NAMES)))
    calls = opened(model, "evaluate_segmentation")
    for labels in (ClassLabel(names=NAMES), Value("int64")):
        saved_models.evaluate_segmenter("me/x", labeled(labels), "test", settings(batch_size=5, seed=3))
    for (trainer, splits, names, parts), _ in calls:
        assert (names, parts) == (NAMES, None) and "category" not in splits["test"][0]
        assert trainer.args.label_names == ["labels"] and trainer.data_collator is default_data_collator
        assert (trainer.args.per_device_eval_batch_size, trainer.args.seed) == (5, 3) and trainer.model is model
    for wrong in (labeled(ClassLabel(names=["a", "b"])), rows()):
        with pytest.raises(ValueError, match="split test has the classes of points .*; expected the model's"):
            saved_models.evaluate_segmenter("me/x", wrong, "test", settings())


def test_parts_are_judged_with_the_categories_of_the_model(opened):
    parts = ["top", "leg", "base", "pole", "shade"]
    calls = opened(tiny_part_model(id2label=dict(enumerate(parts))), "evaluate_segmentation")
    labels, categories = ClassLabel(names=parts), ClassLabel(names=["table", "lamp"])
    saved_models.evaluate_segmenter("me/x", labeled(labels, categories), "test", settings())
    (((trainer, splits, names, category_parts), _),) = calls
    assert names == parts and [list(own) for own in category_parts] == [[0, 1], [2, 3, 4]]
    assert trainer.args.label_names == ["labels", "category"] and splits["test"][-1 % len(splits["test"])]["category"]
    for other in (ClassLabel(names=["lamp", "table"]), None):
        with raises(ValueError, naming="'table', 'lam"):
            saved_models.evaluate_segmenter("me/x", labeled(labels, other), "test", settings())


def test_class_names_are_asked_for_as_words(opened):
    calls = opened(tiny_model().train(), "evaluate_class_names")
    found = saved_models.evaluate_zero_shot("me/x", rows(["night_stand", "box", "rod"]), "test", settings())
    assert found == ({"test": "figures"}, {"test": "classes"})
    (((model, judged, names), more),) = calls
    assert names == ["night stand", "box", "rod"] and more == {"batch_size": 32}
    assert len(judged) == 6
    with raises(ValueError, naming="ClassLabel"):
        saved_models.evaluate_zero_shot("me/x", rows().cast_column("label", Value("int64")), "test", settings())


@pytest.mark.parametrize(
    ("own", "given", "size"), [({}, None, 32), ({"attention_axis": "batch"}, None, 1), ({}, 7, 7)]
)
def test_batches_are_large_unless_clouds_of_a_batch_are_computed_together(own, given, size):
    with saved_models._trainer(tiny_model(**own), settings(batch_size=given)) as trainer:
        assert trainer.args.per_device_eval_batch_size == size and trainer.args.label_names == ["labels"]
        folder = trainer.args.output_dir
        assert not trainer.args.load_best_model_at_end and trainer.args.save_strategy == "no"
    assert not Path(folder).exists()


@pytest.mark.parametrize(("given", "expected"), [(None, 32), (5, 5)])
def test_the_trainer_of_an_evaluation_writes_nothing_that_stays(given, expected):
    with saved_models._trainer(tiny_model(), settings(batch_size=given, seed=7), ("some", "names")) as trainer:
        args = trainer.args
        names = ("per_device_eval_batch_size", "seed", "use_cpu", "load_best_model_at_end", "report_to", "label_names")
        assert [getattr(args, name) for name in names] == [expected, 7, True, False, [], ["some", "names"]]
        assert (args.eval_strategy, args.save_strategy) == ("no", "no") and Path(args.output_dir).is_dir()
        assert isinstance(trainer.data_collator, PointCloudCollator)
    assert not Path(args.output_dir).exists()
    with saved_models._trainer(tiny_model(), settings(), data_collator=default_data_collator) as trainer:
        assert trainer.data_collator is default_data_collator and trainer.args.label_names == ["labels"]
        assert trainer.args.seed == 0
