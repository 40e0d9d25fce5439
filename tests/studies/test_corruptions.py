"""The fifteen corruptions: what each changes, how much, and what it keeps."""

import numpy as np
import pytest

from studies.robustness.corruptions import CORRUPTIONS, FAMILIES, SEVERITIES, corrupt
from tests.golden import assert_stored

CHANNELS = ("xyz", "rgb", "normals")


@pytest.fixture
def sphere():
    """1024 points of a unit sphere (1024, 9): xyz, colors that number the points, and normals."""
    normals = np.random.default_rng(0).normal(size=(1024, 3))
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    numbers = np.repeat(np.arange(1024.0)[:, None], 3, axis=1)
    return np.concatenate([normals, numbers, normals], axis=1).astype(np.float32)


def corrupted(points, name, severity, seed=0, **settings):
    return corrupt(points, name, severity, np.random.default_rng(seed), **settings)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_position_and_size_of_the_cloud_change_nothing(name, sphere):
    moved = sphere.copy()
    moved[:, :3] = 50 * moved[:, :3] + (1000, -200, 30)
    expected, found = (corrupted(points, name, 2, features=CHANNELS) for points in (sphere, moved))
    np.testing.assert_allclose((found[:, :3] - (1000, -200, 30)) / 50, expected[:, :3], atol=1e-4)
    np.testing.assert_allclose(found[:, 3:], expected[:, 3:], atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*(f.__name__ for f in FAMILIES["transformation"]), "uniform", "gaussian", "impulse"])
def test_higher_severities_move_points_farther(name, sphere):
    def moved(severity):
        clouds = [corrupted(sphere, name, severity, seed) for seed in range(8)]
        return np.mean([np.linalg.norm((cloud - sphere)[:, :3], axis=1).mean() for cloud in clouds])

    distances = [moved(severity) for severity in SEVERITIES]
    assert distances[0] > 0 and distances == sorted(distances)


def test_colors_stay_with_points_and_normals_follow_rotation_and_shear(sphere):
    rotated = corrupted(sphere, "rotation", 5, features=CHANNELS)
    np.testing.assert_array_equal(rotated[:, 3:6], sphere[:, 3:6])
    center = rotated[:, :3].mean(axis=0) - sphere[:, :3].mean(axis=0)
    np.testing.assert_allclose(rotated[:, 6:], rotated[:, :3] - center, atol=0.02)  # of a sphere, normals are points
    sheared = corrupted(sphere, "shear", 5, features=CHANNELS)
    matrix = np.linalg.lstsq(sphere[:, :3] - sphere[:, :3].mean(0), sheared[:, :3] - sheared[:, :3].mean(0))[0]
    tangents = np.cross(sphere[:, 6:], (0.3, 0.5, 0.8)) @ matrix  # of the sheared surface
    assert np.abs((tangents * sheared[:, 6:]).sum(axis=1)).max() < 1e-4
    np.testing.assert_allclose(np.linalg.norm(sheared[:, 6:], axis=1), 1, atol=1e-5)
    cut = corrupted(sphere, "cutout", 5, features=CHANNELS)
    np.testing.assert_array_equal(cut, sphere[cut[:, 3].astype(int)])


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_small_and_flat_clouds_keep_at_least_three_finite_points(name, sphere):
    flat = sphere.copy()
    flat[:, 1] = 0
    for points in (sphere[:3], sphere[:4], sphere[:17], flat[:4], flat):
        for severity in (1, 5):
            found = corrupted(points, name, severity, features=CHANNELS)
            assert len(found) >= 3 and np.isfinite(found).all()


STORED = {
    "occlusion": [-0.21746, 0.307376, -0.627211, 1.357033, -0.216968],
    "lidar": [-0.038109, 0.192738, 0.908322, -0.907268, 0.524753],
    "density_inc": [0.259602, -1.421038, 0.44783, 0.392687, 0.963004],
    "density": [-0.766988, 0.355128, 0.338105, 0.932354, 0.255523],
    "cutout": [0.307899, -0.421544, 0.268417, 0.136495, 1.156668],
    "uniform": [-0.129584, -0.132646, -0.135709, -0.138772, -0.141835],
    "gaussian": [-0.12791, -0.128635, -0.129382, -0.130004, -0.130374],
    "impulse": [-0.130804, -0.118264, -0.150703, -0.123473, -0.100984],
    "upsampling": [0.378123, 0.316944, -0.35059, -0.201051, 0.190887],
    "background": [0.756933, -0.787576, 0.040137, -0.660554, 0.11122],
    "rotation": [-0.106651, -0.086618, -0.067961, -0.050788, -0.021228],
    "shear": [-0.124422, -0.126599, -0.128032, -0.128566, -0.128086],
    "distortion": [-0.133224, -0.139928, -0.146631, -0.153335, -0.160038],
    "distortion_rbf": [-0.133643, -0.140766, -0.147888, -0.155011, -0.162133],
    "distortion_rbf_inv": [-0.132954, -0.139387, -0.14582, -0.152253, -0.158686],
}


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_corruptions_are_those_of_earlier_versions(name, sphere):
    """Published accuracies hold for no others."""
    sphere[:, 3:6] /= 1000
    assert_stored([corrupted(sphere, name, severity, features=CHANNELS) for severity in SEVERITIES], STORED[name])
