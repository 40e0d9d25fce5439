import pytest

from hf_any3d.data.files import PointCloudData, file_type_of, point_cloud_bytes, read_point_cloud
from tests.data.files.conftest import FILES

SILENT = {"obj", "xyz", "pts", "txt"}


@pytest.mark.parametrize("name", sorted(path.name for path in FILES.iterdir() if path.suffix not in (".md", ".mtl")))
def test_bytes_tell_the_type_of_their_file_or_nothing(name):
    file_type = name.rpartition(".")[2]
    assert file_type_of((FILES / name).read_bytes()) == (None if file_type in SILENT else file_type)


@pytest.mark.parametrize("data", [b"", b"\0" * 83, b"\0" * 84 + b"x", b"v 0 0 0"])
def test_other_bytes_tell_nothing(data):
    assert file_type_of(data) is None


@pytest.mark.parametrize("file_type", ["ply", "npz"])
def test_clouds_become_bytes_that_tell_their_type(file_type):
    data = point_cloud_bytes(PointCloudData([[1.0, 2.0, 3.0]], labels=[7]), file_type)
    assert file_type_of(data) == file_type
    cloud = read_point_cloud(data, file_type=file_type)
    assert cloud.points.tolist() == [[1, 2, 3]] and cloud.labels.tolist() == [7]


def test_clouds_become_bytes_of_known_types_only():
    with pytest.raises(ValueError, match="file_type is 'stl'; expected one of ply, obj, npz"):
        point_cloud_bytes(PointCloudData([[1.0, 2.0, 3.0]]), "stl")
