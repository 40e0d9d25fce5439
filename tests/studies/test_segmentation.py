"""The study of segmentation: its baselines, what it stores, and that stored runs are not repeated."""

import json

import numpy as np
import pytest
import torch
import yaml

from studies import segmentation
from studies.tables import read_table
from tests.examples.conftest import SMALL

LITTLE = {
    "parts": {"dataset_options": {"train_objects": 12, "validation_objects": 6, "test_objects": 6, "num_points": 128}},
    "rooms": {
        "dataset_options": {"train_rooms": 1, "validation_rooms": 1, "test_rooms": 3, "num_points": 512},
        "block_size": 2.5,
    },
}


@pytest.fixture
def recipes(tiny_encoder, tmp_path, monkeypatch):
    """Recipes of short runs."""
    for task, own in LITTLE.items():
        settings = {"dataset_name": task, "encoder_name_or_path": tiny_encoder, **SMALL, **own}
        settings["model_config"] = {"restrict_to_category_parts": True}
        (tmp_path / f"{task}.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(segmentation, "RECIPES", tmp_path)
    return tmp_path


@pytest.mark.parametrize(("task", "arms"), [("parts", ["pointnet", "random"]), ("rooms", ["pretrained"])])
def test_every_arm_is_trained_once_with_table_and_picture(recipes, task, arms, monkeypatch):
    options = ["--output-dir", str(recipes / "out"), "--tasks", task, "--seeds", "1", "--arms", *arms]
    segmentation.main(options)
    summary = read_table(recipes / "out" / "segmentation.parquet")[task]
    assert [row["arm"] for row in summary["rows"]] == ["majority", *arms]
    for row in summary["rows"]:
        assert all(0 <= row[name] <= 1 for name in segmentation.TASKS[task])
    text = (recipes / "out" / "segmentation.md").read_text()
    assert all(row["title"] in text for row in summary["rows"])
    pictures = [path.name for path in (recipes / "out").glob("*.png")]
    assert pictures == (["segmentation_rooms.png"] if "pretrained" in arms else [])
    monkeypatch.setattr(segmentation, "TRAIN", {})
    monkeypatch.setattr(segmentation, "draw", lambda *drawn: None)
    segmentation.main(options)
    assert read_table(recipes / "out" / "segmentation.parquet")[task] == summary


def test_majority_of_rooms_is_all_floor(recipes):
    row = segmentation.majority("rooms")
    rooms = segmentation.load_task("rooms")[0]["test"]
    floor = np.mean(np.concatenate([np.asarray(labels) for labels in rooms["labels"]]) == 0)
    assert row["accuracy"] == pytest.approx(floor)
    present = len({label for labels in rooms["labels"] for label in labels})
    assert row["mean_iou"] == pytest.approx(floor / present)


def test_random_encoder_has_the_shape_of_the_pretrained_one_and_is_stored(recipes, monkeypatch):
    seen = []
    monkeypatch.setattr(
        segmentation, "train_wrap", lambda *run, **changes: seen.append(changes["encoder_name_or_path"])
    )
    for _ in range(2):
        segmentation.train_random("parts", 0, recipes / "run")
    first, again = seen
    assert first == again == str(recipes / "run" / "encoder")
    assert json.loads((recipes / "run" / "encoder" / "config.json").read_text())["model_type"] == "bert"


def test_pointnet_labels_do_not_depend_on_the_order_of_points():
    model = segmentation.PointNetSegmenter(5, num_categories=2).eval()
    points, category = torch.rand(2, 16, 3), torch.tensor([0, 1])
    logits = model(points, category).logits
    assert logits.shape == (2, 16, 5)
    torch.testing.assert_close(model(points.flip(1), category).logits, logits.flip(1))
    assert not torch.allclose(model(points, 1 - category).logits, logits)
