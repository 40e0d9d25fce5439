"""Point cloud tiles of 3D Tiles, beside the formulas of the standard, point by point."""

import math
import struct

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, file_type_of, read_point_cloud
from tests.errors import raises

from .builders import pnts

COUNT = 24
CENTER = [1215013.8, -4736316.7, 4081608.4]
RANDOM = np.random.default_rng(0)
POINTS = RANDOM.normal(size=(COUNT, 3)).astype("<f4") * 20
QUANTIZED = RANDOM.integers(0, 65536, (COUNT, 3)).astype("<u2")
NORMALS = POINTS / np.linalg.norm(POINTS, axis=1, keepdims=True)
RGBA = RANDOM.integers(0, 256, (COUNT, 4)).astype("u1")
RGB565 = RANDOM.integers(0, 65536, COUNT).astype("<u2")


def read(data, **options):
    return read_point_cloud(data, file_type="pnts", **options)


def tile(parts, batches=None, rows=b"", **features):
    """A tile with parts of its binary body, by the names of their properties, and what else the feature table has."""
    body = b""
    for name, (values, further) in parts.items():
        body += b"\0" * (-len(body) % 8)
        features[name] = {"byteOffset": len(body), **further}
        body += values.tobytes()
    return pnts({"POINTS_LENGTH": COUNT, **features}, body, batches, rows)


def octahedral(normals):
    """Two bytes of each normal, written out for one normal after the other."""
    encoded = []
    for x, y, z in normals.tolist():
        size = abs(x) + abs(y) + abs(z)
        u, v = x / size, y / size
        if z < 0:
            u, v = (1 - abs(v)) * math.copysign(1, u), (1 - abs(u)) * math.copysign(1, v)
        encoded.append([round((value + 1) / 2 * 255) for value in (u, v)])
    return np.array(encoded, "u1")


@pytest.mark.parametrize("center", [None, CENTER, "in the body"])
@pytest.mark.parametrize("is_quantized", [False, True])
def test_coordinates_are_those_of_the_standard(center, is_quantized):
    offset, scale = [-250.5, 0, 7], [500, 0, 3.25]
    parts, features, expected = {"POSITION": (POINTS, {})}, {}, POINTS.astype(float)
    if is_quantized:
        parts = {"POSITION_QUANTIZED": (QUANTIZED, {})}
        features = {"QUANTIZED_VOLUME_OFFSET": offset, "QUANTIZED_VOLUME_SCALE": scale}
        expected = np.array(
            [[q * s / 65535 + o for q, s, o in zip(row, scale, offset, strict=True)] for row in QUANTIZED.tolist()]
        )
    if center == "in the body":
        parts["RTC_CENTER"] = (np.array(CENTER, "<f4"), {})
        expected = expected + np.array(CENTER, "<f4").astype(float)
    elif center is not None:
        features["RTC_CENTER"] = center
        expected = expected + center
    cloud = read(tile(parts, **features))
    found = cloud.points.astype(float) + (0 if cloud.offset is None else cloud.offset)
    np.testing.assert_allclose(found, expected, rtol=0, atol=3.25 / 65535 / 2)
    # From the center of the earth, no axis points up.
    assert (cloud.up_axis, cloud.meters_per_unit) == ("z" if center is None else None, 1.0)


RGB = RGBA[:, :3]
COLORS = {
    "RGBA": ((RGBA, {}), RGB / 255),
    "RGB": ((RGB, {}), RGB / 255),
    "RGB565": ((RGB565, {}), np.array([[(n >> 11) / 31, (n >> 5) % 64 / 63, n % 32 / 31] for n in RGB565.tolist()])),
}


@pytest.mark.filterwarnings("ignore:.*alpha")
@pytest.mark.parametrize("others", [(), ("RGB565",), ("RGB", "RGB565")])
@pytest.mark.parametrize("name", [*COLORS, "CONSTANT_RGBA"])
def test_of_several_colors_the_standard_says_which_count(name, others):
    chosen = [*COLORS, "CONSTANT_RGBA"]
    first = min([name, *others], key=chosen.index)
    parts = {"POSITION": (POINTS, {}), **{each: COLORS[each][0] for each in (*others, name) if each in COLORS}}
    cloud = read(tile(parts, CONSTANT_RGBA=[51, 102, 255, 9]))
    expected = np.tile([0.2, 0.4, 1], (COUNT, 1)) if first == "CONSTANT_RGBA" else COLORS[first][1]
    np.testing.assert_allclose(cloud.colors, expected, atol=1e-6)


@pytest.mark.parametrize("is_encoded", [False, True])
def test_normals_are_decoded(is_encoded):
    part = {"NORMAL_OCT16P": (octahedral(NORMALS), {})} if is_encoded else {"NORMAL": (NORMALS.astype("<f4"), {})}
    cloud = read(tile({"POSITION": (POINTS, {}), **part}))
    np.testing.assert_allclose(cloud.normals, NORMALS, atol=0.02 if is_encoded else 1e-6)
    np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["UNSIGNED_BYTE", None, "UNSIGNED_INT"])
def test_properties_of_batches_are_those_of_their_points(kind):
    ids = np.arange(COUNT) % 3
    stored = ids.astype({"UNSIGNED_BYTE": "u1", None: "<u2", "UNSIGNED_INT": "<u4"}[kind])
    further = {} if kind is None else {"componentType": kind}
    batches = {"Classification": [6, 2, 5], "Intensity": {"byteOffset": 0, "componentType": "FLOAT", "type": "SCALAR"}}
    batches["name"] = ["roof", "ground", "tree"]
    rows = np.array([0.5, 7, 100], "<f4").tobytes()
    with pytest.warns(UserWarning, match="ignored: name"):
        cloud = read(
            tile({"POSITION": (POINTS, {}), "BATCH_ID": (stored, further)}, batches, rows, BATCH_LENGTH=3),
            columns=["BATCH_ID"],
        )
    np.testing.assert_array_equal(cloud.labels, np.array([6, 2, 5])[ids])
    np.testing.assert_array_equal(cloud.intensity, np.array([0.5, 7, 100], "f4")[ids])
    np.testing.assert_array_equal(cloud.further["BATCH_ID"], ids)


@pytest.mark.filterwarnings("ignore:.*ignored")
def test_properties_of_points_are_columns_and_words_are_classes():
    words = [["ground", "tree"][number % 2] for number in range(COUNT)]
    strengths = np.arange(COUNT, dtype="<u2") * 7 % 11
    place = {"byteOffset": 0, "componentType": "UNSIGNED_SHORT", "type": "SCALAR"}
    batches = {"intensity": place, "label": words, "rgb": {"byteOffset": 48, "type": "VEC3"}, "X": [0.0] * COUNT}
    cloud = read(tile({"POSITION": (POINTS, {})}, batches, strengths.tobytes()))
    np.testing.assert_array_equal(cloud.points, POINTS)
    np.testing.assert_array_equal(cloud.intensity, strengths)
    assert cloud.label_names == ("ground", "tree")
    np.testing.assert_array_equal(cloud.labels, np.arange(COUNT) % 2)


draco = {"extensions": {"3DTILES_draco_point_compression": {"properties": {"POSITION": 0}}}}


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (tile({"POSITION": (POINTS, {})}, **draco), "convertPntsToGlb"),
        (tile({"POSITION": (POINTS, {})}, draco), "compressed by Draco"),
        (pnts({"POINTS_LENGTH": 9, "POSITION": {"byteOffset": 8}}, b"\0" * 48), "may be cut off"),
        (pnts({"POINTS_LENGTH": 1, "POSITION": {"byteOffset": -12}}, b"\0" * 48), "may be cut off"),
        (tile({"POSITION": (POINTS, {})})[:-8], "may be cut off"),
        (tile({}), "24 points without POSITION"),
        (tile({"POSITION_QUANTIZED": (QUANTIZED, {})}), "QUANTIZED_VOLUME_OFFSET"),
        (tile({"POSITION": (POINTS, {}), "BATCH_ID": (RGB565, {})}, BATCH_LENGTH=3), "BATCH_LENGTH is 3"),
        (struct.pack("<4s6I", b"b3dm", 1, 28, 0, 0, 0, 0), "a 3D Tiles tile; export it as .glb"),
    ],
)
def test_what_cannot_be_read_is_explained(data, words):
    with raises(PointCloudFileError, naming=words):
        read(data)


def test_a_tile_is_recognized():
    assert file_type_of(tile({"POSITION": (POINTS, {})})) == "pnts"
