import h5py
import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError
from hf_any3d.data.files.hdf5 import open_hdf5, read_slice


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
        np.testing.assert_array_equal(read_slice(arrays["data"], range(1, 3), path)[0], [[6, 7, 8], [9, 10, 11]])


def test_an_array_that_claims_more_than_the_file_can_hold_is_refused(path):
    with h5py.File(path, "a") as file:
        file.create_dataset("label", (1 << 40,), "f8", chunks=(1024,))
    with pytest.raises(PointCloudFileError, match=r"clouds.h5: array 'label' claims 8796093022208 bytes in a file of"):
        with open_hdf5(path):
            pass


def test_arrays_in_other_files_are_refused(path, tmp_path):
    secret = tmp_path / "secret.bin"
    secret.write_bytes(b"12345678")
    with h5py.File(path, "a") as file:
        file.create_dataset("label", (1,), "i8", external=[(str(secret), 0, 8)])
    with pytest.raises(PointCloudFileError, match="array 'label' lies in other files"):
        with open_hdf5(path):
            pass


def test_links_to_other_files_are_not_followed(path, tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["label"] = np.zeros(4)
    with h5py.File(path, "a") as file:
        file["label"] = h5py.ExternalLink("other.h5", "label")
    with pytest.raises(PointCloudFileError, match="no array 'label'; found data"):
        with open_hdf5(path, ["data", "label"]):
            pass


@pytest.mark.parametrize("content", [b"", b"no HDF5", b"\x89HDF\r\n\x1a\n" + bytes(100)])
def test_damaged_files_are_named(tmp_path, content):
    path = tmp_path / "damaged.h5"
    path.write_bytes(content)
    with pytest.raises(PointCloudFileError, match="damaged.h5: no sound HDF5 file"):
        with open_hdf5(path):
            pass
