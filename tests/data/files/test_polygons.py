"""Polygons have their own area in every format that has them: triangles cover the outline, and nothing beyond it."""

import struct
import warnings
from collections.abc import Callable

import numpy as np
import pytest

from hf_any3d.data.files import PointCloudFileError, polygons, read_point_cloud
from hf_any3d.data.files.polygons import polygon_triangles
from hf_any3d.data.files.source import Source
from tests.errors import raises

from .builders import ply

ANGLES = np.linspace(0, 2 * np.pi, 10, endpoint=False)
SPIRAL = np.linspace(1, 12, 60)
OUTLINES = {
    "quad": [(0, 0), (6, 0), (7, 4), (1, 5)],
    "dart": [(4, 0), (1, 1), (0, 4), (0, 0)],  # which a fan around the first corner covers wrongly
    "hexagon": [(3, 0), (6, 2), (6, 5), (3, 7), (0, 5), (0, 2)],
    "U": [(0, 0), (6, 0), (6, 5), (5, 5), (5, 1), (1, 1), (1, 5), (0, 5)],
    "L": [(4, 4), (0, 4), (0, 0), (1, 0), (1, 3), (4, 3)],
    "star": [((3, 1)[i % 2] * np.cos(a), (3, 1)[i % 2] * np.sin(a)) for i, a in enumerate(ANGLES)],
    "spiral": [(r * s * np.cos(s), r * s * np.sin(s)) for r, order in ((1.4, 1), (1, -1)) for s in SPIRAL[::order]],
    "frame": [
        (0, 0),
        (9, 0),
        (9, 9),
        (0, 9),
        (0, 0),
        (3, 3),
        (3, 6),
        (6, 6),
        (6, 3),
        (3, 3),
    ],  # with a cut to the hole
    "collinear": [(0, 0), (2, 0), (4, 0), (6, 0), (6, 5), (5, 5), (5, 1), (3, 1), (1, 1), (1, 5), (0, 5), (0, 2)],
}
# Those that cross themselves, repeat a corner or have no area.
DOUBTFUL = {
    "bow tie": [(0, 0), (5, 2), (5, 0), (0, 3)],
    "pentagram": [(3 * np.cos(2 * a), 3 * np.sin(2 * a)) for a in ANGLES[::2]],
    "line": [(0, 0), (1, 1), (3, 3), (2, 2)],
    "point": [(1, 1), (1, 1), (1, 1), (1, 1)],
    "repeated": [(0, 0), (4, 0), (4, 0), (4, 3)],
}
# To the space of the mesh: across two axes, or tilted and far from the origin.
FRAMES = {
    "flat": (np.eye(3)[:, :2], np.zeros(3)),
    "tilted": (np.linalg.qr(np.array([[1.0, 2], [3, -1], [2, 2]]))[0], np.array([30.0, -20, 10])),
}


def area_of(outline: np.ndarray) -> float:
    x, y = outline.T
    return abs(float(x @ np.roll(y, -1) - y @ np.roll(x, -1))) / 2


def _text_ply(points, faces) -> bytes:
    header = f"element vertex {len(points)}\nproperty float x\nproperty float y\nproperty float z\nelement face "
    header += f"{len(faces)}\nproperty list uchar int vertex_indices\nproperty uchar label"
    rows = [" ".join(map(repr, row)) for row in points.tolist()]
    rows += [" ".join(map(str, [len(face), *face, number])) for number, face in enumerate(faces)]
    return ply(header, "\n".join([*rows, ""]).encode(), "ascii")


def _binary_ply(order: str) -> Callable:
    def written(points, faces) -> bytes:
        sign = "<" if "little" in order else ">"
        header = (
            f"element vertex {len(points)}\nproperty double x\nproperty double y\nproperty double z\nelement face "
        )
        header += f"{len(faces)}\nproperty list uchar int vertex_indices\nproperty uchar label"
        rows = [struct.pack(f"{sign}B{len(face)}iB", len(face), *face, n) for n, face in enumerate(faces)]
        return ply(header, points.astype(f"{sign}f8").tobytes() + b"".join(rows), order)

    return written


def _obj(points, faces) -> bytes:
    lines = ["v " + " ".join(map(repr, row)) for row in points.tolist()]
    lines += ["f " + " ".join(str(corner + 1) for corner in face) for face in faces]
    return "\n".join([*lines, ""]).encode()


def _off(points, faces) -> bytes:
    lines = [f"OFF\n{len(points)} {len(faces)} 0"]
    lines += [" ".join(map(repr, row)) for row in points.tolist()]
    # Colors of faces stand for their labels.
    lines += [" ".join(map(str, [len(face), *face, number, 0, 0])) for number, face in enumerate(faces)]
    return "\n".join([*lines, ""]).encode()


def _binary_off(points, faces) -> bytes:
    body = struct.pack(">3i", len(points), len(faces), 0) + points.astype(">f4").tobytes()
    for number, face in enumerate(faces):
        body += struct.pack(f">i{len(face)}i", len(face), *face) + struct.pack(">i3f", 3, number / 255, 0, 0)
    return b"OFF BINARY\n" + body


FORMATS = {
    "ply text": ("ply", _text_ply),
    "ply little": ("ply", _binary_ply("binary_little_endian")),
    "ply big": ("ply", _binary_ply("binary_big_endian")),
    "obj": ("obj", _obj),
    "off": ("off", _off),
    "off binary": ("off", _binary_off),
}


def read(format_name: str, outlines: list[np.ndarray], frame: str):
    """Read polygons (corners, 2) as faces of one mesh: the cloud, what is told, the way back to the plane, points."""
    axes, place = FRAMES[frame]
    points = np.concatenate(outlines) @ axes.T + place
    starts = np.cumsum([0, *map(len, outlines)])
    faces = [list(range(start, stop)) for start, stop in zip(starts, starts[1:], strict=False)]
    kind, write = FORMATS[format_name]
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        cloud = read_point_cloud(write(points, faces), file_type=kind)
    found = cloud.points.astype(np.float64) + (0 if cloud.offset is None else cloud.offset)
    return cloud, [str(warning.message) for warning in told], lambda xyz: (xyz - place) @ axes, found


def is_inside(points: np.ndarray, outline: np.ndarray) -> np.ndarray:
    """Whether points (points, 2) are inside: a ray from them crosses the outline an odd number of times."""
    x, y = points.T[:, :, None]
    (ax, ay), (bx, by) = outline.T, np.roll(outline, -1, axis=0).T
    crosses = (ay > y) != (by > y)
    with np.errstate(divide="ignore", invalid="ignore"):
        right = x < ax + (y - ay) * (bx - ax) / (by - ay)
    return (crosses & right).sum(axis=1) % 2 == 1


@pytest.mark.parametrize("frame", FRAMES)
@pytest.mark.parametrize("format_name", FORMATS)
def test_triangles_cover_their_polygon_and_have_its_label(format_name, frame):
    # From any first corner, in both directions, beside each other
    outlines = []
    for number, outline in enumerate(OUTLINES.values()):
        corners = np.array(outline, float)
        for turned in (corners, np.roll(corners[::-1], 3, axis=0)):
            outlines.append(turned + [40 * len(outlines), 7 * number])
    cloud, told, flat, found = read(format_name, outlines, frame)
    assert told == []
    assert len(cloud.faces) == sum(len(outline) - 2 for outline in outlines)
    corners = flat(found[cloud.faces])  # (faces, 3, 2)
    a, b, c = corners.transpose(1, 0, 2)
    signed = ((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]) / 2
    # Triangles of a polygon follow each other, and turn as it does.
    polygon = np.repeat(np.arange(len(outlines)), [len(outline) - 2 for outline in outlines])
    for number, outline in enumerate(outlines):
        own = signed[polygon == number]
        assert own.sum() == pytest.approx(np.sign(own.sum()) * area_of(outline), rel=1e-5)
        assert np.abs(own).sum() == pytest.approx(area_of(outline), rel=1e-5)
    if cloud.face_labels is not None or cloud.face_colors is not None:
        of_faces = cloud.face_labels if cloud.face_labels is not None else np.rint(cloud.face_colors[:, 0] * 255)
        assert (of_faces == polygon).all()
    sample = cloud.sample_surface(4000)
    places = flat(sample.points.astype(np.float64) + (0 if sample.offset is None else sample.offset))
    # Each outline has a place of its own along x, 40 wide.
    starts = np.array([outline[:, 0].min() for outline in outlines])
    of_sample = np.searchsorted(starts - 1, places[:, 0], side="right") - 1
    for number, outline in enumerate(outlines):
        own = of_sample == number
        # Up to rounding, on the edges
        assert is_inside(places[own], outline).mean() > 0.995
        if sample.labels is not None:
            assert (sample.labels[own] == number).all()


@pytest.mark.parametrize("format_name", FORMATS)
@pytest.mark.parametrize("shape", DOUBTFUL)
def test_what_encloses_nothing_or_not_once_is_counted_and_stays(format_name, shape):
    outline = np.array(DOUBTFUL[shape], float)
    quad = np.array(OUTLINES["quad"], float) + [20, 0]
    cloud, told, flat, found = read(format_name, [quad, outline], "flat")
    assert len(told) == 1 and "1 of 2 polygons cross themselves, repeat a corner or have no area" in told[0]
    assert len(cloud) == len(quad) + len(outline) and len(cloud.faces) == len(cloud) - 4
    # What the outline encloses is covered, and a polygon without an area has none.
    a, b, c = flat(found[cloud.faces[2:]]).transpose(1, 0, 2)
    area = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0]).sum() / 2
    assert area == pytest.approx(0, abs=1e-9) if shape in ("line", "point") else area >= area_of(outline) - 1e-6


@pytest.mark.parametrize("shape", OUTLINES)
def test_a_bent_polygon_is_cut_as_it_looks_from_above(shape):
    outline = np.array(OUTLINES[shape], float)
    extent = np.abs(outline).max()
    heights = 0.05 * extent * np.sin(outline @ [2, 3] / extent)
    faces, polygon = polygon_triangles(
        np.array([len(outline)]), np.arange(len(outline)), [*outline.T, heights], Source("some", b"", "ply")
    )
    a, b, c = outline[faces].transpose(1, 0, 2)
    doubled = np.abs((b - a)[:, 0] * (c - a)[:, 1] - (b - a)[:, 1] * (c - a)[:, 0])
    assert doubled.sum() / 2 == pytest.approx(area_of(outline), rel=1e-3) and (polygon == 0).all()


@pytest.mark.parametrize("dtype", [np.uint8, np.int64])
def test_polygons_of_any_size_that_are_convex_are_cut_at_their_first_corner(dtype):
    sizes = [3, 0, 1, 5, 2, 4, 4]
    angles = [np.linspace(0, 6, size, endpoint=False) for size in sizes]
    points = [np.concatenate([function(each) for each in angles]) for function in (np.cos, np.sin)]
    counts = np.array(sizes, dtype)
    starts = np.cumsum([0, *sizes])
    faces, polygon = polygon_triangles(
        counts, np.arange(sum(sizes)), [*points, np.zeros(sum(sizes))], Source("some", b"", "ply")
    )
    expected = []
    for number, size in enumerate(sizes):
        expected += [
            (number, [starts[number], starts[number] + at, starts[number] + at + 1]) for at in range(1, size - 1)
        ]
    assert faces.tolist() == [face for _, face in expected] and polygon.tolist() == [number for number, _ in expected]
    assert faces.dtype == polygon.dtype == np.int64


def test_corners_that_are_no_points_and_outlines_without_end_are_refused(monkeypatch):
    outline = np.array(OUTLINES["spiral"])
    points, source = [*outline.T, np.zeros(len(outline))], Source("some", b"", "ply")
    with raises(ValueError, naming="a face refers to point 120; allowed are 0 to 119"):
        polygon_triangles(np.array([4]), np.array([0, 1, 2, 120]), points, source)
    monkeypatch.setattr(polygons, "_MOST_WORK", 100)
    with raises(PointCloudFileError, naming="a polygon of 120 corners is too intricate to be cut; export the mesh"):
        read("obj", [outline], "flat")


def test_points_left_out_for_their_coordinates_take_their_polygons_with_them():
    lines = ["v 0 0 0", "v 4 0 0", "v 1 1 nan", "v 0 4 0", "f 1 2 3 4", "f 1 2 4"]
    with pytest.warns(UserWarning, match="1 of 4 points") as told:
        cloud = read_point_cloud("\n".join([*lines, ""]).encode(), file_type="obj", on_invalid="drop")
    assert cloud.faces.tolist() == [[0, 1, 2]] and len(told) == 1
