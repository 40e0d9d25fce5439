import numpy as np
import pytest
import torch
import trimesh

from hf_any3d.data.files import PointCloudData, PointCloudError, PointCloudFileError, write_point_cloud
from hf_any3d.data.inputs import split_clouds, to_cloud

XYZ = np.arange(15, dtype=np.float32).reshape(5, 3)


@pytest.mark.parametrize(
    "make",
    [
        lambda: XYZ,
        lambda: XYZ.astype(np.float16),
        lambda: XYZ.astype(">f8"),
        lambda: XYZ.astype(np.int64),
        lambda: XYZ.astype(np.uint8),
        lambda: torch.from_numpy(XYZ).double(),
        lambda: torch.from_numpy(XYZ).bfloat16(),
        lambda: torch.from_numpy(XYZ).requires_grad_(),
        lambda: torch.from_numpy(XYZ).half(),
        lambda: XYZ.tolist(),
        lambda: [tuple(row) for row in XYZ],
        lambda: list(XYZ),
        lambda: {"points": XYZ.tolist(), "label": 3},
        lambda: {"points": torch.from_numpy(XYZ)},
        lambda: PointCloudData(XYZ),
        lambda: trimesh.PointCloud(XYZ),
        lambda: trimesh.Scene([trimesh.PointCloud(XYZ)]),
    ],
)
def test_every_form_of_one_cloud_gives_the_same_points(make):
    (entry,) = split_clouds(make())
    cloud = to_cloud(entry)
    assert cloud.points.dtype == np.float32 and (cloud.points == XYZ).all()


def test_paths_and_rows_with_a_path_or_bytes_are_read(tmp_path):
    path = tmp_path / "a.npz"
    write_point_cloud(path, PointCloudData(XYZ))
    rows = [
        {"path": str(path)},
        {"path": "a.npz", "bytes": path.read_bytes()},
        {"bytes": path.read_bytes(), "file_type": "npz"},
        {"points": str(path)},
        {"points": {"path": str(path), "bytes": None}},
    ]
    for entry in (path, str(path), *rows):
        (single,) = split_clouds(entry)
        assert (to_cloud(single).points == XYZ).all()
    with pytest.raises(PointCloudFileError):
        to_cloud({"path": "missing.ply"})


@pytest.mark.parametrize(
    "make",
    [
        lambda: [XYZ, XYZ[:3]],
        lambda: (XYZ.tolist(), XYZ[:3].tolist()),
        lambda: [torch.from_numpy(XYZ), XYZ[:3].tolist()],
        lambda: {"points": [XYZ, XYZ[:3]]},
        lambda: {"points": [XYZ.tolist(), XYZ[:3].tolist()], "label": [0, 1]},
        lambda: np.array([XYZ, XYZ[:3]], dtype=object),
        lambda: [{"points": XYZ}, {"points": XYZ[:3]}],
        lambda: [PointCloudData(XYZ), trimesh.PointCloud(XYZ[:3])],
    ],
)
def test_many_clouds_of_different_sizes_are_split_in_order(make):
    clouds = [to_cloud(entry) for entry in split_clouds(make())]
    assert [len(cloud) for cloud in clouds] == [5, 3]
    assert (clouds[1].points == XYZ[:3]).all()


def test_a_slice_with_the_format_of_numpy_is_split():
    ragged = np.empty(2, dtype=object)
    ragged[:] = [XYZ, XYZ[:4]]
    assert [len(to_cloud(entry)) for entry in split_clouds({"points": ragged})] == [5, 4]


def test_numbers_under_a_mask_are_not_taken_for_points():
    with pytest.raises(PointCloudError):
        to_cloud(np.ma.masked_array(XYZ, mask=XYZ > 12))
    assert len(to_cloud(np.ma.masked_array(XYZ))) == len(XYZ)


def test_columns_of_an_array_are_those_of_the_features():
    table = np.hstack([XYZ, np.full((5, 3), 51), np.tile([0, 0, 1], (5, 1))])
    cloud = to_cloud(table, ("xyz", "rgb", "normals"))
    np.testing.assert_allclose(cloud.colors, 0.2, atol=1e-6)
    assert (cloud.normals == [0, 0, 1]).all()
    other = to_cloud(table, ("xyz",))
    assert other.colors is None and other.normals is None
    row = to_cloud({"points": np.hstack([XYZ, XYZ]), "colors": np.full((5, 3), 0.5)}, ("xyz", "rgb", "normals"))
    assert (row.colors == 0.5).all() and (row.normals == XYZ).all()


def test_colors_range_to_one_or_to_255():
    for colors in (np.full((5, 3), 51, np.uint8), np.full((5, 3), 51.0), np.full((5, 3), 0.2), [[51] * 3] * 5):
        np.testing.assert_allclose(to_cloud({"points": XYZ, "colors": colors}).colors, 0.2, atol=1e-6)
    with pytest.raises(PointCloudError):
        to_cloud({"points": XYZ, "colors": np.repeat([[-1, 0, 0]], 5, 0)})


def test_a_trimesh_keeps_its_faces_and_colors():
    box = trimesh.creation.box()
    box.visual.face_colors = np.tile(np.uint8([[255, 0, 0, 255], [0, 51, 0, 255]]), (6, 1))
    cloud = to_cloud(box)
    assert (cloud.faces == box.faces).all() and len(cloud) == 8
    np.testing.assert_allclose(cloud.face_colors[:2], [[1, 0, 0], [0, 0.2, 0]], atol=1e-6)
    vertex = trimesh.Trimesh(box.vertices, box.faces, vertex_colors=np.tile([0, 0, 255, 255], (8, 1)), process=False)
    assert (to_cloud(vertex).colors == [0, 0, 1]).all()


def test_a_scene_is_joined_with_its_transforms():
    scene = trimesh.Scene()
    for x in (0, 10):
        scene.add_geometry(trimesh.creation.box(), transform=trimesh.transformations.translation_matrix([x, 0, 0]))
    cloud = to_cloud(scene)
    assert len(cloud) == 16 and len(cloud.faces) == 24
    assert cloud.points[:, 0].min() == -0.5 and cloud.points[:, 0].max() == 10.5
    with pytest.raises(ValueError):
        to_cloud(trimesh.Scene())


def test_a_scene_far_from_the_origin_is_joined_where_it_is():
    scene = trimesh.Scene()
    for place in ([0, 5e6, 0], [10, 5e6 + 2, -1]):
        scene.add_geometry(trimesh.creation.box(), transform=trimesh.transformations.translation_matrix(place))
    cloud = to_cloud(scene)
    assert cloud.offset is not None
    places = cloud.points + cloud.offset
    np.testing.assert_allclose(places.min(axis=0), [-0.5, 5e6 - 0.5, -1.5], atol=1e-6)
    np.testing.assert_allclose(places.max(axis=0), [10.5, 5e6 + 2.5, 0.5], atol=1e-6)
