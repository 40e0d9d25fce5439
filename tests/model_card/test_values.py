"""All values that a card is filled in with, for a model with a run and an adapter and for one without."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import yaml

from hf_any3d import Any2PointConfig, Any2PointForPartSegmentation, Any2PointForPointCloudClassification
from hf_any3d.model_card import Subject, build_model_card, building
from hf_any3d.model_card.descriptions import describe
from hf_any3d.model_card.run_report import TEST_CHOOSES, package_versions
from hf_any3d.model_card.tasks import TASKS, card_task
from tests.model_card.test_building import REPORT


@pytest.fixture
def values(monkeypatch):
    """The values of the last card."""
    filled = {}
    template = SimpleNamespace(render=lambda **given: filled.clear() or filled.update(given) or "text")
    monkeypatch.setattr(building, "_template", lambda: template)
    return filled


def metadata(values):
    return yaml.safe_load(values.pop("card_data"))


LORA = {"method": "lora", "settings": {"r": 2}}


def test_a_card_of_a_run_has_its_results_data_and_training(values):
    task = TASKS["point-cloud-classification"]
    config = Any2PointConfig(
        id2label={2: "a|b", 0: "chair", 1: "lamp"},
        attention_axis="batch",
        in_channels=6,
        encoder_name_or_path="me/text",
    )
    report = replace(
        REPORT,
        adapter=LORA,
        class_accuracy={"test": {"chair": 0.25, "a|b": 1.0}},
        training={"seed": 7, "steps": 40},
        data=REPORT.data | {"validation": TEST_CHOOSES, "files": {"test": "/x/held_out.parquet"}, "hub_type": "y"},
        versions={"torch": "2", "hf_any3d|": "<3"},
    )
    subject = Subject(Any2PointForPointCloudClassification, config, LORA, 9, report, 512, ("head", "norm"))
    given = {"intro": "Intro.", "remark": "Remark.", "sections": {"A|b": " body ", "C": "d\n"}}
    build_model_card(subject, "me/my_model/", language="en", license="mit", **given)
    description = describe(subject)
    head = metadata(values)
    assert head["tags"] == [
        "hf_any3d", "any2point", "point-cloud", "3d", "lora", "transformers",
        "base_model:adapter:openai/clip-vit-base-patch32",
    ]  # fmt: skip
    assert {key: value for key, value in head.items() if key not in ("tags", "model-index")} == {
        "library_name": "peft", "license": "mit", "language": "en", "base_model": "openai/clip-vit-base-patch32",
        "base_model_relation": "adapter", "datasets": ["me/scans"], "metrics": ["accuracy"],
    }  # fmt: skip
    (result,) = head["model-index"][0]["results"]
    assert result["dataset"] == {"name": "me/scans", "type": "me/scans", "split": "validation"}
    assert result["metrics"] == [
        {"type": "accuracy", "value": 0.8125, "name": "Accuracy"},
        {"type": "mean_class_accuracy", "value": 0.75, "name": "Mean class accuracy"},
    ]
    results, data, training = (values.pop(name).splitlines() for name in ("results", "data", "training"))
    assert results[2:] == ["| validation | 81.2 % | 75.0 % | 0.500 |"]
    assert data[2:] == [
        "| name | me/scans |",
        "| rows | train 10, validation 3 |",
        "| validation | the test split itself |",
        "| test file | held_out.parquet |",
    ]
    assert "| trained parameters | 1,000 of 50,000 (2.00 %) |" in training and "| steps | 40 |" in training
    assert values == {
        "title": "my_model",
        "name": '"me/my_model/"',
        "task": task,
        "intro": "Intro.",
        "what": description.what,
        "parameters": f"It has 50,000 parameters, of which 1,000 were trained. {description.stored}",
        "remark": "Remark.",
        "is_complete": False,
        "left_out": "`head`, `norm`",
        "batch_flags": "`attention_axis='batch'`",
        "use": task.use,
        "channels": 6,
        "portions": "clouds are sampled to 512 points in the unit sphere.",
        "auto_class": "AutoModelForPointCloudClassification",
        "logits": 'logits = model(**processor("chair.ply", return_tensors="pt")).logits  # (1, 3)',
        "model_class": "Any2PointForPointCloudClassification",
        "base_program": description.base_program.format(name='"me/my_model/"'),
        "classes": "Classes: chair, lamp, a\\|b.",
        "limits": "",
        "sections": [("A\\|b", "body"), ("C", "d")],
        "versions": "torch 2, hf_any3d\\| &lt;3",
        "class_scores": "chair 25 %, a\\|b 100 %",
        "selection": {"metric": "accuracy", "value": 0.8125, "step": 30},
        "has_steps": True,
        "test_chooses": True,
        "seed": "7",
    }


def test_a_card_without_a_run_has_what_the_config_says(values):
    parts = {"category_names": ["Mug", "Lamp"], "category_parts": [[0], [1]], "id2label": {0: "x", 1: "y"}}
    subject = Subject(Any2PointForPartSegmentation, Any2PointConfig(**parts))
    build_model_card(subject, "", base_model="me/base")
    task = card_task(Any2PointForPartSegmentation)[1]
    description = describe(subject)
    assert metadata(values) == {
        "library_name": "transformers",
        "pipeline_tag": "point-cloud-segmentation",
        "base_model": "me/base",
        "base_model_relation": description.relation,
        "tags": ["hf_any3d", "any2point", "point-cloud", "3d"],
        "model_name": "model",
    }
    versions = ", ".join(f"{name} {version}" for name, version in package_versions().items())
    assert values.pop("versions").replace("\\", "") == versions
    assert values == {
        "title": "model",
        "name": '""',
        "task": task,
        "intro": "Labels each point of an object with its part, given the object's category: 2 parts.",
        "what": description.what,
        "parameters": f"{description.stored[0].upper()}{description.stored[1:]}",
        "remark": "",
        "is_complete": True,
        "left_out": "",
        "batch_flags": "",
        "use": task.use.format(category='"Mug"'),
        "channels": 3,
        "portions": "they are read in portions of the processor's number of points, and every point gets a label.",
        "auto_class": "AutoModelForPointCloudSegmentation",
        "logits": task.logits.format(count=2),
        "model_class": "Any2PointForPartSegmentation",
        "base_program": "",
        "classes": "Classes: x, y.",
        "limits": task.limits.strip(),
        "sections": [],
    }
