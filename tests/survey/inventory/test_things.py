"""Things by their numbers: places, heights, areas and outlines, beside what shapely computes."""

import numpy as np
import pytest

from hf_any3d_survey.inventory.things import outlines_of, things_of

shapely = pytest.importorskip("shapely")
NAMES = {5: "tree", 6: "building"}
EAST_NORTH = np.array([652_000.0, 6_862_000.0])


def disc(rng, radius, count):
    angles = rng.uniform(0, 2 * np.pi, count)
    away = radius * np.sqrt(rng.uniform(0, 1, count))
    return np.stack([away * np.cos(angles), away * np.sin(angles)], axis=1)


def rectangle(rng, width, height, count, turn):
    xy = rng.uniform(-0.5, 0.5, (count, 2)) * [width, height]
    return xy @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def scene(rng):
    """A tree of 8 m on a slope, a building of 10 m by 15 m, and ground: points, heights, numbers, scores, codes."""
    tree = disc(rng, 3, 700) + [10, 10]
    building = rectangle(rng, 10, 15, 3000, 0.4) + [40, 20]
    ground = rng.uniform(0, 60, (500, 2))
    heights = np.concatenate([8 - np.hypot(*(tree - [10, 10]).T), np.full(3000, 6.0), np.zeros(500)])
    xy = np.concatenate([tree, building, ground])
    points = np.concatenate([xy + EAST_NORTH, (100 + 0.1 * xy[:, 0] + heights)[:, None]], axis=1)
    numbers = np.repeat([7, 3, 0], [700, 3000, 500])
    scores = np.repeat([0.75, 0.5, 0.0], [700, 3000, 500]).astype(np.float32)
    codes = np.repeat([5, 6, 2], [700, 3000, 500])
    order = rng.permutation(len(points))
    return [column[order] for column in (points, heights.astype(np.float32), numbers, scores, codes)]


def test_a_tree_is_at_its_top_and_a_building_at_its_centroid():
    points, heights, numbers, scores, codes = scene(np.random.default_rng(0))
    codes[np.flatnonzero(numbers == 7)[:100]] = 1  # the most frequent code counts
    building, tree = things_of(points, heights, numbers, scores, codes, NAMES)
    assert (building.number, building.label, building.code, building.points) == (3, "building", 6, 3000)
    assert (tree.number, tree.label, tree.code, tree.points) == (7, "tree", 5, 700)
    top = np.argmax(np.where(numbers == 7, heights, 0))
    assert [tree.x, tree.y] == points[top, :2].tolist()
    assert tree.height == pytest.approx(heights[top]) and building.height == 6
    assert [building.x, building.y] == pytest.approx(points[numbers == 3, :2].mean(axis=0).tolist(), abs=1e-6)
    # The ground rises by a tenth to the east.
    assert tree.ground == pytest.approx(100 + 0.1 * (tree.x - EAST_NORTH[0]), abs=1e-3)
    assert building.ground == pytest.approx(104, abs=0.05)
    assert (tree.score, building.score) == (0.75, 0.5)
    assert tree.area == pytest.approx(np.pi * 9, rel=0.08) and building.area == pytest.approx(150, rel=0.05)


def test_outlines_are_where_the_points_are():
    points, heights, numbers, scores, codes = scene(np.random.default_rng(1))
    for thing in things_of(points, heights, numbers, scores, codes, NAMES):
        polygon = shapely.Polygon(thing.outline)
        own = points[numbers == thing.number, :2]
        assert (thing.outline[0] == thing.outline[-1]).all() and polygon.is_valid and polygon.exterior.is_ccw
        assert polygon.area == pytest.approx(thing.area, rel=1e-6)
        assert shapely.contains_xy(polygon, *own.T).mean() > 0.9
        assert polygon.hausdorff_distance(shapely.MultiPoint(own).convex_hull) < 0.8
        # A turned rectangle has few corners, not those of its cells.
        assert len(thing.outline) < 25


def test_scans_in_feet_have_areas_in_square_meters():
    points, heights, numbers, scores, codes = scene(np.random.default_rng(2))
    meters = things_of(points, heights, numbers, scores, codes, NAMES)
    feet = things_of(points / 0.3048, heights, numbers, scores, codes, NAMES, meters_per_unit=0.3048)
    for thing, other in zip(meters, feet, strict=True):
        assert other.area == pytest.approx(thing.area, rel=0.01) and other.height == thing.height
        assert [other.x, other.y, other.ground] == pytest.approx(
            [value / 0.3048 for value in (thing.x, thing.y, thing.ground)], rel=1e-7
        )


def test_points_without_a_number_or_scores_make_no_thing_and_no_score():
    points, heights, numbers, _, codes = scene(np.random.default_rng(3))
    assert things_of(points, heights, np.zeros_like(numbers), None, codes, NAMES) == []
    things = things_of(points, heights, -numbers + 5, None, codes, {})
    assert {thing.number for thing in things} == {2, 5}
    assert all(np.isnan(thing.score) for thing in things) and things[0].label == "6"


@pytest.mark.parametrize("spacing", [0.1, 0.35, 1.0])
def test_areas_are_right_on_average_at_any_density(spacing):
    rng = np.random.default_rng(4)
    count = int(150 / spacing**2)
    xy = [rectangle(rng, 10, 15, count, rng.uniform(0, np.pi)) + rng.uniform(0, 1000, 2) for _ in range(30)]
    outlines = outlines_of(np.concatenate(xy), np.full(30, count), max(0.5, 2 * spacing))
    assert np.mean([outline.area for outline in outlines]) == pytest.approx(150, rel=0.05)


def test_courtyards_are_not_in_the_area_and_the_ring_is_the_outer_one():
    rng = np.random.default_rng(5)
    xy = rng.uniform(0, 30, (20_000, 2))
    xy = xy[~((xy > 10) & (xy < 20)).all(axis=1)]
    # Its edges are in the middle of cells, as edges are on average.
    (outline,) = outlines_of(xy + 0.25, np.array([len(xy)]), 0.5)
    assert outline.area == pytest.approx(800, rel=0.02)
    assert shapely.Polygon(outline.ring).area == pytest.approx(900, rel=0.02)


@pytest.mark.slow
def test_outlines_of_any_points_are_valid_polygons():
    rng = np.random.default_rng(6)
    for _ in range(200):
        count = int(rng.integers(1, 300))
        xy = rng.normal(size=(count, 2)) * rng.uniform(0.3, 6)
        xy = np.concatenate([xy, xy[: rng.integers(1, count + 1)] + rng.uniform(0, 10, 2)])
        (outline,) = outlines_of(xy, np.array([len(xy)]), 0.5)
        polygon = shapely.Polygon(outline.ring)
        assert polygon.is_valid and polygon.area > 0 and outline.area > 0


def test_a_thing_across_a_map_has_larger_cells():
    xy = np.random.default_rng(7).uniform(0, 10_000, (5000, 2))
    (outline,) = outlines_of(np.concatenate([xy, [[0, 0], [10_000, 10_000]]]), np.array([5002]), 0.5)
    assert np.isfinite(outline.ring).all() and outline.area > 0
