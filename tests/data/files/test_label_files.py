"""Labels of points in a file beside the cloud, which the reader is asked for."""

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud
from tests.errors import raises


@pytest.fixture
def cloud(tmp_path):
    np.savetxt(tmp_path / "a.xyz", np.arange(12.0).reshape(4, 3) ** 2)
    return tmp_path / "a.xyz"


@pytest.mark.parametrize(
    "content, expected, names",
    [
        (np.array([[1], [0], [3], [1]]), [1, 0, 3, 1], None),
        (np.array(["tree", "car", "tree", "wall"]), [1, 0, 1, 2], ("car", "tree", "wall")),
        ("class\n1\n0\n3\n1\n", [1, 0, 3, 1], None),
        ('# of points\n"tree"\ncar\ntree\nwall\n', [1, 0, 1, 2], ("car", "tree", "wall")),
    ],
)
def test_labels_are_numbers_or_words(content, expected, names, cloud):
    if isinstance(content, str):
        cloud.with_name("a_seg.txt").write_text(content)
    else:
        np.save(cloud.with_name("a_seg.npy"), content)
    ending = "_seg.txt" if isinstance(content, str) else "_seg.npy"
    with pytest.warns(UserWarning, match="beside it"):
        read = read_point_cloud(cloud, label_file=ending)
    assert read.labels.tolist() == expected and read.label_names == names


def test_what_is_no_label_each_is_refused_by_the_name_of_its_file(cloud):
    np.save(cloud.with_name("a_seg.npy"), np.zeros((4, 2)))
    with raises(PointCloudFileError, naming="a_seg.npy"):
        read_point_cloud(cloud, label_file="_seg.npy")
    cloud.with_name("a_seg.txt").write_text("1, 2\n3, 4\n")
    with raises(PointCloudFileError, naming="several values"):
        read_point_cloud(cloud, label_file="_seg.txt")
