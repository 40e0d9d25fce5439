import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, PointCloudError
from hf_any3d.data.files.point_cloud import leave_out_invalid_points

from .builders import SQUARE, TRIANGLES


def test_arrays_are_converted_to_the_documented_types():
    cloud = PointCloudData(
        SQUARE.astype(np.float64), np.ones((4, 3), int), SQUARE.tolist(), [0.0, 1.0, 2.0, 3.0], TRIANGLES.astype("i2")
    )
    assert cloud.points.dtype == cloud.colors.dtype == cloud.normals.dtype == np.float32
    assert cloud.labels.dtype == cloud.faces.dtype == np.int64
    assert cloud.is_mesh and len(cloud) == 4 and cloud.offset is None
    assert not PointCloudData(SQUARE, faces=np.zeros((0, 3), int)).is_mesh


@pytest.mark.parametrize(
    "fields",
    [
        {"points": np.zeros((0, 3))},
        {"points": np.zeros((4, 2))},
        {"points": np.full((4, 3), None)},
        {"points": [[0, 0, np.nan]] + [[0, 0, 0]] * 3},
        {"colors": np.full((4, 3), 2)},
        {"colors": np.ones((3, 3))},
        {"labels": np.zeros((4, 1))},
        {"labels": ["a"] * 4},
        {"faces": [[0, 1, 4]]},
        {"faces": [[0, 1, -1]]},
        {"faces": [[0, 1]]},
        {"faces": TRIANGLES, "face_colors": np.ones((4, 3))},
        {"offset": [0, np.inf, 0]},
    ],
)
def test_invalid_content_is_explained(fields):
    with pytest.raises(PointCloudError):
        PointCloudData(**{"points": SQUARE, **fields})


def test_triangles_without_area_are_never_drawn():
    mesh = PointCloudData(SQUARE, faces=[[0, 0, 1], *TRIANGLES.tolist(), [2, 2, 2]])
    assert np.isfinite(mesh.sample_surface(1000, 0).normals).all()
    with pytest.raises(PointCloudError):
        PointCloudData(SQUARE, faces=[[0, 0, 1]]).sample_surface(5)
    with pytest.raises(PointCloudError):
        PointCloudData(SQUARE).sample_surface(5)


@pytest.mark.parametrize("wrong", [2.0**53, -(2.0**53), 0.5, np.nan])
def test_labels_that_stand_for_no_single_whole_number_are_refused(wrong):
    assert PointCloudData(SQUARE, labels=[2.0**53 - 1, 1 - 2.0**53, 0.0, 3.0]).labels[0] == 2**53 - 1
    with pytest.raises(PointCloudError):
        PointCloudData(SQUARE, labels=[wrong, 0.0, 1.0, 2.0])


def full(count: int = 4, **changes) -> dict[str, np.ndarray]:
    """Fields of a mesh, all of which differ from row to row."""
    rows = np.arange(count)
    fields = {
        "points": np.column_stack([rows, rows**2, -rows]).astype(np.float64),
        "colors": np.column_stack([rows / 8, 1 - rows / 8, rows / 16]),
        "normals": np.column_stack([rows + 1, rows, rows]),
        "labels": rows + 5,
        "intensity": rows * 1.5,
        "ring": (rows + 2)[:, None],
        "faces": np.array([[0, 1, 2], [3, 2, 1], [0, 2, 3]]),
        "face_colors": np.array([[1, 0, 0.5], [0, 0.25, 1], [0.125, 0, 0]]),
    }
    return fields | changes


@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e39])
def test_invalid_points_are_left_out_of_all_fields_with_their_faces(bad):
    points = full()["points"]
    points[1, 2] = bad
    with leave_out_invalid_points() as left_out:
        cloud = PointCloudData(**full(points=points))
    assert [kept.tolist() for kept in left_out] == [[True, False, True, True]] and len(cloud) == 3
    kept = [0, 2, 3]
    for name in ("points", "colors", "normals", "labels", "intensity"):
        np.testing.assert_allclose(getattr(cloud, name), full()[name][kept], rtol=1e-6)
    assert cloud.ring.tolist() == [2, 4, 5] and cloud.ring.dtype == np.float32
    assert cloud.faces.tolist() == [[0, 1, 2]] and cloud.face_colors.tolist() == [[0.125, 0, 0]]
    with pytest.raises(PointCloudError):
        PointCloudData(**full(points=points))


def test_wrong_fields_beside_invalid_points_are_errors():
    points = full()["points"]
    points[0, 0] = np.nan
    with leave_out_invalid_points() as left_out:
        with pytest.raises(PointCloudError):
            PointCloudData(**full(points=points, faces=[[0, 1, 4]], face_colors=None))
        with pytest.raises(PointCloudError):
            PointCloudData(**full(points=points, colors=np.ones((5, 3))))
        left_out.clear()
        PointCloudData(points[1:])
        PointCloudData(np.arange(6).reshape(2, 3))
        assert not left_out
        with pytest.raises(PointCloudError):
            PointCloudData(np.full((4, 3), np.nan))
        with pytest.raises(PointCloudError):
            PointCloudData([np.nan, 0.0, 1.0])


def test_colors_of_faces_need_faces():
    with pytest.raises(PointCloudError):
        PointCloudData(**full(faces=None))
    assert PointCloudData(SQUARE, faces=np.zeros((0, 3)), face_colors=np.zeros((0, 3))).faces.dtype == np.int64


@pytest.mark.parametrize(
    ("dtype", "has_offset"),
    [(np.float64, True), (np.int32, True), (np.uint32, True), (np.float32, False), (np.int16, False)],
)
def test_only_numbers_with_more_digits_than_float32_get_an_offset(dtype, has_offset):
    points = np.array([[30000, 20001, 7], [30004, 20000, 9], [30001, 20003, 8]], dtype)
    cloud = PointCloudData(points)
    if has_offset:
        assert cloud.offset.tolist() == [30000, 20000, 7] and cloud.offset.dtype == np.float64
        assert cloud.points.tolist() == [[0, 1, 0], [4, 0, 2], [1, 3, 1]]
        shifted = PointCloudData(points, offset=[1, 2, 3])
        assert shifted.offset.tolist() == [30001, 20002, 10] and (shifted.points == cloud.points).all()
    else:
        assert cloud.offset is None and cloud.points.tolist() == points.tolist()


@pytest.mark.parametrize(("place", "has_offset"), [(3999, False), (4001, True)])
def test_an_offset_is_split_off_a_thousand_extents_away(place, has_offset):
    points = np.array([[0, -place, 0.5], [4, -place + 1, 1.5]])
    cloud = PointCloudData(points)
    assert (cloud.offset is not None) is has_offset
    np.testing.assert_allclose(cloud.points + (cloud.offset if has_offset else 0), points)
    assert PointCloudData([[1e6, 0, 0]] * 2).offset is None  # no extent


@pytest.mark.parametrize("count", [1, 2])
def test_a_cloud_of_fewer_than_three_points_has_no_shape(count):
    with pytest.raises(PointCloudError):
        PointCloudData(SQUARE[:count]).check_usable()
    PointCloudData(SQUARE[:3]).check_usable()
    PointCloudData(SQUARE[:2], faces=[[0, 1, 1]]).check_usable()


@pytest.mark.parametrize("with_face_colors", [False, True])
def test_a_sample_has_all_that_the_mesh_has_at_its_place(with_face_colors):
    points = np.array([[0.0, 0, 0], [2, 0, 0], [0, 3, 0], [0, 0, 1]])
    faces = np.array([[0, 1, 2], [3, 3, 3], [0, 3, 1], [0, 2, 3]])
    face_colors = np.eye(4)[:, :3] if with_face_colors else None
    fields = full(points=points, faces=faces, face_colors=face_colors)
    mesh = PointCloudData(**fields, offset=[1, 2, 3], up_axis="x")
    sample = mesh.sample_surface(300, 1)
    assert (mesh.sample_surface(300, np.random.default_rng(1)).points == sample.points).all()
    # The same drawn triangle by triangle: by area, then evenly within each (Osada et al., Sec. 3.1).
    generator = np.random.default_rng(1)
    until = np.cumsum([3.0, 0, 1, 1.5]) / 5.5
    draws, root, share = generator.random(300), np.sqrt(generator.random(300)), generator.random(300)
    face = np.array([next(number for number, end in enumerate(until) if draw < end) for draw in draws])
    weights = np.stack([1 - root, root * (1 - share), root * share], axis=1)
    corners = faces[face]
    np.testing.assert_allclose(sample.points, np.einsum("nk,nkc->nc", weights, points[corners]), atol=1e-6)
    np.testing.assert_allclose(sample.normals, np.array([[0, 0, 1], [0] * 3, [0, 1, 0], [1, 0, 0]])[face], atol=1e-6)
    nearest = corners[np.arange(300), weights.argmax(axis=1)]
    assert (sample.labels == mesh.labels[nearest]).all() and (sample.ring == mesh.ring[nearest]).all()
    blended = np.einsum("nk,nkc->nc", weights, fields["colors"][corners])
    np.testing.assert_allclose(sample.colors, face_colors[face] if with_face_colors else blended, atol=1e-6)
    np.testing.assert_allclose(sample.intensity, (weights * fields["intensity"][corners]).sum(1), atol=1e-6)
    assert sample.offset.tolist() == [1, 2, 3] and sample.up_axis == "x" and sample.faces is None


def test_without_faces_there_is_nothing_of_them():
    cloud = PointCloudData(np.zeros((3, 3)), face_colors=np.zeros((0, 3)), face_labels=np.zeros(0, int))
    assert cloud.face_colors is None and cloud.face_labels is None
