"""The model that comes with the package: opened without a name, small, and right about what it was not trained on."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import pipeline
from transformers.utils import logging

from examples import quickstart, train_default_model
from hf_any3d import example_file, load_point_dataset
from hf_any3d.hub.published_table import find_published
from hf_any3d.integration.registration import PIPELINES
from hf_any3d.modeling.layers.unknown_score import is_none_of_these
from hf_any3d.pipelines import DEFAULT_MODELS, default_model
from hf_any3d.registry import task_of_class
from hf_any3d.tasks.direct import open_direct
from studies.generated_shapes.families import OTHERS, draw_other
from tests.errors import raises

FOLDER = Path(default_model())
METRICS = json.loads((FOLDER / "metrics.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def classify():
    return pipeline("point-cloud-classification")


def test_a_pipeline_without_a_model_opens_it_and_warns_once(monkeypatch):
    warned = []
    # The library's logger doesn't propagate to pytest's.
    monkeypatch.setattr(logging.get_logger("transformers.pipelines"), "warning", warned.append)
    opened = pipeline("point-cloud-classification")
    assert Path(opened.model.name_or_path) == FOLDER and opened.model.dtype == torch.float32
    (line,) = [line for line in warned if "No model was supplied" in line]
    assert str(FOLDER) in line


@pytest.mark.parametrize("task", sorted({*PIPELINES} - {*DEFAULT_MODELS}))
def test_a_pipeline_of_another_task_without_a_model_says_which_names_exist(task):
    with raises(ValueError, naming=f"pipeline('{task}'): no model is named; pass model=…") as error:
        pipeline(task)
    _, has_names, names = str(error.value).partition("one of the published ones: ")
    assert has_names or "none is published" in str(error.value)
    for name in names.partition(" and ")[0].split(", ") if has_names else ():
        repository, size, published = find_published(name)
        head = published.files[size].model_class or published.system.model_class
        assert task_of_class(head) == task, (repository, head)


def test_other_tasks_have_no_default_and_other_examples_are_refused():
    with raises(KeyError, naming="point-cloud-segmentation"):
        default_model("point-cloud-segmentation")
    with raises(ValueError, naming="'bed.ply'"):
        example_file("bed.ply")


def test_the_example_chair_is_a_chair_and_not_in_the_training_data(classify):
    pipes = (classify, open_direct(classify.task, str(FOLDER), "cpu"))  # the second one is that of commands
    (best,), (same,) = (pipe(str(example_file("chair.ply"))) for pipe in pipes)
    assert best["label"] == "chair" and best["score"] > 0.5 and same == pytest.approx(best)
    names = {name for name, _ in quickstart.FILES.values()}
    kept = quickstart.without_files(load_point_dataset("shapes")["train"])
    assert "blendswap-cc-0/chair2" in names and not names & set(kept["name"])


@pytest.mark.slow
def test_its_test_accuracy_is_that_of_its_card(classify):
    rows = quickstart.plain_rows(load_point_dataset("shapes")["test"])
    points, labels = torch.from_numpy(rows["points"][:]), torch.from_numpy(np.asarray(rows["label"][:]))
    with torch.no_grad():
        logits = torch.cat([classify.model(points=part).logits for part in points.split(32)])
    accuracy = (logits.argmax(-1) == labels).float().mean().item()
    loss = torch.nn.functional.cross_entropy(logits, labels).item()  # training smooths labels, an evaluation does not
    assert loss == pytest.approx(METRICS["metrics"]["test"]["loss"], abs=0.005)
    assert accuracy == pytest.approx(METRICS["metrics"]["test"]["accuracy"], abs=0.008)  # one shape
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert (
        f"| test | {100 * METRICS['metrics']['test']['accuracy']:.1f} %" in card
        and f"| {METRICS['metrics']['test']['loss']:.3f} |" in card
    )
    assert train_default_model.CHOICE.strip() in card and train_default_model.UPRIGHT in card


def test_what_is_no_object_gets_low_scores(classify):
    for kind in OTHERS:
        points = np.stack([draw_other(kind, 3, index) for index in range(20)])
        with torch.no_grad():
            output = classify.model(points=torch.from_numpy(points))
        scores = output.logits.softmax(-1).amax(-1)
        named = ~is_none_of_these(output.unknown, classify.model.config)
        assert scores.mean() < 0.35 and named.float().mean() < 0.7, kind
        assert (named & (scores > 0.5)).float().mean() <= 0.1, kind


def test_it_is_small_and_has_card_and_recipe_beside_it():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) < 6e6
    recipe = json.loads((FOLDER / "recipe.json").read_text(encoding="utf-8"))
    chosen = {"head": train_default_model.HEAD, "others": train_default_model.OTHERS, "seed": train_default_model.SEED}
    assert {key: recipe[key] for key in chosen} == chosen
    config = json.loads((FOLDER / "config.json").read_text(encoding="utf-8"))
    assert {key: config[key] for key in recipe["head"]} == recipe["head"]


def test_every_path_in_it_is_of_the_package():
    for file in FOLDER.glob("*.json"):
        assert not re.search(r"/(root|home|tmp|work)/", file.read_text(encoding="utf-8")), file.name
