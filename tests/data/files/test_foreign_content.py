"""Files whose content is not what their name says are refused with what they are."""

import io
import zipfile

import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud, supported_file_types
from tests.errors import raises

from .builders import ply_square

PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes(range(200))


def archive():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as opened:
        opened.writestr("scan.ply", ply_square("ascii"))
    return file.getvalue()


@pytest.mark.parametrize("file_type", supported_file_types())
def test_an_image_is_called_one_whatever_its_name(file_type):
    with raises(PointCloudFileError, naming="a PNG image"):
        read_point_cloud(PNG, file_type=file_type)


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"\xff\xd8\xff\xe0\0\x10JFIF" + bytes(90), "JPEG"),
        (b"%PDF-1.7\n%\xe2\xe3\n1 0 obj", "PDF"),
        (b"<!DOCTYPE html>\n<html><body>404</body></html>", "HTML"),
        (archive(), "zip"),
        (b"\x1f\x8b\x08" + bytes(60), "gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(60), "HDF5"),
        ("x y z\n1 2 3\n".encode("utf-16"), "UTF-16"),
    ],
)
def test_other_content_is_named(data, what):
    for file_type in ("ply", "xyz", "bin"):
        with raises(PointCloudFileError, naming=what):
            read_point_cloud(data, file_type=file_type)


def test_a_cloud_under_the_name_of_another_format_is_named():
    with raises(PointCloudFileError, naming="PLY"):
        read_point_cloud(ply_square("ascii"), file_type="pcd")


@pytest.mark.parametrize(("file_type", "rows"), [("bin", "16 or 20"), ("kitti", "16"), ("nuscenes", "20")])
def test_sweeps_that_are_cut_off_say_how_long_rows_are(file_type, rows):
    with raises(PointCloudFileError, naming=f"63 bytes; expected rows of {rows} bytes"):
        read_point_cloud(bytes(63), file_type=file_type)
