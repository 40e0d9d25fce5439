import h5py
import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, ReadLimits
from hf_any3d.data.files.hdf5 import open_hdf5


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "clouds.h5"
    with h5py.File(path, "w") as file:
        file["data"] = np.arange(24, dtype=np.float32).reshape(4, 2, 3)
        file["names"] = np.array([b"chair"] * 4)
        file.create_group("group")["data"] = np.zeros(3)
    return path


def test_arrays_of_numbers_are_found_and_read_in_slices(path):
    with open_hdf5(path, ["data"]) as arrays:
        assert set(arrays) == {"data"}
        np.testing.assert_array_equal(arrays["data"][1:3][0], [[6, 7, 8], [9, 10, 11]])


def read_all(path):
    with open_hdf5(path) as arrays:
        return {name: array[:] for name, array in arrays.items()}


def test_a_file_beyond_the_limits_is_refused(path):
    for limit in (10, path.stat().st_size):
        with h5py.File(path, "a") as file:
            file["large"] = np.zeros(10_000)
        with pytest.raises(PointCloudFileError):
            with open_hdf5(path, limits=ReadLimits(bytes=limit)):
                pass
        with h5py.File(path, "a") as file:
            del file["large"]


def test_damaged_rows_are_errors(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("data", data=np.arange(24.0).reshape(4, 6), fletcher32=True, chunks=(4, 6))
    path.write_bytes(path.read_bytes().replace(np.float64(7).tobytes(), np.float64(8).tobytes()))
    with pytest.raises(OSError):
        read_all(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(PointCloudFileError):
        read_all(path)
