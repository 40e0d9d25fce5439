"""The ground of made terrain whose heights are known: hills, cliffs, terraces, houses, forests, points below it."""

import numpy as np
import pytest

from hf_any3d_survey.local_features.ground_surface import GroundSurface
from hf_any3d_survey.local_features.lowest_points import lowest_points, unsupported_points
from hf_any3d_survey.local_features.map_index import MapIndex, PlacedPoints
from hf_any3d_survey.local_features.neighborhoods import spacing_of

SIDE, DENSITY = 90.0, 6
MIDDLE = np.array([45.0, 45.0])

TERRAINS = {
    "plain": lambda x, y: 0.02 * x,
    "waves": lambda x, y: 0.1 * x + np.sin(y / 9),
    "slope of 30°": lambda x, y: np.tan(np.radians(30)) * x,
    "hills of 35°": lambda x, y: 8 * np.sin(x / 11.5) + 0.2 * y,
    "terraces": lambda x, y: 2.5 * np.floor(x / 15),
    "cliff": lambda x, y: np.where(x > 50, 15.0, 0.0),
    "embankment": lambda x, y: np.clip(8 - np.abs(x - 45) / 1.5, 0, 4),
}
SLOPES = (0, 15, 30, 45)
FOUND = {
    "plain": (0.99, 0.99),
    "waves": (0.99, 0.99),
    "slope of 30°": (0.95, 0.9),
    "hills of 35°": (0.95, 0.85),
    "terraces": (0.8, 0.6),
    "cliff": (0.93, 0.93),
    "embankment": (0.93, 0.93),
}


def made(terrain, density=DENSITY, seed=0, forest=False):
    """Points of a terrain with a house that stands on it, and trees; their heights above it, and what is ground."""
    generator = np.random.default_rng(seed)
    height = TERRAINS.get(terrain) or (lambda x, y: np.tan(np.radians(terrain)) * (0.8 * x + 0.6 * y))
    flat = generator.random((int(density * SIDE**2), 2)) * SIDE
    ground = height(*flat.T)
    above = generator.normal(0, 0.02, len(flat))
    # As high as at the middle, all over
    is_house = (np.abs(flat - MIDDLE - [0, 20]) < [6, 5]).all(axis=1)
    eaves = height(*(MIDDLE + [0, 20])[:, None])[0] + 7
    above[is_house] = (eaves - ground)[is_house]
    for middle in generator.random((300 if forest else 20, 2)) * SIDE:
        is_tree = (((flat - middle) ** 2).sum(axis=1) < 9) & ~is_house
        # Some pulses reach the ground below a crown.
        is_tree &= generator.random(len(flat)) < 0.85
        above[is_tree] = generator.uniform(3, 9, int(is_tree.sum()))
    is_ground = np.abs(above) < 0.2
    return np.column_stack([flat, ground + above]), above, is_ground & ~is_house


def below(points, kind, share, seed=1):
    """Points below the ground, as reflections and errors of scanners make them."""
    generator = np.random.default_rng(seed)
    copied = points[generator.choice(len(points), max(1, int(share * len(points))), replace=False)]
    if kind == "scattered":
        return copied - np.column_stack([np.zeros((len(copied), 2)), generator.uniform(5, 80, len(copied))])
    if kind == "layer":
        return copied - [0, 0, 14]
    centers = copied[::6] - [0, 0, 25]
    return np.concatenate([centers + generator.normal(0, 0.3, centers.shape) for _ in range(6)])


def found_above(points, count=None):
    """Heights of the first points above the ground, and which points are noise."""
    surface = GroundSurface.below(points, spacing_of(points))
    return surface.heights_above(points[:count])[:, 1], surface.is_noise


@pytest.mark.parametrize("terrain", TERRAINS)
def test_the_ground_is_where_it_was_made(terrain):
    # Share of the ground whose height is found to 15 cm: among single trees, and in a forest, which hides steps
    for forest, share in zip((False, True), FOUND[terrain], strict=True):
        points, above, is_ground = made(terrain, forest=forest)
        found, is_noise = found_above(points)
        assert (np.abs(found - above)[is_ground] < 0.15).mean() > share
        assert (found[above > 2] > 1.5).mean() > 0.95, "houses and trees stand on it"
        assert is_noise.mean() < 0.001


@pytest.mark.parametrize(("degrees", "least"), zip(SLOPES, (0.99, 0.99, 0.98, 0.93), strict=True))
def test_ground_is_told_from_things_at_each_slope_with_noise_and_without(degrees, least):
    points, _, is_ground = made(degrees)
    for share in (0, 0.01):
        noise = below(points, "scattered", share)[: int(share * len(points))]
        found, _ = found_above(np.concatenate([points, noise]), len(points))
        is_called = np.abs(found) < 0.5
        iou = (is_called & is_ground).sum() / (is_called | is_ground).sum()
        assert iou > least


@pytest.mark.parametrize("kind", ["scattered", "layer", "clusters"])
@pytest.mark.parametrize("terrain", ["waves", "hills of 35°"])
@pytest.mark.parametrize("density", [0.5, DENSITY])
def test_points_below_the_ground_do_not_move_it(terrain, kind, density):
    points, _, _ = made(terrain, density)
    clean, _ = found_above(points)
    for share in (0.001, 0.01):
        found, is_noise = found_above(np.concatenate([points, below(points, kind, share)]), len(points))
        # Cells are a little smaller with more points.
        assert np.quantile(np.abs(found - clean), 0.9) < 0.15
        assert np.quantile(np.abs(found - clean), 0.99) < 0.5
        assert not is_noise[: len(points)].any() and is_noise[len(points) :].mean() > 0.95


@pytest.mark.parametrize("degrees", [0, 35])
def test_the_ground_under_a_closed_canopy_is_that_of_few_points(degrees):
    """One point of fifty lies on the ground; the canopy has no level, and noise in clusters is not spread."""
    generator = np.random.default_rng(3)
    flat = generator.random((int(DENSITY * SIDE**2), 2)) * SIDE
    above = np.full(len(flat), 9.0)
    for middle in np.stack(np.meshgrid(*[np.arange(2, SIDE, 4)] * 2), axis=-1).reshape(-1, 2):
        away = np.linalg.norm(flat - middle - generator.uniform(-0.8, 0.8, 2), axis=1)
        above = np.maximum(above, np.where(away < 3, generator.uniform(14, 26) * (1 - 0.2 * away), 0))
    above *= generator.uniform(0.75, 1, len(flat))
    is_ground = generator.random(len(flat)) < 1 / 50
    above[is_ground] = generator.normal(0, 0.03, is_ground.sum())
    points = np.column_stack([flat, above + np.tan(np.radians(degrees)) * flat[:, 0]])
    noise = below(points, "clusters", 0.003)
    found, is_noise = found_above(np.concatenate([points, noise]), len(points))
    assert (np.abs(found[is_ground]) < 1).mean() > 0.75 and is_noise[: len(points)].mean() < 0.002
    # A saved model that looks by windows has the ground that it has learned.
    old = GroundSurface.by_windows(points, spacing_of(points))
    assert (old.heights_above(points)[is_ground, 1] < -1).mean() > 0.9


@pytest.mark.parametrize("density", [0.5, DENSITY])
def test_lone_points_in_the_air_are_noise_and_things_are_none(density):
    points, _, _ = made("waves", density)
    generator = np.random.default_rng(1)
    birds = points[generator.choice(len(points), len(points) // 500, replace=False)]
    birds = birds + np.column_stack([np.zeros((len(birds), 2)), generator.uniform(20, 100, len(birds))])
    # Points of a wire stand one behind the other.
    along = np.arange(5, 85, 1.0)
    wire = np.column_stack([along, np.full(len(along), 30.0), 18 + TERRAINS["waves"](along, 30.0)])
    _, is_noise = found_above(np.concatenate([points, wire, birds]))
    assert is_noise[-len(birds) :].mean() > 0.95 and not is_noise[: -len(birds)].any()


def test_a_tile_of_a_few_meters_with_a_low_point_in_each_cell_keeps_its_ground():
    generator = np.random.default_rng(0)
    points = np.column_stack([generator.random((20_000, 2)) * [18.3, 12.2], generator.normal(0, 0.02, 20_000)])
    noisy = np.concatenate([points, below(points, "scattered", 0.0125)])
    found, is_noise = found_above(noisy, len(points))
    assert np.quantile(np.abs(found), 0.98) < 1 and is_noise[len(points) :].mean() > 0.9


def test_a_roof_of_50_meters_is_no_ground_to_all_surfaces():
    points, _, _ = made("plain")
    is_roof = (np.abs(points[:, :2] - MIDDLE) < 25).all(axis=1)
    points[is_roof, 2] = 9
    heights = GroundSurface.below(points, spacing_of(points)).heights_above(points)
    assert (heights[is_roof, 2] > 5).mean() > 0.99 and (np.abs(heights[is_roof, 1]) < 1).mean() > 0.5


def test_a_ditch_is_ground_however_deep():
    points, _, _ = made("waves")
    in_ditch = np.abs(points[:, 1] - 12) < 2
    points[in_ditch, 2] -= 5
    is_left_out = unsupported_points(points, np.zeros(2), 1.0)
    heights = points[lowest_points(points, ~is_left_out, np.zeros(2), 1.0), 2]
    # Columns 11 and 12 are within it, 8 and 15 beside it; trees may hide those of a cell.
    assert (heights[:, [11, 12]].mean(axis=1) < heights[:, [8, 15]].mean(axis=1) - 3).mean() > 0.9


@pytest.mark.parametrize("count", [1, 3, 50])
def test_a_few_points_have_a_ground(count):
    points = np.random.default_rng(0).random((count, 3)) * [20, 20, 60]
    assert np.isfinite(GroundSurface.below(points, 1.0).heights).all()


def test_a_large_scan_is_looked_at_in_parts_that_have_the_ground_of_the_whole(monkeypatch):
    generator = np.random.default_rng(0)
    flat = generator.random((60_000, 2)) * [700, 60]
    points = np.column_stack([flat, TERRAINS["waves"](*flat.T) + generator.normal(0, 0.02, len(flat))])
    points[(flat % 50 < 12).all(axis=1), 2] += 6  # houses
    points = np.concatenate([points, below(points, "scattered", 0.005), points[::900] + [0, 0, 40]])
    whole = GroundSurface.below(points, 1.0)
    for name, most in {"_MOST_POINTS": 15_000, "_CELLS_AT_ONCE": 1 << 12, "_SQUARE": 100}.items():
        monkeypatch.setattr(f"hf_any3d_survey.local_features.ground_surface.{name}", most)
    parts = GroundSurface.below(points, 1.0)
    assert (parts.is_noise == whole.is_noise).all() and whole.is_noise.sum() > 300
    # What is low anywhere decides when the search for low points ends.
    assert (np.abs(parts.heights - whole.heights) < 0.01).mean() > 0.999


def test_points_of_an_area_are_found():
    points = np.random.default_rng(0).normal(0, [30, 5, 1], (50_000, 3))
    index = MapIndex(PlacedPoints(points.astype(np.float32), np.array([2.0, 2, 1]), np.array([500.0, 0, 0])))
    placed = points.astype(np.float32) * [2.0, 2, 1] + [500, 0, 0]
    for low, high in (([490, -3], [510, 4]), ([0, -99], [999, 99]), ([700, 0], [710, 1])):
        expected = ((placed[:, :2] >= low) & (placed[:, :2] <= high)).all(axis=1)
        np.testing.assert_array_equal(index.within(np.array(low), np.array(high)), np.flatnonzero(expected))
