"""The study of open encoders' layouts: its controls, its figures, and that stored runs are not repeated."""

import pytest
import torch
import yaml

from studies import open_encoders, segmentation
from studies.tables import read_table
from tests.examples.conftest import EXAMPLES

TRUNK = {"num_groups": 8, "group_size": 8, "patch_widths": [8, 8, 8], "patch_pooled_width": 8, "hidden_size": 12}
TRUNK |= {"intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
STAGES = {"depths": [1, 1], "hidden_sizes": [6, 12], "num_attention_heads": [1, 2], "patch_sizes": [16, 16]}
LITTLE = {
    "shapes_uni3d": {"model_config": TRUNK, "max_train_samples": 60, "max_eval_samples": 40, "num_points": 64},
    "rooms_ptv3": {
        "model_config": {"grid_size": 0.5, "pooling_strides": [2], **STAGES},
        "dataset_options": {"train_rooms": 1, "validation_rooms": 1, "test_rooms": 1, "num_points": 512},
        "num_points": 512,
        "eval_delay": 0,
    },
}


@pytest.fixture
def recipes(sentence_encoder, tmp_path, monkeypatch):
    """The recipes with small models and little data."""
    for name, own in LITTLE.items():
        settings = yaml.safe_load((EXAMPLES / "recipes" / f"{name}.yaml").read_text(encoding="utf-8"))
        settings |= own | {"num_train_epochs": 1, "use_cpu": True, "disable_tqdm": True}
        if "encoder_name_or_path" in settings:
            settings["encoder_name_or_path"] = sentence_encoder
        (tmp_path / f"{name}.yaml").write_text(yaml.safe_dump(settings))
    monkeypatch.setattr(segmentation, "RECIPES", tmp_path)
    return tmp_path


def test_every_arm_runs_once_with_controls_table_and_plot(recipes, monkeypatch):
    options = ["--output-dir", str(recipes / "out"), "--seeds", "0"]
    open_encoders.main(options)
    summary = read_table(recipes / "out" / "open_encoders.parquet")
    runs = {(run["task"], run["arm"]): run for task in open_encoders.TASKS for run in summary[task]["runs"]}
    assert runs["shapes", "untrained"]["settings"]["num_train_epochs"] == 0
    held_out = runs["shapes", "trained"]["settings"]["held_out_classes"]
    found = runs["shapes", "trained"]["metrics"]
    assert set(runs["shapes", "trained"]["class_accuracy"]["held_out"]) <= set(held_out) and len(held_out) == 5
    # Of the true order of five names and the four cyclic exchanges, each cloud is right in one.
    assert found["held_out"]["unseen_accuracy"] + 4 * found["held_out"]["unseen_exchanged"] == pytest.approx(1)
    assert (found["test"]["unseen_chance"], found["test"]["seen_chance"]) == (1 / 5, 1 / 13)
    assert [row["arm"] for row in summary["rooms"]["rows"]] == ["majority", "alone", "trained"]
    assert all(0 <= row["mean_iou"] <= 1 for row in summary["rooms"]["rows"])
    text = (recipes / "out" / "open_encoders.md").read_text()
    assert "| unseen classes among themselves |" in text and "| IoU of floor | – |" in text
    assert (recipes / "out" / "open_encoders.png").stat().st_size > 5000
    monkeypatch.setattr(open_encoders, "run_once", lambda *run: pytest.fail(f"repeated {run}"))
    open_encoders.main(options)
    assert read_table(recipes / "out" / "open_encoders.parquet") == summary


def test_labels_of_points_alone_do_not_depend_on_other_points():
    torch.manual_seed(0)
    network = open_encoders.PointsAlone(3, width=8).eval()
    points = torch.rand(2, 6, 3)
    logits = network(points).logits
    assert logits.shape == (2, 6, 3)
    torch.testing.assert_close(network(points[:, 2:4]).logits, logits[:, 2:4])
