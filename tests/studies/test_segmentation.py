"""The study of segmentation: its baselines, what it stores, and that stored runs are not repeated."""

import pytest
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
