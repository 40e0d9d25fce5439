"""Outlines of things seen from above, beside what shapely computes."""

import numpy as np
import pytest
from scipy.spatial import KDTree

from hf_any3d_survey.inventory.outlines import OutlineCells

shapely = pytest.importorskip("shapely")
EAST_NORTH = np.array([652_000.0, 6_862_000.0])


def disc(rng, radius, count):
    angles = rng.uniform(0, 2 * np.pi, count)
    away = radius * np.sqrt(rng.uniform(0, 1, count))
    return np.stack([away * np.cos(angles), away * np.sin(angles)], axis=1)


def rectangle(rng, width, height, count, turn):
    xy = rng.uniform(-0.5, 0.5, (count, 2)) * [width, height]
    return xy @ np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])


def outlines_of(things, cell):
    """Outlines of things that are given by their points, in their order."""
    cells = OutlineCells(cell)
    for number, xy in enumerate(things, 1):
        cells.add(xy, np.full(len(xy), number))
    outlines = cells.outlines()
    return [outlines[number] for number in range(1, len(things) + 1)]


def polygon_of(outline):
    return shapely.Polygon(outline.rings[0], outline.rings[1:])


def test_outlines_are_where_the_points_are():
    rng = np.random.default_rng(1)
    things = [disc(rng, 3, 700) + EAST_NORTH, rectangle(rng, 10, 15, 3000, 0.4) + EAST_NORTH + [30, 10]]
    for own, outline, size in zip(things, outlines_of(things, 0.5), (np.pi * 9, 150), strict=True):
        polygon = polygon_of(outline)
        assert polygon.is_valid and polygon.exterior.is_ccw and (outline.rings[0][0] == outline.rings[0][-1]).all()
        assert outline.area == pytest.approx(size, rel=0.08) and polygon.area == pytest.approx(outline.area, rel=1e-6)
        assert shapely.contains_xy(polygon, *own.T).mean() > 0.9
        assert polygon.hausdorff_distance(shapely.MultiPoint(own).convex_hull) < 0.8
        # A turned rectangle has few corners, not those of its cells.
        assert len(outline.rings[0]) < 25


@pytest.mark.parametrize("spacing", [0.1, 0.35, 1.0])
def test_areas_are_right_on_average_at_any_density(spacing):
    rng = np.random.default_rng(4)
    count = int(150 / spacing**2)
    things = [rectangle(rng, 10, 15, count, rng.uniform(0, np.pi)) + [40 * at, rng.uniform()] for at in range(30)]
    outlines = outlines_of(things, max(0.5, 2 * spacing))
    assert np.mean([outline.area for outline in outlines]) == pytest.approx(150, rel=0.05)


@pytest.mark.parametrize(("mixed", "share"), [(0.1, 0.96), (0.4, 0.9), (1.0, 0.7)])
def test_crowns_that_have_grown_into_each_other_share_borders(mixed, share):
    """Outlines do not overlap, and leave little between them; `mixed` meters deep, neighbors share the points."""
    rng = np.random.default_rng(5)
    points = rng.uniform(5, 75, (100_000, 2))
    tree = KDTree(rng.uniform(0, 80, (150, 2))).query(points + rng.normal(0, mixed, points.shape))[1]
    outlines = outlines_of([points[tree == number] + EAST_NORTH for number in np.unique(tree)], 0.5)
    polygons = np.array([polygon_of(outline) for outline in outlines if outline.rings])
    first, second = shapely.STRtree(polygons).query(polygons, "intersects")
    shared = shapely.area(shapely.intersection(polygons[first], polygons[second]))
    total = sum(polygon.area for polygon in polygons)
    assert shared[first != second].sum() < 1e-4 * total
    assert sum(outline.area for outline in outlines) == pytest.approx(total, rel=0.01)
    assert share < total / 70**2 < 1.01


def test_courtyards_are_holes():
    rng = np.random.default_rng(5)
    xy = rng.uniform(0, 30, (20_000, 2))
    xy = xy[~((xy > 10) & (xy < 20)).all(axis=1)]
    # Its edges are in the middle of cells, as edges are on average.
    (outline,) = outlines_of([xy + 0.25], 0.5)
    assert outline.area == pytest.approx(800, rel=0.02)
    assert [shapely.Polygon(ring).area for ring in outline.rings] == pytest.approx([900, 100], rel=0.05)


def test_what_others_cover_has_an_area_and_no_outline():
    rng = np.random.default_rng(8)
    below, above = outlines_of([disc(rng, 1, 50), disc(rng, 3, 3000)], 0.5)
    assert below.rings == () and 2 < below.area < 6 and above.area == pytest.approx(np.pi * 9, rel=0.05)


@pytest.mark.slow
def test_outlines_of_any_points_are_valid_polygons():
    rng = np.random.default_rng(6)
    for _ in range(200):
        count = int(rng.integers(1, 300))
        xy = rng.normal(size=(count, 2)) * rng.uniform(0.3, 6)
        xy = np.concatenate([xy, xy[: rng.integers(1, count + 1)] + rng.uniform(0, 10, 2)])
        (outline,) = outlines_of([xy], 0.5)
        polygon = polygon_of(outline)
        assert polygon.is_valid and polygon.area > 0 and outline.area > 0


def test_a_thing_across_a_map_has_larger_cells():
    xy = np.random.default_rng(7).uniform(0, 10_000, (5000, 2))
    (outline,) = outlines_of([np.concatenate([xy, [[0, 0], [10_000, 10_000]]])], 0.5)
    assert np.isfinite(outline.rings[0]).all() and outline.area > 0
