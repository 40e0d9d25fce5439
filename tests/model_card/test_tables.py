"""How a card writes numbers, facts and names."""

from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from hf_any3d import Any2PointConfig, Any2PointForPartSegmentation, Any2PointForPointCloudClassification
from hf_any3d.model_card import Subject, build_model_card
from hf_any3d.model_card.building import (
    _class_list,
    _facts,
    _file_name,
    _parameters,
    _results,
    _title,
    _training_facts,
)
from hf_any3d.model_card.tasks import TASKS, card_task
from hf_any3d.modeling.act import ActForPreTraining
from tests.model_card.test_building import REPORT

CLASSES, CODES = TASKS["point-cloud-classification"], TASKS["point-cloud-reconstruction"]


def rows(table: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]


def test_results_are_shares_or_factors_with_their_loss():
    metrics = {"train": {"accuracy": 1.0}, "test": {"accuracy": 0.5, "mean_class_accuracy": 0.25, "loss": 0.12345}}
    assert rows(_results(metrics, CLASSES)) == [
        ["split", "Accuracy", "Mean class accuracy", "loss"],
        ["---"] * 4,
        ["test", "50.0 %", "25.0 %", "0.123"],
    ]
    head, _, row = rows(_results({"test": {"chamfer_l1": 0.0123, "f_score": 0.5, "codes_used": 0.25}}, CODES))
    assert head[1:4] == ["CD-L1 × 1000", "CD-L2 × 1000", "F-score"]
    assert row == ["test", "12.30", "", "50.0 %", "25.0 %", "", ""]
    for none in ({}, {"train": {"accuracy": 1.0}}):
        assert _results(none, CLASSES) == "The run evaluated no split."


def test_figures_of_users_have_columns_of_their_own():
    metrics = {"a": {"accuracy": 0.5, "f1|x": 0.123456}, "b": {"loss": 2.0, "mine": 12345.678}}
    head, _, first, second = rows(_results(metrics, CLASSES).replace("\\|", "/"))
    # Of the usual ones those that a split has, as another has none of them.
    assert head == ["split", "Accuracy", "f1/x", "mine", "loss"]
    assert first == ["a", "50.0 %", "0.1235", "", ""] and second == ["b", "", "", "1.235e+04", "2.000"]


def test_facts_are_words_and_what_is_empty_is_left_out():
    facts = {
        "with_colors": True,
        "whole": False,
        "rate": 0.00012345678,
        "size": 1.0,
        "sizes": [1, 2.5, (3, "x")],
        "rows": {"train": 10, "test": {"a": True}},
        **{"none": None, "text": "", "list": [], "map": {}},
        "zero": 0,
    }
    assert rows(_facts(facts))[2:] == [
        ["with colors", "yes"],
        ["whole", "no"],
        ["rate", "0.000123457"],
        ["size", "1"],
        ["sizes", "1, 2.5, 3, x"],
        ["rows", "train 10, test a yes"],
        ["zero", "0"],
    ]


def test_facts_of_training_have_units_and_shares():
    report = replace(
        REPORT,
        start={"model": "me/start"},
        adapter={"method": "lora", "settings": {"r": 2}},
        seconds={"training": 12345.6},
        peak_memory={"cuda": 1_234_567_890},
        trained_parameters=1,
        total_parameters=3,
    )
    facts = _training_facts(report)
    assert facts["encoder tower"] == "text" and facts["start, model"] == "me/start"
    assert (facts["adapter"], facts["adapter settings"]) == ("lora", {"r": 2})
    assert facts["trained parameters"] == "1 of 3 (33.33 %)" and facts["precision"] == "bfloat16"
    assert facts["seconds, training"] == "12,346" and facts["peak memory, cuda"] == "1,235 MB"
    bare = _training_facts(replace(REPORT, trained_parameters=0, total_parameters=0))
    assert bare["adapter"] == "none" and bare["adapter settings"] is None
    assert bare["trained parameters"] == "0 of 0 (0.00 %)"


def test_very_many_classes_are_counted():
    names = [f"c{number}" for number in range(403)]
    assert _class_list(names).endswith("c398, c399 and 3 more.") and _class_list(names[:400]).endswith("c398, c399.")
    assert _class_list([]) == "" and _class_list(["a|b", "c"]) == "Classes: a\\|b, c."


def test_scores_of_classes_are_whole_percents_or_factors():
    assert CLASSES.format_class_score(0.256) == "26 %" and CODES.format_class_score(0.0256) == "25.6"


@pytest.mark.parametrize(
    ("name", "title"), [("me/model", "model"), ("model/", "model"), ("a\nb", "a b"), ("/", "model"), ("", "model")]
)
def test_the_title_is_the_last_part_of_the_name(name, title):
    assert _title(name) == title


@pytest.mark.parametrize(("path", "name"), [("a/b\\c.ply", "c.ply"), ("c.ply", "c.ply"), (r"D:\x\c.ply", "c.ply")])
def test_a_file_is_named_without_its_folders(path, name):
    assert _file_name(path) == name


@pytest.mark.parametrize(
    ("report", "total", "stored", "text"),
    [
        (None, None, "all are stored", "All are stored"),
        (None, 1234, "all are stored", "It has 1,234 parameters; all are stored"),
        (None, 1234, "The encoder is loaded", "It has 1,234 parameters. The encoder is loaded"),
        (REPORT, 9, "all are stored", "It has 50,000 parameters, of which 1,000 were trained; all are stored"),
    ],
)
def test_parameters_are_counted_where_they_are_known(report, total, stored, text):
    config = Any2PointConfig(id2label={0: "chair"})
    subject = Subject(Any2PointForPointCloudClassification, config, {}, total, report)
    assert _parameters(subject, stored) == text


def made(model=Any2PointForPointCloudClassification, name="me/model", subject=None, **given) -> ModelCard:
    given.setdefault("sections", None)
    config = Any2PointConfig(id2label={0: "chair", 1: "lamp"}, **(subject or {}))
    return ModelCard(str(build_model_card(Subject(model, config), name, **given)))


def test_what_is_given_is_in_the_card():
    card = made(
        license="mit", language="de", intro="Sorts furniture.", remark="Mind the gap.", base_model="me/base",
        sections={"Second|": "two ", "Third": "three"},
    )  # fmt: skip
    assert (card.data.license, card.data.language, card.data.base_model) == ("mit", "de", "me/base")
    assert "Sorts furniture." in card.text and "Mind the gap." in card.text
    assert card.text.index("## Second\\|\n\ntwo\n") < card.text.index("## Third\n\nthree\n")
    plain = made()
    assert "Classifies 3D point clouds: 2 classes." in plain.text and "the processor's number of points" in plain.text
    assert plain.data.license is None and plain.data.language is None and plain.data.base_model is None
    assert 'model="me/model"' in plain.text and plain.text.lstrip().startswith("# model\n")


@pytest.mark.parametrize("given", [None, "mit"])
def test_weights_that_forbid_commercial_use_pass_their_terms_on(given, monkeypatch):
    record = {"name": "them/weights", "weights_license": "CC-BY-NC-4.0"}
    monkeypatch.setattr("hf_any3d.model_card.building.non_commercial_record", lambda config: record)
    card = made(license=given, sections={"More": "text"})
    assert card.data.license == (given or "cc-by-nc-4.0")
    text = "made from weights, `them/weights`, under CC-BY-NC-4.0, which forbids its commercial use too."
    assert card.text.index(text) < card.text.index("## More")
    record.pop("name")
    assert "made from weights, published ones, under CC-BY-NC-4.0" in made().text


def test_the_example_of_parts_names_a_category_of_the_model():
    for categories, shown in ((["Mug", "Chair"], "Chair"), (["Mug", "Lamp"], "Mug")):
        parts = {"category_names": categories, "category_parts": [[0], [1]]}
        assert f'category="{shown}"' in made(Any2PointForPartSegmentation, subject=parts).text


class Derived(Any2PointForPartSegmentation):
    pass


def test_a_class_has_the_text_of_the_one_that_it_derives_from():
    assert card_task(Derived) == card_task(Any2PointForPartSegmentation)
    name, task = card_task(Derived)
    assert name == "Any2PointForPartSegmentation" and task.task_name == "Part segmentation of point clouds"
    assert card_task(ActForPreTraining)[1].opens == "ActModel" and card_task(dict) is None
    assert CLASSES.opening_class("X") == "AutoModelForPointCloudClassification"
    assert CODES.opening_class("ActAutoencoder") == "ActAutoencoder"


@pytest.mark.parametrize(
    ("name", "opens", "has_classes", "processor", "figures"),
    [
        (
            "point-cloud-classification",
            "AutoModelForPointCloudClassification",
            True,
            "PointCloudProcessor",
            ["50.0 %"] * 2,
        ),
        ("point-cloud-feature-extraction", "X", False, "PointCloudProcessor", ["50.0 %"]),
        ("point-cloud-object-detection", "AutoModelForPointCloudObjectDetection", True, "PointCloudProcessor", None),
        ("point-cloud-reconstruction", "X", False, "PointCloudProcessor", ["500.00"] * 2 + ["50.0 %"] * 3),
        (
            "point-cloud-segmentation",
            "AutoModelForPointCloudSegmentation",
            True,
            "PointCloudProcessor",
            ["50.0 %"] * 2,
        ),
        ("point-cloud-text-to-text", "X", False, "MiniGPT3DProcessor", ["0.50"]),
        (
            "zero-shot-point-cloud-classification",
            "AutoModelForZeroShotPointCloudClassification",
            False,
            "PointCloudProcessor",
            ["50.0 %"],
        ),
        (
            "zero-shot-point-cloud-segmentation",
            "AutoModelForZeroShotPointCloudSegmentation",
            False,
            None,
            ["50.0 %"] * 2,
        ),
        ("pre-training", "X", False, "PointCloudProcessor", ["50.0 %"]),
        ("SpatialLMForConditionalGeneration", "X", False, "SpatialLMProcessor", ["50.0 %"] * 2),
        ("ActForPreTraining", "ActModel", False, "PointCloudProcessor", ["50.0 %"]),
        (
            "Any2PointForZeroShotPointCloudClassification",
            "AutoModelForZeroShotPointCloudClassification",
            True,
            "PointCloudProcessor",
            ["50.0 %"] * 6,
        ),
    ],
)
def test_a_task_names_its_classes_and_the_form_of_its_figures(name, opens, has_classes, processor, figures):
    task = TASKS[name]
    assert (task.opening_class("X"), task.has_classes) == (opens, has_classes)
    assert processor is None or task.processor == processor
    assert figures is None or [task.format_metric(metric, 0.5) for metric in task.metrics] == figures
    assert task.format_class_score(0.5) == ("500.0" if name == "point-cloud-reconstruction" else "50 %")
