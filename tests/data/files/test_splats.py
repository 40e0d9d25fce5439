"""Gaussian splats of .splat and .spz, written here by construction, are the points that .ply gives."""

import gzip
import struct

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, ReadLimits, file_type_of, read_point_cloud
from tests.errors import raises

from .builders import splat_rows, splats, spz, spz_content

POINTS = np.array([[0.5, -1.25, 3], [-2047.75, 2, -0.125], [4, 5, 6.5]], np.float32)
COLORS = np.array([[255, 0, 10], [128, 128, 128], [0, 128, 255]])
OPACITIES = [255, 25, 26]  # a tenth of 255 is between the last two
KEPT = [0, 2]


def read(data, file_type):
    with pytest.warns(UserWarning, match="1 of 3 Gaussian splats have an opacity below 0.1 and are left out"):
        return read_point_cloud(data, file_type=file_type)


def test_rows_of_web_viewers_are_points_with_colors():
    cloud = read(splat_rows(POINTS, COLORS, OPACITIES), "splat")
    assert cloud.points.tolist() == POINTS[KEPT].tolist()
    np.testing.assert_allclose(cloud.colors * 255, COLORS[KEPT], atol=1e-4)
    assert cloud.up_axis is None


@pytest.mark.parametrize("degree", [0, 1, 3, 4])
@pytest.mark.parametrize("version", [1, 2, 3, 4])
def test_packed_splats_are_those_written(version, degree):
    data = spz(POINTS, COLORS, OPACITIES, version, degree)
    cloud = read(data, "spz")
    assert cloud.points.tolist() == POINTS[KEPT].tolist()
    # Bytes are wider than colors, so that harmonics may bring them back into range.
    wide = 0.5 + 0.28209479 * (COLORS[KEPT] / 255 - 0.5) / 0.15
    np.testing.assert_allclose(cloud.colors, wide.clip(0, 1), atol=1e-6)
    assert cloud.up_axis == "y" and file_type_of(data) == "spz"


def test_an_extension_may_turn_the_axes(tmp_path):
    """What it says is not read, so that no axis is known to point up."""
    extension = struct.pack("<IIB", 0xADBE0003, 1, 6)
    header, parts = spz_content(POINTS, COLORS, OPACITIES)
    legacy = gzip.compress(header + bytes([2, 0]) + b"".join(parts) + extension)
    streams = spz(POINTS, COLORS, OPACITIES, 4)
    streams = changed(changed(streams, 14, "B", 2), 16, "<I", 32 + len(extension))
    for data in (legacy, streams[:32] + extension + streams[32:]):
        with pytest.warns(UserWarning, match="left out: scales, rotations, spherical harmonics, extensions"):
            cloud = read_point_cloud(data, file_type="spz")
        assert cloud.up_axis is None and cloud.points.tolist() == POINTS[KEPT].tolist()


def test_what_a_cloud_has_no_place_for_is_told():
    for data, file_type, left_out in (
        (splat_rows(POINTS, COLORS, [255] * 3), "splat", "left out: scales, rotations"),
        (spz(POINTS, COLORS, [255] * 3), "spz", "left out: scales, rotations, spherical harmonics"),
    ):
        with pytest.warns(UserWarning, match=left_out) as caught:
            read_point_cloud(data, file_type=file_type)
        assert len(caught) == 1


def test_the_same_splats_of_ply_are_kept():
    logits = [5.0, np.log(0.0999 / 0.9001), np.log(0.1001 / 0.8999), -9.0]
    with pytest.warns(UserWarning, match="2 of 4 Gaussian splats"):
        assert len(read_point_cloud(splats(opacity=logits), file_type="ply")) == 2


def packed(header, parts):
    return gzip.compress(header + bytes(2) + b"".join(parts))


def changed(data, at, kind, value):
    return data[:at] + struct.pack(kind, value) + data[at + struct.calcsize(kind) :]


CONTENT = spz_content(POINTS, COLORS, OPACITIES)
STREAMS = spz(POINTS, COLORS, OPACITIES, 4)
WRONG = {
    "cut within a row": ("splat", splat_rows(POINTS, COLORS, OPACITIES)[:-1]),
    "no gzip": ("spz", b"\x1f\x8b\x08" + bytes(40)),
    "cut header": ("spz", gzip.compress(CONTENT[0])),
    "cut content": ("spz", packed(CONTENT[0], CONTENT[1][:-1])),
    "cut stream": ("spz", spz(POINTS, COLORS, OPACITIES)[:-9]),
    "other content": ("spz", gzip.compress(b"other" * 20)),
    "version 5": ("spz", packed(changed(CONTENT[0], 4, "<I", 5), CONTENT[1])),
    "degree 5": ("spz", packed(changed(CONTENT[0], 12, "B", 5), CONTENT[1])),
    "25 bits of fractions": ("spz", packed(changed(CONTENT[0], 13, "B", 25), CONTENT[1])),
    "four billion splats": ("spz", packed(changed(CONTENT[0], 8, "<I", 2**32 - 1), CONTENT[1])),
    "four billion splats in streams": ("spz", changed(STREAMS, 8, "<I", 2**32 - 1)),
    "table after the end": ("spz", changed(STREAMS, 16, "<I", 2**31)),
    "table in the header": ("spz", changed(STREAMS, 16, "<I", 3)),
    "long stream": ("spz", changed(STREAMS, 32, "<Q", 2**40)),
    "other size": ("spz", changed(STREAMS, 40, "<Q", 28)),
    "cut streams": ("spz", STREAMS[:200]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_or_cut_file_is_refused(name):
    file_type, data = WRONG[name]
    with pytest.raises(PointCloudFileError):
        read_point_cloud(data, file_type=file_type)


@pytest.mark.parametrize("version", [0, 3, 4])
def test_splats_are_limited(version):
    data = spz(POINTS, COLORS, OPACITIES, version) if version else splat_rows(POINTS, COLORS, OPACITIES)
    with raises(PointCloudFileError, naming="3 points"):
        read_point_cloud(data, file_type="spz" if version else "splat", limits=ReadLimits(points=2))
