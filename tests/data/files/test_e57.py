"""E57: a file of libE57Format with two scans, and files written here with other layouts and damage."""

import struct

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud
from hf_any3d.data.files.e57 import _checksums

from .builders import e57, paged
from .conftest import FILES

# By libE57Format 3 through pye57: the first 300 points of chair.npz, divided by 20. One scan has scaled integers of 18
# bits and marks every hundredth point as invalid; the other has spherical coordinates and a pose.
SCANS = (FILES.parent / "data" / "files" / "scans.e57").read_bytes()


def test_scans_of_another_program_are_joined_in_their_common_frame():
    with pytest.warns(UserWarning, match="3 of 300 points of a scan are marked as invalid and are left out"):
        cloud = read_point_cloud(SCANS, file_type="e57")
    with np.load(FILES / "chair.npz", allow_pickle=False) as archive:
        points, colors = archive["points"][:300].astype(np.float64) / 20, archive["colors"][:300]
    valid = np.arange(300) % 100 != 7
    sine, cosine = np.sin(0.6), np.cos(0.6)
    turned = points @ np.array([[cosine, -sine, 0], [sine, cosine, 0], [0, 0, 1]]).T + [1, 2, 3]
    np.testing.assert_allclose(cloud.points[:297], points[valid], atol=5.1e-5)  # as finely as they are scaled
    np.testing.assert_allclose(cloud.points[297:], turned, atol=1e-6)
    np.testing.assert_allclose(cloud.colors * 255, np.concatenate([colors[valid], colors]), atol=1e-4)
    intensity = np.arange(300) * 1000 // 300
    assert (cloud.intensity == np.concatenate([intensity[valid], intensity])).all()
    assert file_type_of(SCANS) == "e57"


@pytest.mark.parametrize("bits", [1, 7, 8, 13, 16, 31, 32, 47, 64])
def test_integers_of_any_width_are_those_written(bits):
    least = -(2 ** (bits - 1))
    values = np.random.default_rng(bits).integers(least, 2 ** (bits - 1), (200, 3), dtype=np.int64)
    fields = [(f"cartesian{axis}", least, 2 ** (bits - 1) - 1, values[:, i]) for i, axis in enumerate("XYZ")]
    cloud = read_point_cloud(e57(fields), file_type="e57")
    found = cloud.points if cloud.offset is None else cloud.points + cloud.offset
    np.testing.assert_allclose(found, values, rtol=1e-6, atol=1e-6)


def test_checksums_are_those_of_the_standard():
    assert _checksums(np.frombuffer(b"123456789", np.uint8)[None])[0] == 0xE3069283


def test_damage_is_explained():
    data = e57()
    for broken, why in (
        (b"ASTM-E58" + data[8:], "starts with b'ASTM-E58'"),
        (data[:20], "version 1.0 with pages of 0 bytes; expected 1.0 with 1024"),
        (data[:-1024], r"\d+ bytes of \d+, in pages of 1024; the file may be cut off"),
        (data[:100] + bytes([data[100] ^ 1]) + data[101:], "page 0 of .* is damaged: it has another checksum"),
    ):
        with pytest.raises(PointCloudFileError, match=why):
            read_point_cloud(broken, file_type="e57")


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        (b'recordCount="40"', b'recordCount="99"', "bytes of cartesianX for 99 points of 64 bits; it may be cut off"),
        (b'recordCount="40"', b'recordCount="-1"', "recordCount is '-1'; expected a whole number"),
        (b'recordCount="40"', b'recordCount="x "', "recordCount is 'x'; expected a whole number"),
        (
            b"cartesianZ",
            b"cartesianQ",
            "a scan with the fields cartesianX, cartesianY, cartesianQ; expected cartesianX",
        ),
        (b'"Float"', b'"Blurb"', "a field of type 'Blurb'; expected Float, Integer or ScaledInteger"),
        (b"<data3D", b"<data4D", "the XML section is damaged"),
        (b"<e57Root", b"<!ENTITY", "the XML section declares entities; expected none"),
        (b'fileOffset="48"', b'fileOffset="0" ', "a section of kind 65 with"),
    ],
)
def test_a_wrong_layout_is_explained(old, new, why):
    logical = e57(is_paged=False)
    assert old in logical
    with pytest.raises(PointCloudFileError, match=why):
        read_point_cloud(paged(logical.replace(old, new, 1)), file_type="e57")


def test_packets_that_lie_about_their_sizes_are_refused():
    logical = bytearray(e57(is_paged=False))
    packet = 48 + 32
    for at, value, why in (
        (packet + 2, 0xFFFF, "a packet of 65536 bytes ends after its section"),
        (packet + 4, 9, "a packet with other fields than the 3 of its scan"),
        (packet + 6, 0xFFF0, "a packet with more bytes than it declares"),
    ):
        broken = bytearray(logical)
        struct.pack_into("<H", broken, at, value)
        with pytest.raises(PointCloudFileError, match=why):
            read_point_cloud(paged(bytes(broken)), file_type="e57")
