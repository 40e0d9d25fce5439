"""Boxes in generated rooms: clusters, figures with intervals, tables."""

import numpy as np
import pytest

from hf_any3d.evaluation.detection import detection_metrics
from studies import detection
from studies.tables import read_table, write_table


def cube(low, count=60, seed=0):
    """Points in a cube of 0.4 m whose lowest corner is given."""
    return np.array(low) + 0.4 * np.random.default_rng(seed).random((count, 3))


def test_clusters_are_connected_and_above_the_floor():
    floor = np.concatenate([np.random.default_rng(3).uniform(-2, 2, (200, 2)), np.zeros((200, 1))], axis=1)
    lone = [[1.9, 1.9, 1.0]]
    points = np.concatenate([cube([0, 0, 0.05]), floor, cube([1, 0, 0.05], seed=1), lone])
    found = detection.clusters(points, 0.3)
    assert sorted(len(part) for part in found) == [60, 60]
    assert len(detection.clusters(points, 0.9)) == 1
    assert detection.clusters(floor, 0.3) == []


def test_figures_are_those_of_the_metric_with_intervals(monkeypatch):
    monkeypatch.setattr(detection, "RESAMPLES", 50)
    generator = np.random.default_rng(0)
    found, given = [], []
    for count in (3, 0, 2, 4, 1):
        centers, sizes = generator.uniform(-3, 3, (count, 3)), generator.uniform(0.5, 1.5, (count, 3))
        boxes = np.concatenate([centers, sizes, np.zeros((count, 1))], axis=1)
        moved = np.concatenate([boxes, boxes])
        moved[:, :3] += generator.normal(scale=0.15, size=(2 * count, 3))
        labels = generator.integers(0, 3, count)
        given.append({"boxes": boxes, "labels": labels})
        found.append({"boxes": moved, "labels": np.tile(labels, 2), "scores": generator.random(2 * count)})
    figures = detection.summary(found, given)
    expected = detection_metrics(found, given)
    for name in ("25", "50"):
        assert figures[f"ap_{name}"] == pytest.approx(expected[f"map_{name}"])
        assert figures[f"ap_{name}_low"] <= figures[f"ap_{name}"] <= figures[f"ap_{name}_high"]
        by_class = {int(one): value for one, value in figures[f"ap_{name}_by_class"].items()}
        assert by_class == pytest.approx(expected[f"class_ap_{name}"])


def test_tables_have_a_row_for_each_run_and_set(tmp_path):
    figures = {f"ap_{name}{end}": 0.5 for name in (25, 50) for end in ("", "_low", "_high")}
    sets = {"seen shapes": figures, "unseen shapes": figures}
    runs = [{"arm": "3detr", "seed": 0, "trained": 10, "total": 10, "steps": 5, "cpu_seconds": 3.2, "sets": sets}]
    rows = detection.table_rows(runs)
    assert [row["set"] for row in rows] == list(sets)
    assert "| 3DETR, all trained | 0 | 10 | 50.0 (50.0 to 50.0) | 50.0 (50.0 to 50.0) | 3 |" in detection.report(rows)
    write_table(tmp_path / "detection.parquet", {"machine": "x", "runs": rows})
    assert read_table(tmp_path / "detection.parquet")["runs"] == rows


def test_clouds_without_clusters_have_no_boxes():
    answer = detection.ClusterDetector(["chair", "table"], 0.2)(np.zeros((100, 3)))
    assert {name: len(values) for name, values in answer.items()} == {"boxes": 0, "labels": 0, "scores": 0}
    boxes = detection.ClusterDetector(["chair", "table"], 0.2)(cube([0, 0, 0.05], 300))["boxes"]
    assert boxes.shape == (2, 7) and np.allclose(boxes[0], [0.2, 0.2, 0.225, 0.4, 0.4, 0.45, 0], atol=0.02)
