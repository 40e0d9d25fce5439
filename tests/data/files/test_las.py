import struct
import sys

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import las


def read(data, kind="las"):
    return read_point_cloud(data, file_type=kind)


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("point_format", [2, 3, 7])
def test_coordinates_colors_and_classes_are_those_written(compressed, point_format):
    xyz, data = las(compressed, point_format)
    cloud = read(data, "laz" if compressed else "las")
    np.testing.assert_allclose(cloud.points + cloud.offset, xyz, atol=2e-6)
    assert np.abs(cloud.points).max() < 12 and cloud.offset.tolist() == np.floor(xyz.min(0)).tolist()
    assert (cloud.labels == np.arange(200) % 7).all()
    assert (cloud.intensity == np.arange(200) * 300 % 65536).all() and cloud.intensity.dtype == np.float32
    assert 0.9 < cloud.colors.max() <= 1


def test_formats_without_colors_have_none():
    cloud = read(las(False, 6)[1])
    assert cloud.colors is None and len(cloud) == 200


@pytest.mark.parametrize("point_format", [0, 3, 6, 7])
def test_intensities_are_the_numbers_of_the_file_and_zeros_stand_for_none(point_format):
    data = bytearray(las(False, point_format)[1])
    np.testing.assert_array_equal(read(bytes(data)).intensity, np.arange(200) * 300 % 65536)
    start, _, size = struct.unpack_from("<I4xBH", data, 96)
    for byte in (12, 13):
        data[start + byte :: size] = bytes(200)
    assert read(bytes(data)).intensity is None


def test_las_needs_no_extra_and_laz_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "lazrs", None)
    monkeypatch.setitem(sys.modules, "laspy", None)
    assert len(read(las_plain)) == 200
    with pytest.raises(PointCloudFileError, match=r'extra `files`: pip install "hf-any3d\[files\]"'):
        read(las_packed, "laz")


las_plain, las_packed = las(False)[1], las(True)[1]


@pytest.mark.parametrize("missing", [1, 1000])
@pytest.mark.parametrize("data", [las_plain, las_packed], ids=["las", "laz"])
def test_a_truncated_scan_is_explained(data, missing):
    with pytest.raises(PointCloudFileError, match="cut off|damaged"):
        read(data[: len(data) - missing])
    with pytest.raises(PointCloudFileError, match="the header alone has 227"):
        read(data[:200])
    with pytest.raises(PointCloudFileError, match="starts with b'PK"):
        read(b"PK" + data[2:])


@pytest.mark.parametrize(
    "at, value, why",
    [
        (107, struct.pack("<I", 2**32 - 1), "4294967295 points"),
        (107, bytes(4), "there are no points"),
        (104, b"\x0b", "point format 11"),
        (105, b"\x05\x00", "records of 5 bytes"),
        (96, struct.pack("<I", 2**31), "start at byte 2147483648"),
        (131, struct.pack("<d", np.nan), "NaN"),
    ],
)
def test_a_wrong_header_is_explained(at, value, why):
    with pytest.raises(PointCloudFileError, match=why):
        read(las_plain[:at] + value + las_plain[at + len(value) :])


def test_a_laz_with_a_damaged_table_of_chunks_is_refused():
    start = struct.unpack_from("<I", las_packed, 96)[0]
    table = struct.unpack_from("<q", las_packed, start)[0]
    for at, value in ((table + 4, b"\xff\xff\xff\x7f"), (start, struct.pack("<q", 10**15))):
        with pytest.raises(PointCloudFileError, match="chunks"):
            read(las_packed[:at] + value + las_packed[at + len(value) :], "laz")


def test_a_laz_whose_layers_claim_too_much_is_refused():
    data = las(True, 7)[1]
    start = struct.unpack_from("<I", data, 96)[0]
    at = start + 8 + 36 + 4  # the size of the first layer, after the uncompressed first point and the count
    with pytest.raises(PointCloudFileError, match="the layers of chunk 0 need 42949"):
        read(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :], "laz")
    assert len(read(las(True, 6, 120_000)[1], "laz")) == 120_000  # several chunks


def test_a_laz_that_declares_more_points_than_its_chunks_hold_is_refused():
    data = las(True, 7)[1]
    with pytest.raises(PointCloudFileError, match="60000 points declared, 50000 in 1 chunks"):
        read(data[:107] + struct.pack("<I", 60_000) + data[111:], "laz")


@pytest.mark.parametrize("point_format", [0, 1, 2, 3, 6, 7, 8])
def test_every_format_is_read_compressed_as_it_is_plain(point_format):
    xyz, plain = las(False, point_format)
    one, other = read(plain), read(las(True, point_format)[1], "laz")
    np.testing.assert_allclose(one.points + one.offset, xyz, atol=2e-6)
    for name in ("points", "colors", "labels"):
        np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
    assert (one.colors is None) == (point_format in (0, 1, 6))


@pytest.mark.parametrize(("point_format", "at", "expected"), [(3, 15, 0x06), (6, 16, 0xE6)])
def test_flags_beside_the_class_of_older_formats_are_no_part_of_it(point_format, at, expected):
    data = bytearray(las(False, point_format)[1])
    start, _, size = struct.unpack_from("<I4xBH", data, 96)
    data[start + at :: size] = bytes([0xE6]) * len(data[start + at :: size])
    assert (read(bytes(data)).labels == expected).all()


class PanicException(BaseException):
    """As lazrs raises it."""


@pytest.mark.parametrize(
    ("raised", "expected"),
    [(PanicException, PointCloudFileError), (RuntimeError, PointCloudFileError), (KeyboardInterrupt,) * 2],
)
def test_errors_of_lazrs_are_damage_and_interruptions_are_not(raised, expected, monkeypatch):
    import lazrs

    def failing(*_):
        raise raised("index out of bounds")

    monkeypatch.setattr(lazrs, "LasZipDecompressor", failing)
    with pytest.raises(expected, match="index out of bounds"):
        read(las_packed, "laz")
