import struct

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, read_point_cloud

from .builders import las


def read(data, kind="las"):
    return read_point_cloud(data, file_type=kind)


las_plain, las_packed = las(False)[1], las(True)[1]


@pytest.mark.parametrize("missing", [1, 1000])
@pytest.mark.parametrize("data", [las_plain, las_packed], ids=["las", "laz"])
def test_a_truncated_scan_is_explained(data, missing):
    with pytest.raises(PointCloudFileError):
        read(data[: len(data) - missing])
    with pytest.raises(PointCloudFileError):
        read(data[:200])
    with pytest.raises(PointCloudFileError):
        read(b"PK" + data[2:])


def test_a_laz_whose_layers_claim_too_much_is_refused():
    data = las(True, 7)[1]
    start = struct.unpack_from("<I", data, 96)[0]
    at = start + 8 + 36 + 4  # the size of the first layer, after the uncompressed first point and the count
    with pytest.raises(PointCloudFileError):
        read(data[:at] + b"\xff\xff\xff\xff" + data[at + 4 :], "laz")
    assert len(read(las(True, 6, 120_000)[1], "laz")) == 120_000  # several chunks


def test_a_laz_that_declares_more_points_than_its_chunks_hold_is_refused():
    data = las(True, 7)[1]
    with pytest.raises(PointCloudFileError):
        read(data[:107] + struct.pack("<I", 60_000) + data[111:], "laz")


@pytest.mark.parametrize(("point_format", "at", "expected"), [(3, 15, 0x06), (6, 16, 0xE6)])
def test_flags_beside_the_class_of_older_formats_are_no_part_of_it(point_format, at, expected):
    data = bytearray(las(False, point_format)[1])
    start, _, size = struct.unpack_from("<I4xBH", data, 96)
    data[start + at :: size] = bytes([0xE6]) * len(data[start + at :: size])
    assert (read(bytes(data)).labels == expected).all()


def test_a_laz_of_a_writer_that_could_not_go_back_has_the_place_of_its_table_at_the_end():
    start = struct.unpack_from("<I", las_packed, 96)[0]
    table = las_packed[start : start + 8]
    streamed = las_packed[:start] + struct.pack("<q", -1) + las_packed[start + 8 :]
    expected = read(las_packed, "laz")
    found = read(streamed + table, "laz")
    for name in ("points", "colors", "labels", "intensity", "offset"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    for value in (-2, start + 7, len(streamed) + 1):
        with pytest.raises(PointCloudFileError):
            read(streamed + struct.pack("<q", value), "laz")


def test_the_table_of_chunks_is_between_the_points_and_the_end_of_the_file():
    start = struct.unpack_from("<I", las_packed, 96)[0]
    data = las_packed + struct.pack("<II", 0, 2**31 - 1)

    # Outside of the points, and inside with more chunks than the file can hold.
    for table in (-5, start + 7, len(data) - 7, start + 8, len(data) - 8):
        with pytest.raises(PointCloudFileError):
            read(data[:start] + struct.pack("<q", table) + data[start + 8 :], "laz")


@pytest.mark.parametrize(("point_format", "place", "number"), [(3, 0, 1), (3, 0, 4), (3, 38, 3), (7, 38, 4)])
def test_a_compressor_that_is_not_read_is_named(point_format, place, number):
    data = bytearray(las(True, point_format)[1])
    struct.pack_into("<H", data, data.index(b"laszip encoded") + 52 + place, number)
    with pytest.raises(PointCloudFileError):
        read(bytes(data), "laz")


@pytest.mark.parametrize("point_format", [2, 7])
def test_colors_that_are_all_zero_are_none(point_format):
    data = bytearray(las(False, point_format)[1])
    start, _, size = struct.unpack_from("<I4xBH", data, 96)
    for at in range(6):
        data[start + (20 if point_format == 2 else 30) + at :: size] = bytes(200)
    assert read(bytes(data)).colors is None
    data[-1 if point_format == 2 else -6] = 1
    assert read(bytes(data)).colors is not None


def test_records_of_other_programs_before_that_of_the_compression_are_skipped():
    start = struct.unpack_from("<I", las_packed, 96)[0]
    first = struct.unpack_from("<H", las_packed, 94)[0]
    other = struct.pack("<H16sHH32s", 0, b"laszip encoded", 7, 5, b"another kind") + b"12345"
    head = bytearray(las_packed[:first] + other + las_packed[first:start])
    struct.pack_into("<I", head, 96, len(head))
    struct.pack_into("<I", head, 100, struct.unpack_from("<I", head, 100)[0] + 1)
    table = struct.unpack_from("<q", las_packed, start)[0] + len(other)
    found = read(bytes(head) + struct.pack("<q", table) + las_packed[start + 8 :], "laz")
    np.testing.assert_array_equal(found.points, read(las_packed, "laz").points)
