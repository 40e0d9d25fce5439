import pytest

from hf_any3d.data.files import PointCloudFileError
from hf_any3d.data.parquet.reading import read_lines


def test_lines_are_stripped_and_empty_ones_dropped(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes(b"\xef\xbb\xbfairplane\r\n\r\n  tv stand \nb\xc3\xa4r")
    assert read_lines(path) == ["airplane", "tv stand", "bär"]


def test_a_missing_list_is_named(tmp_path):
    with pytest.raises(PointCloudFileError):
        read_lines(tmp_path / "names.txt")
