import numpy as np
import pytest

from hf_any3d.data.files import PointCloudData, PointCloudError

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
    "fields, why",
    [
        ({"points": np.zeros((0, 3))}, "there are no points"),
        ({"points": np.zeros((4, 2))}, r"shape \(4, 2\); expected \(points, 3\)"),
        ({"points": np.full((4, 3), None)}, "type object; expected numbers"),
        ({"points": [[0, 0, np.nan]] + [[0, 0, 0]] * 3}, "1 of 4 rows, first in row 0"),
        ({"colors": np.full((4, 3), 2)}, "colors range from 2 to 2; expected 0 to 1"),
        ({"colors": np.ones((3, 3))}, r"colors have shape \(3, 3\); expected \(4, 3\)"),
        ({"labels": np.zeros((4, 1))}, r"labels have shape \(4, 1\); expected \(4,\)"),
        ({"labels": [0, 1, 2, 0.5]}, "not whole numbers"),
        ({"labels": ["a"] * 4}, "labels have type"),
        ({"faces": [[0, 1, 4]]}, "a face refers to point 4; allowed are 0 to 3"),
        ({"faces": [[0, 1, -1]]}, "a face refers to point -1"),
        ({"faces": [[0, 1]]}, r"faces have shape \(1, 2\)"),
        ({"faces": TRIANGLES, "face_colors": np.ones((4, 3))}, r"face_colors have shape \(4, 3\)"),
        ({"offset": [0, np.inf, 0]}, "offset hold NaN"),
    ],
)
def test_invalid_content_is_explained(fields, why):
    with pytest.raises(PointCloudError, match=why):
        PointCloudData(**{"points": SQUARE, **fields})


def test_a_cloud_far_from_the_origin_keeps_its_shape_by_an_offset():
    shape = np.random.default_rng(0).random((100, 3))
    far = shape + [5e5, 5e6, 100]
    cloud = PointCloudData(far)
    np.testing.assert_allclose(cloud.points + cloud.offset, far, atol=1e-6)
    assert np.abs((far.astype(np.float32) - [5e5, 5e6, 100]) - shape).max() > 0.1
    assert PointCloudData(shape + 100).offset is None


def test_samples_are_on_the_triangles_and_follow_their_area():
    unequal = PointCloudData([[0, 0, 0], [3, 0, 0], [0, 3, 0], [0, 0, 1], [1, 0, 1]], faces=[[0, 1, 2], [0, 3, 4]])
    sample = unequal.sample_surface(20_000, 0)
    on_floor = sample.points[:, 2] == 0
    # 4.5 against 0.5 of area.
    assert abs(on_floor.mean() - 0.9) < 0.01
    floor = sample.points[on_floor]
    assert (floor >= 0).all() and (floor[:, 0] + floor[:, 1] <= 3 + 1e-5).all()
    np.testing.assert_allclose(floor[:, :2].mean(0), [1, 1], atol=0.03)
    # Normals point to where the corners are counterclockwise.
    assert (sample.normals[on_floor] == [0, 0, 1]).all()
    assert (sample.normals[~on_floor] == [0, 1, 0]).all()


def test_the_seed_determines_the_sample():
    mesh = PointCloudData(SQUARE, faces=TRIANGLES)
    first = mesh.sample_surface(50, 3).points
    assert (mesh.sample_surface(50, np.random.default_rng(3)).points == first).all()
    assert (mesh.sample_surface(50, 4).points != first).any()


def test_samples_get_colors_and_labels_from_corners_or_faces():
    corners = PointCloudData(SQUARE, SQUARE / 2, labels=[0, 1, 2, 3], faces=TRIANGLES).sample_surface(200, 0)
    np.testing.assert_allclose(corners.colors, corners.points / 2, atol=1e-6)  # linear in space, so is the color
    distance = np.linalg.norm(corners.points[:, None] - SQUARE, axis=2)
    near = distance[np.arange(200), corners.labels] < 0.5
    assert near.any() and (distance.argmin(1)[near] == corners.labels[near]).all()
    faces = PointCloudData(SQUARE, faces=TRIANGLES, face_colors=[[1, 0, 0], [0, 0, 1]]).sample_surface(200, 0)
    below = faces.points[:, 1] * 2 < faces.points[:, 0] - 1e-6
    assert (faces.colors[below] == [1, 0, 0]).all() and 50 < below.sum() < 150


def test_triangles_without_area_are_never_drawn():
    mesh = PointCloudData(SQUARE, faces=[[0, 0, 1], *TRIANGLES.tolist(), [2, 2, 2]])
    assert np.isfinite(mesh.sample_surface(1000, 0).normals).all()
    with pytest.raises(PointCloudError, match="none of the 1 triangles has an area"):
        PointCloudData(SQUARE, faces=[[0, 0, 1]]).sample_surface(5)
    with pytest.raises(PointCloudError, match="4 points without faces"):
        PointCloudData(SQUARE).sample_surface(5)
    with pytest.raises(ValueError, match="n: 0; expected at least 1"):
        mesh.sample_surface(0)


@pytest.mark.parametrize("wrong", [2.0**53, -(2.0**53), 0.5, np.nan])
def test_labels_that_stand_for_no_single_whole_number_are_refused(wrong):
    assert PointCloudData(SQUARE, labels=[2.0**53 - 1, 1 - 2.0**53, 0.0, 3.0]).labels[0] == 2**53 - 1
    with pytest.raises(PointCloudError, match="labels have values that are not whole numbers"):
        PointCloudData(SQUARE, labels=[wrong, 0.0, 1.0, 2.0])
