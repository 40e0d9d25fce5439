"""A few scans: draws, heads and tables; generated shapes."""

import numpy as np
import pytest

from studies.few_scans import WAYS, mean_ranks, paired_table, report
from studies.few_scans_draws import Shapes, draw, embedded_shapes
from studies.generated_shapes.families import FAMILIES, draw_solid
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


def test_every_way_learns_what_its_features_tell_and_the_table_ranks_them(shapes):
    generator, division = np.random.default_rng(0), draw(shapes, 3, 0)
    told = generator.normal(size=(12, 6))[shapes.labels] * 4 + generator.normal(size=(168, 6)) * 0.5
    noise = generator.normal(size=(168, 6))
    features = {(source, copies): told for source in ("encoder", "views") for copies in (1, 8)}
    features |= {("descriptors", copies): noise for copies in (1, 8)}
    right = {}
    for title, way in WAYS.items():
        right[title] = float((way.answer(features, division).argmax(axis=1) == division.test_labels).mean())
    assert right.pop("descriptors") < 0.3 and min(right.values()) > 0.6
    runs = [
        {"set": name, "way": way, "shots": 3, "draw": 0, "accuracy": share}
        for name in ("one", "two")
        for way, share in (("good", 0.9), ("bad", 0.4), ("--way both", 0.95))
    ]
    assert mean_ranks(runs, ["good", "bad"], 3) == {"good": 1.0, "bad": 2.0}
    assert "| good | 90.0 | 90.0 | 1.0 |" in report(runs) and "| --way both | 3 | 95.0 | 95.0 | – | 1 |" in report(
        runs
    )


def test_paired_ways_are_compared_draw_by_draw():
    runs = [
        {"set": "one", "way": f"--way {way}", "shots": shots, "draw": draw, "accuracy": share + 0.1 * draw}
        for shots in (5, 10)
        for draw in (0, 1)
        for way, share in (("default", 0.5), ("both", 0.5 + shots / 100))
    ]
    five, ten, both = paired_table(runs).splitlines()[2:]
    assert five == "| one | 5 | 55.0 | 60.0 | +5.0 ± 0.0 | 2 |" and "+10.0 ± 0.0 | 2 |" in ten
    assert both == "| one | 5 and 10 | 55.0 | 62.5 | +7.5 ± 2.8 | 4 |"


@pytest.mark.slow
def test_no_compared_class_is_learned_from():
    seen, unseen = (embedded_shapes(unseen=flag) for flag in (False, True))
    assert not set(seen["label"]) & set(unseen["label"]) and len(set(unseen["label"])) == 10
    assert len(seen) + len(unseen) < 574  # test shapes of the other classes are left alone
