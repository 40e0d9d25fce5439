"""Returns of pulses: read from LAS as laspy reads them, and kept by other formats and rows."""

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, read_point_cloud, write_point_cloud
from hf_any3d.data.inputs import to_cloud

laspy = pytest.importorskip("laspy")


@pytest.mark.parametrize("kind", [1, 3, 6, 8])
def test_returns_of_las_are_those_of_laspy(kind, tmp_path):
    generator = np.random.default_rng(kind)
    file = laspy.create(point_format=kind, file_version="1.4")
    file.x, file.y, file.z = generator.uniform(0, 100, (3, 50))
    file.number_of_returns = generator.integers(1, 6, 50)
    file.return_number = np.minimum(file.number_of_returns, generator.integers(1, 6, 50))
    file.write(tmp_path / "tile.las")
    cloud = read_point_cloud(tmp_path / "tile.las")
    assert np.array_equal(cloud.return_number, file.return_number)
    assert np.array_equal(cloud.number_of_returns, file.number_of_returns)
    for name in ("copy.ply", "copy.npz"):
        write_point_cloud(tmp_path / name, cloud)
        copy = read_point_cloud(tmp_path / name)
        assert np.array_equal(copy.return_number, cloud.return_number), name
        assert np.array_equal(copy.number_of_returns, cloud.number_of_returns), name


def test_rows_have_returns_and_files_without_stay_silent(recwarn, tmp_path):
    points = np.random.default_rng(0).random((10, 3))
    row = {"points": points, "return_number": np.ones(10), "number_of_returns": np.full(10, 2)}
    assert to_cloud(row).number_of_returns.tolist() == [2.0] * 10
    write_point_cloud(tmp_path / "plain.ply", PointCloudData(points))
    assert read_point_cloud(tmp_path / "plain.ply").return_number is None and not recwarn.list
