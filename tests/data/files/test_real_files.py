"""Every file of tests/files reads with the counts and bounds that its README lists."""

import numpy as np
import pytest

from hf_any3d.data.files import read_point_cloud

from .conftest import FILES

BOUNDS = {
    "chair": ([-18.677, 0.288, -21.654], [18.474, 47.403, 17.527], 3930.4117),
    "desk": ([-0.248, 0.0, -3.032], [139.098, 105.445, 51.248], 94500.1404),
    "lamp": ([-10.693, 129.374, -10.672], [10.639, 188.442, 10.659], 5207.8205),
    "bottle": ([-5.287, -7.539, -2.498], [-0.291, 7.188, 2.498], 259.727),
    "shelves": ([-22.241, -0.0, -19.505], [22.241, 196.13, 19.505], 78845.297),
    "screwdriver": ([-22.065, -1.532, -1.528], [3.455, 1.523, 1.528], 175.6249),
}
# Points, triangles (0: a cloud), and further attributes.
CONTENTS = {
    "chair.obj": (1742, 3480, {"face_colors"}),
    "desk.obj": (2571, 3013, {"face_colors"}),
    "lamp.obj": (872, 1646, {"face_colors"}),
    "bottle.obj": (1408, 2684, {"face_colors"}),
    "shelves.obj": (864, 1832, {"face_colors"}),
    "screwdriver.obj": (216, 254, {"face_colors", "normals"}),
    "chair.ply": (1742, 3480, {"face_colors"}),
    "screwdriver.ply": (216, 254, {"face_colors"}),
    "lamp.off": (872, 1646, set()),
    "screwdriver.off": (216, 254, set()),
    "screwdriver_glued.off": (216, 254, set()),
    "lamp.stl": (3 * 1646, 1646, set()),
    "screwdriver.stl": (3 * 254, 254, set()),
    "bottle.glb": (1408, 2684, {"face_colors", "meters_per_unit"}),
    "chair.npy": (1024, 0, set()),
    "chair_xyzrgb.npy": (1024, 0, {"colors"}),
    "chair.npz": (1024, 0, {"colors", "normals", "labels"}),
    "chair.xyz": (1024, 0, set()),
    "chair.txt": (1024, 0, {"normals"}),
    "chair.pts": (1024, 0, set()),
    "chair.pcd": (1024, 0, {"colors"}),
    "chair_ascii.pcd": (1024, 0, {"colors"}),
    "chair_points.ply": (1024, 0, {"colors", "normals"}),
}


@pytest.mark.parametrize("name", CONTENTS)
def test_file_has_the_counts_and_bounds_of_its_readme(name):
    points, triangles, extras = CONTENTS[name]
    cloud = read_point_cloud(FILES / name)
    assert cloud.points.shape == (points, 3) and cloud.points.dtype == np.float32
    assert (len(cloud.faces) if cloud.is_mesh else 0) == triangles
    present = {key for key, value in vars(cloud).items() if value is not None}
    assert present - {"points", "faces"} == extras
    if triangles:
        low, high, area = BOUNDS[name.replace("_glued", "").split(".")[0]]
        np.testing.assert_allclose(cloud.points.min(0), low, atol=6e-4)
        np.testing.assert_allclose(cloud.points.max(0), high, atol=6e-4)
        a, b, c = (cloud.points[cloud.faces[:, i]].astype(np.float64) for i in range(3))
        np.testing.assert_allclose(np.linalg.norm(np.cross(b - a, c - a), axis=1).sum() / 2, area, rtol=2e-6)
    else:
        # All clouds have the same points; text has six decimals.
        np.testing.assert_allclose(cloud.points, np.load(FILES / "chair.npy"), atol=6e-7)
    if cloud.normals is not None:
        np.testing.assert_allclose(np.linalg.norm(cloud.normals, axis=1), 1, atol=1e-3)
    if cloud.colors is not None:
        np.testing.assert_allclose(cloud.colors, np.load(FILES / "chair_xyzrgb.npy")[:, 3:], atol=1e-6)


def test_labels_are_the_parts_of_the_archive():
    cloud = read_point_cloud(FILES / "chair.npz")
    with np.load(FILES / "chair.npz", allow_pickle=False) as archive:
        assert (cloud.labels == archive["part"]).all() and cloud.labels.dtype == np.int64


@pytest.mark.parametrize("name", ["chair_points.ply", "screwdriver.ply", "chair.pcd", "screwdriver.off"])
def test_data_after_what_the_header_declares_are_left_out_with_a_warning(name):
    data, file_type = (FILES / name).read_bytes(), name.partition(".")[2]
    read_point_cloud(data + b"\0" * 8 if name.startswith("chair") else data + b"\n\n", file_type=file_type)  # padding
    with pytest.warns(UserWarning, match="after the data that the header declares are ignored"):
        longer = read_point_cloud(data + b"3 0 1 2\n", file_type=file_type)
    assert np.array_equal(longer.points, read_point_cloud(data, file_type=file_type).points)
