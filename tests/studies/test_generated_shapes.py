"""The generated shapes: the same from a seed, all classes drawable, damage as described."""

import numpy as np
import pytest

from studies import generated_shapes as shapes
from studies.generated_shapes.surfaces import areas_of, ball, box, cylinder, rod, sample, slab


@pytest.mark.slow
def test_every_class_gives_varied_clouds_in_the_unit_sphere():
    assert len(shapes.CLASSES) >= 40
    for name in shapes.CLASSES:
        clouds = [shapes.draw_shape(name, 0, index, 64) for index in range(3)]
        for points in clouds:
            assert points.shape == (64, 3)
            assert points.dtype == np.float32
            assert np.linalg.norm(points, axis=1).max() == pytest.approx(1, abs=1e-5)
        assert not np.allclose(clouds[0], clouds[1])


def test_a_shape_depends_on_its_seed_class_and_number_alone():
    large = shapes.generate(3, 5, 32, classes=["mug", "horse", "bed"])
    small = shapes.generate(2, 5, 32, classes=["horse", "mug"])
    names = dict(zip(large["name"], large["points"], strict=True))
    for name, points in zip(small["name"], small["points"], strict=True):
        assert np.array_equal(names[name], points)
    assert small.features["label"].names == ["horse", "mug"]
    assert list(small["label"]) == [0, 1, 0, 1]
    assert len({int(group) for group in large["group"]}) == 9
    assert not np.array_equal(shapes.draw_shape("mug", 6, 0, 32), names["mug 0"])


def test_points_behind_others_are_not_seen():
    axis = np.linspace(-0.5, 0.5, 40)
    front, back = (np.stack(np.broadcast_arrays(x, *np.meshgrid(axis, axis)), -1).reshape(-1, 3) for x in (0.5, -0.5))
    assert (
        shapes.seen(np.concatenate([front, back]), azimuth=0.0, elevation=0.0).tolist()
        == [True] * 1600 + [False] * 1600
    )


def test_surfaces_have_the_areas_of_their_solids():
    assert areas_of(box((1, 2, 3))).sum() == pytest.approx(22)
    assert areas_of(cylinder(0.5, 2, sections=90)).sum() == pytest.approx(2.5 * np.pi, rel=2e-3)
    assert areas_of(ball((1, 1, 1))).sum() == pytest.approx(4 * np.pi, rel=0.06)
    assert areas_of(slab([(0, 0), (2, 0), (2, 1), (0, 1)], 0.5)).sum() == pytest.approx(7)
    assert areas_of(rod((0, 0, 0), (0, 0, 3), 0.1, 0.1)).sum() == pytest.approx(0.6 * np.pi, rel=0.05)


def test_points_lie_evenly_on_the_surface():
    points = sample(box((1, 1, 3)), 4000, np.random.default_rng(0))
    on_top = np.isclose(points[:, 1], 1)
    assert on_top.mean() == pytest.approx(3 / 14, abs=0.03)
    assert np.abs(points[on_top, 2]).mean() == pytest.approx(0.75, abs=0.05)
