import multiprocessing
import os
import signal
from pathlib import Path

import h5py
import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, ReadLimits, hdf5
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


def test_an_array_larger_than_the_file_allows_is_refused(path):
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
    with pytest.raises(PointCloudFileError, match="array 'label' is stored in other files"):
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
    with pytest.raises(PointCloudFileError, match="damaged.h5: not a valid HDF5 file"):
        with open_hdf5(path):
            pass


CRASH = Path(__file__).with_name("crash.h5")
"""A damaged file over which HDF5 2.0.0 reads where there is no memory; later versions may refuse it."""


def read_all(path):
    with open_hdf5(path) as arrays:
        return {name: read_slice(array, range(array.shape[0]), path) for name, array in arrays.items()}


def test_a_file_that_crashes_the_library_is_one_clear_error_and_the_next_is_read(path):
    with pytest.raises(PointCloudFileError, match=r"crash\.h5: rows 0 to .*are damaged"):
        read_all(CRASH)
    assert read_all(path)["data"].shape == (4, 2, 3)


def test_the_child_process_is_reused_and_files_are_opened_only_there(path, monkeypatch):
    read_all(path)
    first = hdf5._CHILD._process.pid
    assert first != os.getpid()
    monkeypatch.setattr(h5py, "File", None)
    read_all(path)
    assert hdf5._CHILD._process.pid == first
    os.kill(first, signal.SIGKILL)
    os.waitpid(first, 0)
    assert read_all(path)["data"].sum() == np.arange(24).sum()


def test_a_forked_process_starts_its_own_child(path):
    read_all(path)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.map(read_all, [path] * 4)
    assert [values["data"].sum() for values in found] == [276] * 4
    assert read_all(path)["data"].sum() == 276


def test_large_slices_are_complete(tmp_path):
    values = np.random.default_rng(0).random((300, 2000, 3), np.float32)
    with h5py.File(tmp_path / "large.h5", "w") as file:
        file["data"] = values
        file["swapped"] = values[:3].astype(">f8")
    with open_hdf5(tmp_path / "large.h5") as arrays:
        np.testing.assert_array_equal(read_slice(arrays["data"], range(10, 290), "large.h5"), values[10:290])
        assert len(read_slice(arrays["data"], range(295, 400), "large.h5")) == 5
        np.testing.assert_array_equal(read_slice(arrays["swapped"], range(3), "large.h5"), values[:3])


def test_a_file_beyond_the_limits_and_a_chunk_beyond_the_file_are_refused(path):
    with pytest.raises(PointCloudFileError, match=r"clouds\.h5: \d+ bytes; at most 10 are read"):
        with open_hdf5(path, limits=ReadLimits(bytes=10)):
            pass
    with h5py.File(path, "a") as file:
        file.create_dataset("label", (4,), "f8", chunks=(1 << 26,), maxshape=(None,))
    with pytest.raises(PointCloudFileError, match="array 'label' has chunks of 536870912 bytes in a file of"):
        with open_hdf5(path):
            pass


@pytest.mark.parametrize("answer", [b"{}\n", b"[1]\n", b"no JSON\n", b'{"shape": [9], "dtype": "<f8"}\n', b""])
def test_answers_of_the_child_process_are_checked(path, answer, monkeypatch, tmp_path):
    with open_hdf5(path) as arrays:
        array = arrays["data"]
    hdf5._CHILD._end()
    (tmp_path / "child.py").write_text(
        f"import sys, os\nfor line in sys.stdin:\n    os.write(1, {answer!r})\n    {'' if answer else 'sys.exit()'}\n"
    )
    monkeypatch.setattr(hdf5, "_START", f"exec(open({str(tmp_path / 'child.py')!r}).read())")
    with pytest.raises(PointCloudFileError, match="clouds.h5: rows 0 to 3 of 'data' are damaged"):
        read_slice(array, range(4), path)
    hdf5._CHILD._end()


def test_a_rewritten_file_is_read_again(path):
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    for _ in range(2):
        with pytest.raises(PointCloudFileError, match="not a valid HDF5 file"):
            read_all(path)
    path.write_bytes(whole)
    assert read_all(path)["data"].sum() == 276
    path.write_bytes(whole.replace(np.float32(23).tobytes(), np.float32(24).tobytes()))
    assert read_all(path)["data"].sum() == 277
