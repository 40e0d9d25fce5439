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


def figures_of(value):
    names = [f"{start}ap_{name}" for start in ("", "places_") for name in (25, 50)]
    return {f"{name}{end}": value for name in names for end in ("", "_low", "_high")}


def test_tables_have_means_over_seeds_with_intervals(tmp_path):
    runs = [
        {
            **{"arm": arm, "seed": seed, "trained": 10, "total": 10, "steps": 5, "cpu_seconds": 3.2},
            "sets": {name: figures_of(0.5 + 0.01 * seed) | {"threads": 1} for name in detection.SETS},
        }
        for arm, seed in (("3detr", 0), ("3detr", 1), ("3detr", 2), ("any2point", 0))
    ]
    rows = detection.table_rows(runs)
    assert len(rows) == 12 and {row["set"] for row in rows} == set(detection.SETS) and "threads" not in rows[0]
    report = detection.report(rows)
    # The half width of three values 1 apart is 4.30 / sqrt(3).
    expected = "| 3DETR, all trained | 10 | 50.0, 51.0, 52.0 | 51.0 ± 2.5 | 51.0 ± 2.5 | 51.0 ± 2.5 | 3 |"
    assert report.count(expected) == 3
    assert report.count("| 50.0 | 50.0 (50.0 to 50.0) | 50.0 (50.0 to 50.0) |") == 3
    write_table(tmp_path / "detection.parquet", {"machine": "x", "runs": rows})
    assert read_table(tmp_path / "detection.parquet")["runs"] == rows


def test_boxes_without_classes_are_there_once_with_the_sum_of_their_scores():
    boxes = np.array([[0.0] * 3 + [1.0] * 3 + [0.0], [2.0] * 3 + [1.0] * 3 + [0.0]])
    found = {"boxes": boxes[[1, 0, 1]], "labels": np.array([0, 1, 2]), "scores": np.array([0.1, 0.4, 0.3])}
    once = detection.without_classes(found)
    assert np.array_equal(once["boxes"], boxes) and once["labels"].tolist() == [0, 0]
    assert once["scores"] == pytest.approx([0.4, 0.4])
    empty = {"boxes": np.zeros((0, 7)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
    assert detection.without_classes(empty)["boxes"].shape == (0, 7)
    assert detection.without_classes({"boxes": boxes, "labels": np.array([3, 4])})["labels"].tolist() == [0, 0]


def test_a_run_is_trained_once_and_judged_set_by_set(tmp_path, monkeypatch):
    monkeypatch.setattr(detection, "SETS", ("seen shapes", "touching"))
    trained, judged = [], []
    monkeypatch.setattr(detection, "train", lambda *given: trained.append(given[:2]) or {"cpu_seconds": 1.0})
    monkeypatch.setattr(detection, "judge", lambda *given: judged.append(given[:3]) or figures_of(0.5))
    words = ["--output-dir", str(tmp_path), "--arms", "3detr", "3detr_longer", "--seeds", "0", "1"]
    options = detection.runs_parser("", "", detection.ARMS).parse_args(words)
    options.steps = 7
    first = detection.all_runs(options)
    assert trained == [("3detr", 0), ("3detr_longer", 0), ("3detr", 1)] and len(judged) == 6
    (tmp_path / "3detr-1-touching.json").unlink()
    assert detection.all_runs(options) == first and len(trained) == 3
    assert judged[6:] == [("3detr", 1, "touching")]
    assert detection.steps_of("3detr_longer", options) == 21


def test_clouds_without_clusters_have_no_boxes():
    answer = detection.ClusterDetector(["chair", "table"], 0.2)(np.zeros((100, 3)))
    assert {name: len(values) for name, values in answer.items()} == {"boxes": 0, "labels": 0, "scores": 0}
    boxes = detection.ClusterDetector(["chair", "table"], 0.2)(cube([0, 0, 0.05], 300))["boxes"]
    assert boxes.shape == (2, 7) and np.allclose(boxes[0], [0.2, 0.2, 0.225, 0.4, 0.4, 0.45, 0], atol=0.02)
