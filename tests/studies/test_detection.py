"""Boxes in generated rooms: clusters, figures with intervals, tables."""

import numpy as np
import pytest

from hf_any3d.evaluation.detection import detection_metrics
from studies import detection


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


def test_figures_are_those_of_the_metric_with_intervals():
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


def test_boxes_without_classes_are_there_once_with_the_sum_of_their_scores():
    boxes = np.array([[0.0] * 3 + [1.0] * 3 + [0.0], [2.0] * 3 + [1.0] * 3 + [0.0]])
    found = {"boxes": boxes[[1, 0, 1]], "labels": np.array([0, 1, 2]), "scores": np.array([0.1, 0.4, 0.3])}
    once = detection.without_classes(found)
    assert np.array_equal(once["boxes"], boxes) and once["labels"].tolist() == [0, 0]
    assert once["scores"] == pytest.approx([0.4, 0.4])
    empty = {"boxes": np.zeros((0, 7)), "labels": np.zeros(0, int), "scores": np.zeros(0)}
    assert detection.without_classes(empty)["boxes"].shape == (0, 7)
    assert detection.without_classes({"boxes": boxes, "labels": np.array([3, 4])})["labels"].tolist() == [0, 0]
