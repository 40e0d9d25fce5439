"""Meshes of real files and of generated scenes, read here and by trimesh."""

import numpy as np
import pytest
import trimesh

from hf_any3d.data.files import PointCloudData, read_point_cloud

from .builders import srgb
from .conftest import FILES

MESHES = sorted(path.name for path in FILES.iterdir() if path.suffix in (".obj", ".off", ".stl", ".glb"))


def corners(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the corners (faces, 3, 3) of triangles, turned and sorted so that equal surfaces are equal."""
    triangles = np.asarray(points, np.float32)[faces].astype(np.float64).round(3) + 0.0  # no negative zeros
    return np.array(sorted(min(np.roll(triangle, -place, 0).tolist() for place in range(3)) for triangle in triangles))


def assert_same(cloud: PointCloudData, mesh: trimesh.Trimesh) -> None:
    assert_of_one_shape(cloud, mesh)
    np.testing.assert_allclose(corners(cloud.points, cloud.faces), corners(mesh.vertices, mesh.faces), atol=2e-3)


def assert_of_one_shape(cloud: PointCloudData, mesh: trimesh.Trimesh) -> None:
    assert cloud.faces is not None and len(cloud.faces) == len(mesh.faces)
    np.testing.assert_allclose(np.stack([cloud.points.min(0), cloud.points.max(0)]), mesh.bounds, atol=1e-4)
    area = trimesh.Trimesh(cloud.points, cloud.faces, process=False).area
    np.testing.assert_allclose(area, mesh.area, rtol=1e-5)


@pytest.mark.parametrize("name", MESHES)
def test_a_real_mesh_has_the_triangles_that_trimesh_finds(name):
    mesh = trimesh.load(FILES / name, force="scene", process=False).to_mesh()
    cloud = read_point_cloud(FILES / name)
    if name != "desk.obj":
        return assert_same(cloud, mesh)
    # Two of its quads are concave, and trimesh cuts all of them at their first corner.
    assert_of_one_shape(cloud, mesh)
    read, expected = (
        {*map(str, corners(points, faces).round(1).tolist())}
        for points, faces in ((cloud.points, cloud.faces), (mesh.vertices, mesh.faces))
    )
    assert len(read - expected) == 4


@pytest.mark.parametrize("kind", ["glb", "obj", "off", "stl", "ply"])
def test_a_mesh_that_trimesh_writes_is_read_as_it_was(kind):
    mesh = trimesh.creation.icosphere(2)
    mesh.apply_transform(trimesh.transformations.scale_matrix(-3, direction=[1, 2, 0]))
    if kind in ("off", "ply", "glb"):
        mesh.visual.vertex_colors = np.random.default_rng(0).integers(0, 256, (len(mesh.vertices), 3))
    data = mesh.export(file_type=kind)
    cloud = read_point_cloud(data if isinstance(data, bytes) else data.encode(), file_type=kind)
    assert_same(cloud, mesh)
    if kind in ("ply", "glb"):  # trimesh writes no colors to OFF
        colors = mesh.visual.vertex_colors[:, :3] / 255
        # trimesh writes numbers as they are; those of glTF are linear.
        np.testing.assert_allclose(cloud.colors, srgb(colors) if kind == "glb" else colors, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_scene_of_mirrored_turned_and_scaled_nodes_has_the_triangles_that_trimesh_finds(seed):
    generator = np.random.default_rng(seed)
    scene = trimesh.Scene()
    parent = None
    for number in range(4):
        transform = trimesh.transformations.random_rotation_matrix(generator.random(3))
        transform[:3, :3] *= generator.uniform(0.5, 2, 3) * generator.choice([-1, 1], 3)
        transform[:3, 3] = generator.normal(size=3)
        mesh = trimesh.creation.box(generator.uniform(0.5, 2, 3))
        mesh.visual.face_colors = [51 * number, 0, 255]
        scene.add_geometry(mesh, node_name=str(number), parent_node_name=parent, transform=transform)
        parent = str(number)
    cloud = read_point_cloud(scene.export(file_type="glb"), file_type="glb")
    assert_same(cloud, scene.to_mesh())
