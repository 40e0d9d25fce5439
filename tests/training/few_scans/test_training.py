"""What learning few scans makes of its options, and how it judges and describes what it has learned."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features

from hf_any3d import PointCloudProcessor
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.training.arguments import DataArguments
from hf_any3d.training.few_scans import features, training
from hf_any3d.training.few_scans.confidence import Estimate
from hf_any3d.training.few_scans.features import compute_bank
from hf_any3d.training.few_scans.linear_head import LinearHead
from hf_any3d.training.few_scans.plan import Plan
from hf_any3d.training.few_scans.scans import Scans
from hf_any3d.training.few_scans.training import (
    CROSS_VALIDATION,
    FewScansArguments,
)
from tests.errors import raises

PLAN = Plan(features=("descriptors",), copies=3, reason="few")


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"heading": "north"}, "--heading 'north'; expected known or unknown"),
        ({"wrap_weight": 0.5}, "--wrap_weight 0.5 with --wrap None; expected 0 to 1, and a wrap"),
        ({"wrap_weight": 0, "wrap": "x"}, "--wrap_weight 0 with --wrap x"),
        ({"wrap_weight": 1, "wrap": "x"}, "--wrap_weight 1 with --wrap x"),
        ({"unlike": -1}, "--unlike -1; expected 0 or more"),
        ({"folds": 1}, "--folds 1; expected at least 2"),
        ({"strength": 0}, "--strength 0; expected more than 0"),
    ],
)
def test_wrong_options_are_refused(given, text):
    with pytest.raises(ValueError, match=text):
        FewScansArguments(**given)
    FewScansArguments(heading="unknown", wrap_weight=0.5, wrap="x", unlike=0, folds=2, strength=0.1)


@pytest.mark.parametrize(
    ("files", "dataset", "axis"),
    [
        (["a.las", "b.LAZ"], "folder", "z"),
        (["a.las", "b.ply"], "folder", None),
        (None, "folder", None),
        (None, "rooms_with_boxes", "z"),
    ],
)
def test_the_up_axis_is_known_from_the_data_or_from_aerial_files(files, dataset, axis):
    rows = Dataset.from_dict({"file": files} if files else {"number": [1, 2]})
    assert training._known_up_axis(DataArguments(dataset_name=dataset, up_axis="x"), rows) == axis


def test_a_new_model_has_the_settings_of_plan_and_data():
    data = DataArguments(features=["xyz", "normals"], up_axis="z")
    model = training._new_model(PLAN, data, FewScansArguments(heading="unknown"))
    config = model.config
    assert (list(config.features), config.copies, config.in_channels) == (["descriptors"], 3, 6)
    assert (config.normals, config.up_axis, config.copy_turn) == (True, "z", 180.0) and not model.training
    plain = training._new_model(PLAN, DataArguments(features=["xyz", "rgb"]), FewScansArguments()).config
    assert (plain.in_channels, plain.normals, plain.copy_turn) == (6, False, PointFeaturesConfig().copy_turn)


def test_parts_that_the_sets_of_features_leave_out_are_refused():
    given = FewScansArguments(feature_sets=["descriptors"], encoder="some")
    with raises(ValueError, naming="--encoder"):
        training._new_model(PLAN, DataArguments(), given)


def test_a_head_of_other_classes_forgets_what_was_learned():
    model = PointFeaturesForPointCloudClassification(PointFeaturesConfig(features=["descriptors"]))
    model.set_side_head(torch.ones(model.config.hidden_size), 0.5)
    training._set_labels(model, ["a", "b", "c"])
    assert model.config.id2label == {0: "a", 1: "b", 2: "c"} and model.config.label2id == {"a": 0, "b": 1, "c": 2}
    assert model.classifier.weight.shape == (3, model.config.hidden_size)
    assert model.side_head is None and model.config.one_sided is False


def labeled(names: list[str], labels: list[int]) -> Dataset:
    return Dataset.from_dict({"label": labels}, features=Features({"label": ClassLabel(names=names)}))


def test_scans_of_classes_that_were_not_learned_and_those_without_a_label_count_as_wrong():
    head = LinearHead(np.eye(2), np.zeros(2), np.zeros(2), np.ones(2))
    rows = labeled(["cone", "stick", "ball", "arch"], [2, 1, 0, 2, 0])
    scores = np.array([[3.0, 0], [0, 3], [3, 0], [0, 3], [0, 3]])
    config = SimpleNamespace(id2label={0: "ball", 1: "stick"}, unknown_share=None)
    model = SimpleNamespace(config=config, score_unknown=lambda features, logits: torch.tensor([0.6, 0, 0, 0, 0]))
    found = training._evaluate(model, head, rows, scores)
    assert found.classes == ["ball", "stick", "cone"] and (found.right, found.total) == (2, 5)
    assert found.how == "its own split"
    # Rows: ball once taken for a stick; cones once for a ball, once for a stick.
    assert found.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [1, 1, 0]]
    assert 100 < found.loss < 1000 and np.isfinite(found.loss)
    config.unknown_share = 0.05
    found = training._evaluate(model, head, rows, scores)
    assert found.classes[-1] == "none of these" and (found.right, found.total) == (1, 5)
    assert "ball taken for none of these (1)" in found.confusion_text()


def scans(labels: list[int], groups: list[int] | None = None) -> Scans:
    count = len(labels)
    groups = list(range(count)) if groups is None else groups
    names = [f"{number}.ply" for number in range(count)]
    return Scans(["ball", "stick"], np.array(labels), np.array(groups), names, names)


def lines(judged, seen=None, channels=("xyz",), unlike=7, **settings) -> list[str]:
    config = SimpleNamespace(
        **{"up_axis": "y", "copy_turn": 10.0, "copies": 1, "features": ["descriptors", "encoder"], "wrap_labels": None}
        | {"unknown_share": 0.039, "unknown_bank_rows": 0}
        | settings
    )
    return training._lines("here", seen or scans([0, 0, 1, 1, 1]), PLAN, judged, config, channels, unlike)


SURE = Estimate(np.diag([2, 3]), ["ball", "stick"], 0.1, "folds")


def test_lines_tell_what_was_seen_chosen_and_found():
    seen, way, sure, confused, unknown = lines({CROSS_VALIDATION: SURE})
    assert seen == "here: 5 scans of 2 classes, 2 (ball) to 3 (stick); 0 near-duplicates; up axis y"
    assert way == "way: frozen descriptors and encoder features, with a linear head; few"
    assert sure == f"accuracy: {SURE.text()}, by folds; the saved model learned from all 5"
    assert confused == "confused: no classes confused"
    assert unknown.startswith("none of these: said of at most 4 % of further scans like these")
    assert lines({CROSS_VALIDATION: SURE}, unknown_share=None)[-1].startswith(
        "none of these: never said, as its level"
    )


def test_lines_tell_of_copies_wraps_and_splits():
    two = lines({CROSS_VALIDATION: SURE, "test": SURE}, scans([0, 1, 1], [0, 1, 1]), copies=2, copy_turn=180.0)
    assert "1 near-duplicates, such as 1.ply and 2.ply" in two[0]
    assert "features, mean of 2 copies, any heading, with a linear head" in two[1]
    assert two[3] == f"test: {SURE.text()}" and len(two) == 6
    assert "mean of 2 copies, heading as scanned, " in lines({}, copies=2, copy_turn=179.0)[1]
    wrapped = lines({}, wrap_labels=2)
    assert "with a linear head, averaged with the answers of a trained wrap; few" in wrapped[1]
    assert wrapped[2].startswith("accuracy: unknown, as no class has two different scans")
    assert wrapped[3].startswith("confused: unknown") and wrapped[4].startswith("none of these: never")


@pytest.mark.parametrize(
    ("given", "tells"),
    [
        ({"channels": ("xyz", "rgb", "normals")}, True),
        ({"channels": ("xyz", "rgb", "normals"), "unlike": 0}, False),
        ({"channels": ("xyz", "rgb", "normals"), "unknown_bank_rows": 7}, False),
        ({"channels": ("xyz",)}, False),
    ],
)
def test_lines_tell_that_nobody_draws_other_channels(given, tells):
    unknown = lines({CROSS_VALIDATION: SURE}, **given)[-1]
    assert unknown.endswith("; it knows no drawn things, which have no rgb, normals") is tells


@pytest.fixture
def model():
    return PointFeaturesForPointCloudClassification(PointFeaturesConfig(features=["descriptors"], copies=3)).eval()


def test_drawn_things_are_computed_without_copies(model, monkeypatch):
    copies = []
    plain = features.compute_features
    monkeypatch.setattr(
        features, "compute_features", lambda *given: copies.append(given[0].config.copies) or plain(*given)
    )
    processor = PointCloudProcessor(num_points=32)
    bank = compute_bank(model, processor, 7)
    assert bank.shape == (7, model.config.hidden_size) and bank.dtype == np.float32
    assert copies == [1] and model.config.copies == 3
    colored = PointCloudProcessor(num_points=32, features=["xyz", "rgb"])
    for none in (compute_bank(model, colored, 7), compute_bank(model, processor, 0)):
        assert none.shape == (0, model.config.hidden_size) and none.dtype == np.float32
    monkeypatch.setattr(features, "compute_features", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        compute_bank(model, processor, 7)
    assert model.config.copies == 3


def examples(count_of_each, width, seed=0):
    generator = np.random.default_rng(seed)
    labels = np.repeat([0, 1], count_of_each)
    values = generator.normal(size=(len(labels), width)) + 3 * labels[:, None]
    processor = PointCloudProcessor(num_points=32)
    return features.Examples(scans(labels.tolist()), values.astype(np.float32), processor, None)


@pytest.mark.parametrize(
    ("counts", "how"),
    [
        (
            (4, 3),
            "cross-validation in 4 folds, by heads that learned from fewer scans, so that some points more can be",
        ),
        ((4, 4), "cross-validation in 4 folds$"),
        ((3, 1), "cross-validation in 3 folds, by heads .* expected, without stick, alone in the class$"),
        ((38, 37), "cross-validation in 10 folds, which also calibrates the scores$"),
        ((37, 37), "cross-validation in 10 folds$"),
    ],
)
def test_an_estimate_tells_where_it_comes_from(model, counts, how):
    training._set_labels(model, ["ball", "stick"])
    given = examples(counts, model.config.hidden_size)
    bank = np.zeros((0, model.config.hidden_size), np.float32)
    head, estimate = training.fit_few_scans(model, given, bank, PLAN, FewScansArguments())
    assert estimate.total == sum(count for count in counts if count > 1)
    assert re.match(how, estimate.how), estimate.how
    # What is alone in its class is known all the same.
    assert model.config.unknown_rows == sum(counts) == len(model.unknown_score.features)
    standard = torch.from_numpy(head.standardize(given.features.astype(np.float64))).float()
    alone = standard[counts[0] :] if counts[1] == 1 else standard[-1:]
    assert any(torch.allclose(row, alone[-1], atol=1e-5) for row in model.unknown_score.features)


def test_nothing_is_estimated_of_classes_with_one_scan(model):
    training._set_labels(model, ["ball", "stick"])
    given = examples((1, 1), model.config.hidden_size)
    bank = np.zeros((0, model.config.hidden_size), np.float32)
    head, estimate = training.fit_few_scans(model, given, bank, PLAN, FewScansArguments())
    assert estimate is None and model.unknown_score is None
    logits = head.logits(given.features.astype(np.float64))
    assert logits.argmax(axis=1).tolist() == [0, 1]
