"""Generated tiles: the file has what was drawn, as laspy reads it."""

import io

import laspy
import numpy as np
import pytest

from hf_any3d.data.generated.tiles import draw_tile, las_bytes


@pytest.mark.parametrize("labeled", [True, False])
def test_a_tile_is_a_las_file_with_its_points_returns_and_classes(labeled):
    tile = draw_tile(3)
    file = laspy.read(io.BytesIO(las_bytes(tile, labeled=labeled)))
    assert np.abs(file.xyz - tile.points).max() < 0.001
    assert (file.header.mins <= file.xyz.min(axis=0)).all() and (file.header.maxs >= file.xyz.max(axis=0)).all()
    assert np.array_equal(file.return_number, tile.return_numbers)
    assert np.array_equal(file.number_of_returns, tile.return_counts)
    assert np.array_equal(file.intensity, tile.intensities)
    assert np.array_equal(file.classification, tile.classes if labeled else np.zeros(len(tile.classes)))
    assert file.header.number_of_points_by_return[:2].tolist() == np.bincount(tile.return_numbers)[1:].tolist()


def test_tiles_of_one_seed_are_equal_and_of_two_apart():
    assert las_bytes(draw_tile(0)) == las_bytes(draw_tile(0))
    assert draw_tile(1).points[:, 0].min() - draw_tile(0).points[:, 0].max() > 900
