"""GeoTIFF of ground and canopy, read back by rasterio."""

import numpy as np
import pytest
import rasterio

from hf_any3d_survey.inventory.rasters import Raster, canopy_raster, open_mosaic, terrain_raster
from hf_any3d_survey.inventory.terrain import Terrain
from tests.errors import raises

VALUES = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
VALUES[0, 0, 0] = np.nan


def slope(rng, size=(60, 40), count=15_000):
    """Ground that rises by a tenth to the east and falls by a twentieth to the north."""
    points = rng.uniform(0, 1, (count, 3)) * [*size, 0.01]
    points[:, 2] += 0.1 * points[:, 0] - 0.05 * points[:, 1]
    return points


def test_a_geotiff_is_read_back(tmp_path):
    path = tmp_path / "dtm.tif"
    with open_mosaic(path, (652_000, 6_862_000 - 1.5, 652_002, 6_862_000), 0.5, "EPSG:2154") as mosaic:
        mosaic.add(Raster(VALUES, (652_000.0, 6_862_000.0), 0.5))
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), VALUES)
        assert file.dtypes == ("float32",) and np.isnan(file.nodata) and file.crs.to_epsg() == 2154
        assert file.profile["tiled"] and file.profile["compress"] == "deflate"
        assert tuple(file.bounds) == (652_000, 6_862_000 - 1.5, 652_002, 6_862_000)
        # The value of the place in the north-west is that of the first row and column.
        assert [value[0] for value in file.sample([(652_000.6, 6_861_999.9)])] == [1]
    assert [file.name for file in tmp_path.iterdir()] == ["dtm.tif"]
    with open_mosaic(path, (10, 14, 18, 20), 2.0) as mosaic:
        mosaic.add(Raster(VALUES, (10.0, 20.0), 2.0))
    with rasterio.open(path) as file:
        assert file.crs is None
    with raises(ValueError, naming="EPSG:99999"), open_mosaic(tmp_path / "no.tif", (0, 0, 4, 3), 1.0, "EPSG:99999"):
        pass
    assert [file.name for file in tmp_path.iterdir()] == ["dtm.tif"]


def test_terrain_is_north_up_at_places_of_the_map():
    points = slope(np.random.default_rng(0))
    ground = Terrain.of(points, np.ones(len(points), bool), 1.0)
    raster = terrain_raster(ground, points, offset=(1000.3, 2000.2, 50))
    assert raster.corner == (1000.0, 2041.0) and raster.cell == 1 and raster.values.shape == (2, 41, 61)
    columns, rows = np.meshgrid(np.arange(2, 59), np.arange(2, 39))
    x = raster.corner[0] + columns + 0.5 - 1000.3
    y = raster.corner[1] - rows - 0.5 - 2000.2
    np.testing.assert_allclose(raster.values[0, rows, columns], 50 + 0.1 * x - 0.05 * y, atol=0.1)
    # In feet, cells and heights are in feet.
    foot = 0.3048
    feet = terrain_raster(ground, points, cell=5.0, offset=(1000.0, 2000.0, 50 / foot), meters_per_unit=foot)
    assert feet.corner == (1000.0, 2135.0) and feet.cell == 5
    east, north = 100.0, 60.0  # feet from the corner of the points, in the middle of a cell but for 2.5
    value = feet.values[0, int((2135 - 2000 - north) / 5), int(east / 5)]
    assert value == pytest.approx(50 / foot + 0.1 * (east + 2.5) - 0.05 * (north - 2.5), abs=0.4)


def test_there_is_no_ground_far_from_points():
    points = slope(np.random.default_rng(1), (100, 40))
    points = points[(points[:, 0] < 30) | (points[:, 0] > 70)]
    terrain = Terrain.of(points, np.ones(len(points), bool), 1.0)
    raster = terrain_raster(terrain, points, reach=10.0)
    elevation, guessed = raster.values[:, 20]
    is_known = ~np.isnan(elevation)
    assert is_known[:39].all() and not is_known[41:59].any() and is_known[61:].all()
    assert not guessed[:34].any() and guessed[36:39].all() and not guessed[66:].any()


def test_canopy_is_the_highest_of_each_cell():
    points = np.array([[10.1, 20.1, 5], [10.2, 20.2, 9], [11.9, 21.9, 3], [10.7, 20.1, 1]])
    raster = canopy_raster(points, np.array([4, 8, 2, -1.0], np.float32), 0.5)
    assert raster.corner == (10.0, 22.0) and raster.values.shape == (1, 4, 4)
    expected = np.full((4, 4), np.nan)
    expected[3, 0] = 8  # the south-west
    expected[0, 3] = 2
    expected[3, 1] = 0
    np.testing.assert_array_equal(raster.values[0], expected)


def test_the_canopy_has_no_gaps_and_no_pits():
    x, y = np.meshgrid(np.arange(0.25, 20, 0.5), np.arange(0.25, 20, 0.5))
    points = np.column_stack([x.ravel(), y.ravel(), np.zeros(x.size)])
    heights = np.full(len(points), 12, np.float32)
    heights[(np.abs(points[:, 0] - 5.25) < 0.1) & (np.abs(points[:, 1] - 5.25) < 0.1)] = 3
    is_glade = (np.abs(points[:, :2] - 14) < 2).all(axis=1)
    heights[is_glade] = 0
    is_lost = np.random.default_rng(0).random(len(points)) < 0.3
    is_lost |= (np.abs(points[:, :2] - [14, 4]) < 2).all(axis=1)
    raster = canopy_raster(points[~is_lost], heights[~is_lost], 0.5).values[0, ::-1]
    assert raster[10, 10] == 12, "a pit"
    assert np.nanmax(raster[25:31, 25:31]) == 0, "a glade"
    assert np.isnan(raster[6:10, 26:30]).all(), "too wide a gap"
    # The gap, and corners
    assert np.isnan(raster).mean() < 0.05


def test_later_tiles_fill_what_is_empty(tmp_path):
    whole = np.random.default_rng(2).uniform(0, 30, (600, 700)).astype(np.float32)
    whole[:, 650:] = np.nan
    whole = whole[None]
    path = tmp_path / "chm.tif"
    with open_mosaic(path, (1000, 2000, 1350, 2300), 0.5, "EPSG:25832") as mosaic:
        # They overlap, and the second has other values there; one lies half outside.
        mosaic.add(Raster(whole[:, :, :300], (1000, 2300), 0.5))
        mosaic.add(Raster(np.concatenate([whole[:, :, 250:300] + 100, whole[:, :, 300:]], axis=2), (1125, 2300), 0.5))
        mosaic.add(Raster(np.full((1, 20, 20), -1, np.float32), (995, 2305), 0.5))
        with raises(ValueError, naming="a raster of cells"):
            mosaic.add(Raster(VALUES, (1000.2, 2300), 0.5))
        assert not path.exists()
    with rasterio.open(path) as file:
        np.testing.assert_array_equal(file.read(), whole)


def test_a_broken_off_mosaic_leaves_nothing(tmp_path):
    with pytest.raises(RuntimeError), open_mosaic(tmp_path / "chm.tif", (0, 0, 10, 10), 1.0):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
