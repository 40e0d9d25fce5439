"""A few scans: draws, heads and tables; generated shapes."""

import numpy as np
import pytest

from hf_any3d import PointFeaturesConfig, PointFeaturesModel
from studies import packaged_encoder
from studies.few_scans import Forest, Head, Shapes, draw, evaluate_head, evaluate_shipped
from studies.generated_shapes.families import FAMILIES, OTHERS, draw_solid
from studies.generated_shapes.surfaces import Draw


@pytest.fixture
def shapes() -> Shapes:
    """Twelve classes of 14 shapes, of which 4 may be learned from; the first two of each class are near-duplicates."""
    labels, index = np.repeat(np.arange(12), 14), np.tile(np.arange(14), 12)
    groups = 14 * labels + np.maximum(index, 1)
    return Shapes(np.zeros((168, 4, 3)), labels, groups, tuple("abcdefghijkl"), index < 4)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_varied_shapes_in_the_unit_sphere(family):
    clouds = [draw_solid(Draw(np.random.default_rng(seed)), 128, family) for seed in range(6)]
    for points in clouds:
        assert points.shape == (128, 3) and 0.9 < np.linalg.norm(points, axis=1).max() < 1 + 1e-5
    assert not np.allclose(clouds[0], clouds[1])


def test_draws_have_ten_classes_no_duplicates_and_grow_with_the_shots(shapes):
    small, large = draw(shapes, 1, 0), draw(shapes, 3, 0)
    assert set(small.train) <= set(large.train) and len(small.train) == 10 and len(large.train) == 30
    assert list(np.bincount(large.labels)) == [3] * 10
    assert len(set(shapes.groups[large.train])) == 30
    assert not set(shapes.groups[large.test]) & set(shapes.groups[large.train])
    assert not shapes.pool[large.test].any() and len(large.test) == 100
    chosen = set(shapes.labels[large.train])
    assert len(chosen) == 10 and not set(shapes.labels[large.strangers]) & chosen and len(large.strangers) == 20
    # Classes have the same numbers in training and test.
    pairs = set(zip(shapes.labels[large.train], large.labels, strict=True))
    assert set(zip(shapes.labels[large.test], large.test_labels, strict=True)) == pairs
    assert not np.array_equal(draw(shapes, 3, 1).train, large.train)


def test_heads_learn_and_estimate(shapes):
    generator = np.random.default_rng(0)
    centers = generator.normal(size=(12, 6)) * 4
    features = centers[shapes.labels] + generator.normal(size=(168, 6)) * 0.5
    figures = evaluate_head(lambda: Head(1.0), features, shapes, 3, 0)
    assert figures["accuracy"] > 0.95 and figures["estimated"] > 0.9 and 0 <= figures["calibration_error"] < 1
    forest = evaluate_head(lambda: Forest(0), features, shapes, 3, 0)
    assert forest["accuracy"] > 0.8 and "estimated" not in forest


def test_the_shipped_way_tells_unknown_things_with_and_without_a_bank(shapes):
    generator = np.random.default_rng(0)
    width = PointFeaturesModel(PointFeaturesConfig()).config.hidden_size
    centers = generator.normal(size=(12, width))
    features = centers[shapes.labels] + generator.normal(size=(168, width)) * 0.3
    nothing = generator.normal(size=(8 * len(OTHERS), width)) + 4
    things = generator.normal(size=(21, width)) + 4
    figures = evaluate_shipped(features, nothing, things, shapes, 3, 0)
    assert figures["accuracy"] > 0.95 and figures["estimated"] > 0.9 and 0 <= figures["calibration_error"] < 1
    for kind in OTHERS:
        assert figures[kind] >= 0.99 and figures[f"{kind}, without its kind"] > 0.9
        assert figures[f"{kind}, without a bank"] > 0.9 and figures[f"{kind}, flagged"] > 0.9
    assert figures["known, flagged"] < 0.3 and figures["other classes"] > 0.8
    assert "noise" not in evaluate_shipped(features, nothing, things, shapes, 1, 0)


def test_no_compared_class_is_learned_from():
    seen, unseen = (packaged_encoder.embedded_shapes(unseen=flag) for flag in (False, True))
    assert not set(seen["label"]) & set(unseen["label"]) and len(set(unseen["label"])) == 10
    assert len(seen) + len(unseen) < 574  # test shapes of the other classes are left alone
