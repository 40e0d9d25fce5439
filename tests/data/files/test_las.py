import io
import struct
import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, las as las_reader, read_point_cloud, write_labels
from hf_any3d.data.files.las import LASZIP_RECORD
from hf_any3d.data.files.las_layout import SIZES

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
    with pytest.raises(PointCloudFileError, match="its layers claim"):
        read(data[:at] + struct.pack("<I", 10**6) + data[at + 4 :], "laz")
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


def test_the_table_of_chunks_is_between_the_points_and_the_end_of_the_file(monkeypatch):
    monkeypatch.setattr(las_reader, "_EMPTY_CHUNKS", 0)
    start = struct.unpack_from("<I", las_packed, 96)[0]
    data = las_packed + struct.pack("<II", 0, len(las_packed) // 20)

    # Outside of the points, and inside with more chunks than the file can hold.
    for table in (-5, start + 7, len(data) - 7, start + 8, len(data) - 8):
        with pytest.raises(PointCloudFileError, match="chunks with a table at byte"):
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


def packed_in_chunks(point_format, sizes):
    """Coordinates (points, 3) int32, and a LAZ whose chunks have so many points, as lazrs writes them."""
    import lazrs

    scan = las(False, point_format, sum(sizes))[1]
    start, _, size = struct.unpack_from("<I4xBH", scan, 96)
    record = lazrs.LazVlr.new_for_compression(point_format, size - SIZES[point_format], True)
    body = record.record_data()
    head = bytearray(scan[:start])
    head[104] |= 128
    described = struct.pack("<H16sHH32s", 0, *LASZIP_RECORD, len(body), b"") + body
    struct.pack_into("<I", head, 96, start + len(described))
    struct.pack_into("<I", head, 100, struct.unpack_from("<I", head, 100)[0] + 1)
    file = io.BytesIO()
    file.write(bytes(head) + described)
    compressor = lazrs.LasZipCompressor(file, record)
    at = start
    for count in sizes:
        if count:
            compressor.compress_many(np.frombuffer(scan, np.uint8, count * size, at))
        compressor.finish_current_chunk()
        at += count * size
    compressor.done()
    return file.getvalue()


@pytest.mark.parametrize("sizes", [(60, 0, 40), (60, 40, 0), (60, 0, 0, 40), (1, 0, 1)])
@pytest.mark.parametrize("point_format", [0, 3, 6, 7, 8])
def test_chunks_without_points_are_skipped_as_laspy_does(point_format, sizes, tmp_path):
    import laspy

    data = packed_in_chunks(point_format, sizes)
    expected = laspy.read(io.BytesIO(data))
    cloud = read(data, "laz")
    np.testing.assert_allclose(cloud.points + cloud.offset, expected.xyz, atol=1e-6)
    np.testing.assert_array_equal(cloud.labels, expected.classification)
    # Copies keep them.
    labels = np.arange(len(cloud)) % 5
    (tmp_path / "scan.laz").write_bytes(data)
    for name in ("copy.laz", "copy.las"):
        write_labels(tmp_path / "scan.laz", tmp_path / name, labels)
        copy = laspy.read(tmp_path / name)
        np.testing.assert_array_equal(copy.classification, labels)
        np.testing.assert_array_equal(copy.X, expected.X)


@pytest.mark.parametrize("kind", ["las", "laz"])
@pytest.mark.parametrize("point_format", range(6, 11))
def test_las_15_is_read_and_copied_as_laspy_does(point_format, kind, tmp_path):
    laspy = pytest.importorskip("laspy", minversion="2.7", reason="older ones have no LAS 1.5")

    header = laspy.LasHeader(version="1.5", point_format=point_format)
    header.scales, header.offsets = np.full(3, 0.01), np.array([5e5, 5.4e6, 0])
    scan = laspy.LasData(header)
    generator = np.random.default_rng(point_format)
    scan.x, scan.y, scan.z = (generator.random((200, 3)) * 50 + header.offsets).T
    scan.classification, scan.intensity = np.arange(200) % 40, np.arange(200) + 1
    scan.return_number, scan.number_of_returns = np.arange(200) % 15 + 1, np.full(200, 15)
    scan.gps_time = generator.random(200) * 1e6
    if "red" in scan.point_format.dimension_names:
        scan.red = scan.green = scan.blue = np.arange(200) * 300 % 65536
    # lazrs loses bits of packets of waveforms, and these have none.
    path = tmp_path / f"scan.{kind}"
    scan.write(path)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*ignored")
        cloud = read_point_cloud(path)
    np.testing.assert_allclose(cloud.points + cloud.offset, scan.xyz, atol=1e-6)
    np.testing.assert_array_equal(cloud.labels, scan.classification)
    np.testing.assert_array_equal(cloud.intensity, scan.intensity)
    np.testing.assert_array_equal(cloud.return_number, scan.return_number)
    assert cloud.label_codes == "asprs"
    labels = np.arange(200) % 3
    write_labels(path, tmp_path / f"copy.{kind}", labels, scores=np.linspace(0, 1, 200))
    copy = laspy.read(tmp_path / f"copy.{kind}")
    np.testing.assert_array_equal(copy.classification, labels)
    np.testing.assert_allclose(copy["score"], np.linspace(0, 1, 200), atol=1e-6)
    for name in ("X", "Y", "Z", "gps_time", "intensity"):
        np.testing.assert_array_equal(copy[name], scan[name])
    # All of the longer header stays, with the least and the largest time.
    for name in ("version", "maxs", "mins", "max_gps_time", "min_gps_time", "gps_time_offset", "point_count"):
        np.testing.assert_array_equal(getattr(copy.header, name), getattr(laspy.read(path).header, name))


@pytest.mark.parametrize("kind", ["las", "laz"])
@pytest.mark.parametrize("point_format", [0, 1, 2, 3, 6, 7, 8])
def test_records_of_all_sizes_are_read_block_by_block(point_format, kind):
    import laspy

    data = las(kind == "laz", point_format, 20_001)[1]
    expected = laspy.read(io.BytesIO(data))
    cloud = read(data, kind)
    np.testing.assert_allclose(cloud.points + cloud.offset, expected.xyz, atol=1e-6)
    np.testing.assert_array_equal(cloud.labels, expected.classification)
    np.testing.assert_array_equal(cloud.intensity, expected.intensity)
    if cloud.colors is not None:
        np.testing.assert_allclose(cloud.colors[:, 1] * 65535, expected.green, atol=0.01)
