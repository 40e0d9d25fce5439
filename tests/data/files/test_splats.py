"""Gaussian splats of .splat and .spz, written here by construction, are the points that .ply gives."""

import gzip
import struct
import warnings

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud, write_labels
from hf_any3d.data.files.splats import LEAST_OPACITY
from tests.errors import raises

from .builders import compressed_splats, splat_rows, spz, spz_content

POINTS = np.array([[0.5, -1.25, 3], [-2047.75, 2, -0.125], [4, 5, 6.5]], np.float32)
COLORS = np.array([[255, 0, 10], [128, 128, 128], [0, 128, 255]])
OPACITIES = [255, 25, 26]  # a tenth of 255 is between the last two
KEPT = [0, 2]


def read(data, file_type):
    with pytest.warns(UserWarning, match="1 of 3 Gaussian splats have an opacity below 0.1"):
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
        with pytest.warns(UserWarning, match="ignored: scales, rotations, spherical harmonics, extensions"):
            cloud = read_point_cloud(data, file_type="spz")
        assert cloud.up_axis is None and cloud.points.tolist() == POINTS[KEPT].tolist()


def test_what_a_cloud_has_no_place_for_is_told():
    for data, file_type, left_out in (
        (splat_rows(POINTS, COLORS, [255] * 3), "splat", "ignored: scales, rotations"),
        (spz(POINTS, COLORS, [255] * 3), "spz", "ignored: scales, rotations, spherical harmonics"),
    ):
        with pytest.warns(UserWarning, match=left_out) as caught:
            read_point_cloud(data, file_type=file_type)
        assert len(caught) == 1


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
    "degree 5": ("spz", packed(changed(CONTENT[0], 12, "B", 5), CONTENT[1])),
    "25 bits of fractions": ("spz", packed(changed(CONTENT[0], 13, "B", 25), CONTENT[1])),
    "a million splats in streams": ("spz", changed(STREAMS, 8, "<I", 10**6)),
    "table after the end": ("spz", changed(STREAMS, 16, "<I", 10**6)),
    "table in the header": ("spz", changed(STREAMS, 16, "<I", 3)),
    "long stream": ("spz", changed(STREAMS, 32, "<Q", 10**6)),
    "other size": ("spz", changed(STREAMS, 40, "<Q", 28)),
    "cut streams": ("spz", STREAMS[:200]),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_or_cut_file_is_refused(name):
    file_type, data = WRONG[name]
    with pytest.raises(PointCloudFileError):
        read_point_cloud(data, file_type=file_type)


def unpacked(words, chunks):
    """Coordinates, colors and opacities of compressed splats, one number after the other."""
    points, colors, opacities = [], [], []
    for number, (position, _, _, color) in enumerate(words.tolist()):
        limits = chunks[number // 256].tolist()
        shares = [(position >> 21) / 2047, (position >> 11) % 1024 / 1023, position % 2048 / 2047]
        points.append([limits[n] + (limits[3 + n] - limits[n]) * share for n, share in enumerate(shares)])
        channels = [(color >> shift) % 256 / 255 for shift in (24, 16, 8)]
        if len(limits) > 12:
            channels = [limits[12 + n] + (limits[15 + n] - limits[12 + n]) * share for n, share in enumerate(channels)]
        colors.append([min(max(channel, 0), 1) for channel in channels])
        opacities.append(color % 256 / 255)
    return np.array(points), np.array(colors), np.array(opacities)


@pytest.mark.parametrize("order", ["binary_little_endian", "binary_big_endian", "ascii"])
@pytest.mark.parametrize("degree", [0, 9, 45])
@pytest.mark.parametrize("limits", [12, 18])
@pytest.mark.parametrize("count", [1, 256, 700])
def test_compressed_splats_of_supersplat_are_their_points(count, limits, degree, order, tmp_path):
    generator = np.random.default_rng(count)
    words = generator.integers(0, 2**32, (count, 4), dtype=np.uint64)
    words[0] |= 255  # one is opaque
    low = generator.normal(size=(-(-count // 256), limits)).astype("f4")
    chunks = low.copy()
    chunks[:, 3:6] = low[:, :3] + [10, 0, 3]
    chunks[:, 12:15], chunks[:, 15:] = -0.25, 1.5
    harmonics = generator.integers(0, 256, (count, degree)) if degree else None
    path = tmp_path / "scene.compressed.ply"
    path.write_bytes(compressed_splats(words, chunks, harmonics, order))
    points, colors, opacities = unpacked(words, chunks)
    kept = opacities >= LEAST_OPACITY
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_point_cloud(path)
    hidden = f"{(~kept).sum()} of {count} Gaussian splats have an opacity below"
    assert [hidden in str(warning.message) for warning in told] == [True] * bool((~kept).any())
    offset = 0 if cloud.offset is None else cloud.offset
    np.testing.assert_allclose(cloud.points + offset, points[kept], rtol=0, atol=1e-5)
    np.testing.assert_allclose(cloud.colors, colors[kept], atol=1e-5)
    # A labeled copy keeps all splats, of which those that are seen get the labels.
    write_labels(path, tmp_path / "copy.ply", np.arange(len(cloud)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        copy = read_point_cloud(tmp_path / "copy.ply")
    np.testing.assert_array_equal(copy.labels, np.arange(len(cloud)))
    np.testing.assert_array_equal(copy.points, cloud.points)


def test_compressed_splats_without_their_limits_are_refused():
    words = np.zeros((300, 4))
    with raises(PointCloudFileError, naming="1 chunks of limits for 300 compressed splats; expected 2"):
        read_point_cloud(compressed_splats(words, np.zeros((1, 12))), file_type="ply")
    lone = compressed_splats(words, np.zeros((2, 12))).replace(b"element chunk", b"element other")
    with raises(PointCloudFileError, naming="0 chunks of limits"):
        read_point_cloud(lone, file_type="ply")
