"""PTX: scans with their transforms, written here by construction."""

import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud
from tests.errors import raises

from .builders import ptx

ROWS = np.array(
    [
        [1.001, 2, 3, 0.5, 255, 0, 0],
        [0, 0, 0, 0.5, 0, 0, 0],  # no return
        [4, 5, 6, 0.25, 0, 0, 255],
    ]
)
# A turn by a right angle about z, and a place on a map.
MOVED = np.array([[0, 1, 0, 0], [-1, 0, 0, 0], [0, 0, 1, 0], [500_000.0, 5_000_000.0, 30, 1]])


def test_scans_are_moved_by_their_transforms_and_joined():
    data = ptx((ROWS, MOVED), (ROWS[:1], MOVED))
    with pytest.warns(UserWarning, match="1 of 4 directions of the scans have no return and are skipped"):
        cloud = read_point_cloud(data, file_type="ptx")
    local = ROWS[[0, 2, 0], :3]
    expected = np.column_stack([500_000 - local[:, 1], 5_000_000 + local[:, 0], 30 + local[:, 2]])
    np.testing.assert_allclose(cloud.points.astype(np.float64) + cloud.offset, expected, atol=1e-6)
    assert cloud.intensity.tolist() == [0.5, 0.25, 0.5]
    assert (cloud.colors * 255).tolist() == [[255, 0, 0], [0, 0, 255], [255, 0, 0]]
    assert cloud.up_axis == "z" and cloud.meters_per_unit == 1
    assert file_type_of(data) == "ptx"


def test_scales_that_nothing_tells_are_told_and_0_everywhere_is_none():
    rows = ROWS[[0, 2]]
    bright = rows * [1, 1, 1, 4095, 1, 1, 1]
    with pytest.warns(UserWarning, match="intensities reach 0.5 in one scan and 2047.5 in another"):
        cloud = read_point_cloud(ptx((rows, np.eye(4)), (bright, np.eye(4))), file_type="ptx")
    assert cloud.intensity.tolist() == [0.5, 0.25, 2047.5, 1023.75]
    dark = rows * [1, 1, 1, 0, 0, 0, 0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cloud = read_point_cloud(ptx((dark, np.eye(4)), (dark, np.eye(4))), file_type="ptx")
        assert cloud.colors is None and cloud.intensity is None and len(cloud) == 4
        # A scan of a dark room among others is one of values.
        mixed = read_point_cloud(ptx((rows, np.eye(4)), (dark, np.eye(4))), file_type="ptx")
    assert len(mixed.intensity) == len(mixed.colors) == 4


def test_colors_that_some_scans_lack_are_left_out():
    data = ptx((ROWS[[0, 2]], np.eye(4)), (ROWS[:1, :4], np.eye(4)))
    with pytest.warns(UserWarning, match="1 of 2 scans have no colors"):
        cloud = read_point_cloud(data, file_type="ptx")
    assert cloud.colors is None and len(cloud.intensity) == len(cloud) == 3


@pytest.mark.parametrize(
    ("old", "new", "naming"),
    [
        (b"3\r\n1\r\n", b"3\r\n2\r\n", "cut off"),
        (b"3\r\n1\r\n", b"3\r\nx\r\n", "line 2"),
        (b"3\r\n1\r\n", b"99999999999\r\n9999999\r\n", "points"),
        (b"0 0 1 0\r\n0 0 0 1", b"0 0 1 0\r\n0 0 nan 1", "line 7"),
        (b"0 0 1 0\r\n", b"", "line 10"),
        (b"0.25 0 0 255", b"0.25 0 0", "line 13"),
        (b" 0.5 255 0 0", b" 0.5 255", ""),
    ],
)
def test_a_wrong_or_cut_file_is_refused(old, new, naming):
    data = ptx((ROWS, np.eye(4))).replace(b".0", b"")
    assert old in data
    with raises(PointCloudFileError, naming=naming):
        read_point_cloud(data.replace(old, new, 1), file_type="ptx")


def test_a_scan_without_a_return_is_no_cloud():
    with pytest.warns(UserWarning), raises(PointCloudFileError, naming="has no points"):
        read_point_cloud(ptx((ROWS[1:2], np.eye(4))), file_type="ptx")
