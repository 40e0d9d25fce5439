"""The program that trains parts by name, from its arguments to the pipeline that opens its model."""

import json

import pytest
import torch
import yaml
from transformers import pipeline

from examples import run_parts_by_name
from hf_any3d import load_point_dataset
from hf_any3d.evaluation.part_names import named_part_iou
from hf_any3d.model_card.run_report import RunReport
from tests.examples.conftest import EXAMPLES

LITTLE = {"num_groups": 8, "group_size": 8, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}


@pytest.fixture
def run(sentence_encoder, tmp_path):
    """Run the recipe with a small model, little data and further settings; returns the report."""

    def start(**settings):
        recipe = yaml.safe_load((EXAMPLES / "recipes" / "parts_patchalign3d.yaml").read_text(encoding="utf-8"))
        recipe["model_config"] |= LITTLE | settings.pop("model_config", {})
        recipe |= {
            "output_dir": str(tmp_path / "run"),
            "encoder_name_or_path": sentence_encoder,
            "dataset_options": {"train_objects": 18, "validation_objects": 6, "test_objects": 12, "num_points": 128},
            "num_points": 64,
            "num_train_epochs": 1,
            "per_device_train_batch_size": 8,
            "use_cpu": True,
            "disable_tqdm": True,
        }
        (tmp_path / "recipe.json").write_text(json.dumps(recipe | settings))
        return run_parts_by_name.main([str(tmp_path / "recipe.json")])

    return start


@pytest.mark.slow
def test_trained_model_reaches_the_reported_figures_in_the_pipeline(run, tmp_path):
    report = run()
    assert RunReport.load(tmp_path / "run" / "metrics.json") == report
    assert {"test", "train_held_out", "test_held_out"} <= set(report.metrics)
    assert set(report.class_accuracy["test_held_out"]) == {"table"} and "table" not in report.class_accuracy["test"]
    segment = pipeline("zero-shot-point-cloud-segmentation", model=str(tmp_path / "run"))
    options = {"train_objects": 18, "validation_objects": 6, "test_objects": 12, "num_points": 128}
    rows = load_point_dataset("parts", split="test", **options)
    names, categories = rows.features["labels"].feature.names, rows.features["label"].names
    ious = []
    for row in rows:
        if categories[row["label"]] == "table":
            first, words = names.index("table top"), ["top", "legs"]
            found = segment({"points": row["points"]}, candidate_labels=words)["labels"]
            ious.append(named_part_iou(found, torch.tensor(row["labels"]).numpy() - first, 2, "shapenetpart"))
    assert report.metrics["test_held_out"]["instance_miou"] == pytest.approx(sum(ious) / len(ious))
