import numpy as np
import pytest
import torch

from hf_any3d.data.transforms import (
    TRANSFORMS,
    CenterAndScale,
    Compose,
    GlobalRotScaleTrans,
    Jitter,
    PointsRangeFilter,
    RandomFlip,
    RandomRotation,
    RandomScale,
    RandomShift,
    RandomUpAxis,
    build_transform,
)
from tests.errors import raises
from tests.golden import assert_stored


@pytest.fixture
def cloud():
    """256 points with six channels: xyz, and three that must travel with their point."""
    generator = np.random.default_rng(0)
    xyz = generator.uniform(-1, 1, (256, 3))
    return np.concatenate([xyz, np.arange(768).reshape(256, 3)], axis=1).astype(np.float32)


def rng(seed=0):
    return np.random.default_rng(seed)


def every_transform():
    return [pytest.param(name, id=name) for name in TRANSFORMS]


@pytest.mark.parametrize("name", every_transform())
def test_the_same_generator_gives_the_same_points_and_leaves_the_input_unchanged(name, cloud):
    before = cloud.copy()
    first, second = (TRANSFORMS[name]()(cloud, rng(3)) for _ in range(2))
    assert first.dtype == np.float32
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(cloud, before)


def test_normals_stay_perpendicular_to_a_plane_that_is_scaled_per_axis():
    generator = rng(1)
    normal, along, across = np.linalg.qr(generator.standard_normal((3, 3)))[0].T
    weights = generator.uniform(-1, 1, (64, 2))
    plane = weights[:, :1] * along + weights[:, 1:] * across
    cloud = np.concatenate([plane, np.tile(normal, (64, 1))], axis=1)
    scaled = RandomScale(0.2, 3.0, per_axis=True, normals_columns=(3, 4, 5))(cloud, rng(2))
    edges = scaled[1:, :3] - scaled[:1, :3]
    np.testing.assert_allclose(edges @ scaled[0, 3:], 0, atol=1e-5)
    np.testing.assert_allclose(np.linalg.norm(scaled[:, 3:], axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize(("axis", "kept"), [("x", 0), ("y", 1), ("z", 2)])
def test_rotation_keeps_the_axis_the_distances_and_the_handedness(axis, kept, cloud):
    turned = RandomRotation(axis)(cloud, rng())[:, :3]
    np.testing.assert_array_equal(turned[:, kept], cloud[:, kept])
    np.testing.assert_allclose(np.linalg.norm(turned, axis=1), np.linalg.norm(cloud[:, :3], axis=1), rtol=1e-5)
    matrix = np.linalg.lstsq(cloud[:, :3], turned, rcond=None)[0]
    assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-4)


def test_rotation_rotates_normals_if_requested(cloud):
    cloud[:, 3:] = cloud[:, :3]
    turned = RandomRotation("z", normals_columns=(3, 4, 5))(cloud, rng())
    np.testing.assert_allclose(turned[:, 3:], turned[:, :3], rtol=1e-6)


def test_up_axis_is_turned_to_each_of_the_given_ones_and_normals_too(cloud):
    cloud[:, 3:] = cloud[:, :3]
    up = set()
    for seed in range(20):
        turned = RandomUpAxis("yzx", normals_columns=(3, 4, 5))(cloud, rng(seed))
        np.testing.assert_array_equal(turned[:, 3:], turned[:, :3])
        matrix = np.linalg.lstsq(cloud[:, :3], turned[:, :3], rcond=None)[0]
        assert np.linalg.det(matrix) == pytest.approx(1, abs=1e-4)
        (axis,) = [number for number in range(3) if np.array_equal(turned[:, number], cloud[:, 1])]
        up.add(axis)
    assert up == {0, 1, 2}
    np.testing.assert_array_equal(RandomUpAxis("y")(cloud, rng()), cloud)
    np.testing.assert_array_equal(
        RandomUpAxis("y", up_axis="z")(cloud, rng())[:, :3] * [1, 1, -1], cloud[:, [0, 2, 1]]
    )


def test_centering_without_scaling_keeps_the_size(cloud):
    moved = CenterAndScale(scale=False)(cloud + 7)
    np.testing.assert_allclose(moved[:, :3], cloud[:, :3] - cloud[:, :3].mean(axis=0), atol=1e-5)


def test_names_with_settings_build_a_chain():
    built = build_transform(["scale", "rotate:axis=z,limit=0.5", "jitter:std=0.02"])
    assert built == Compose([RandomScale(), RandomRotation(axis="z", limit=0.5), Jitter(std=0.02)])
    assert build_transform({"scale": {"low": 0.9}, "center": {}}) == Compose([RandomScale(low=0.9), CenterAndScale()])
    assert build_transform("shift") == Compose([RandomShift()])
    for word, value in (("false", False), ("False", False), ("true", True)):
        assert build_transform([f"scale:per_axis={word}"]) == Compose([RandomScale(per_axis=value)])


@pytest.mark.parametrize("spec", [["twist"], ["scale:lo=1"], ["scale:0.9"], ["rotate:axis=w"]])
def test_a_wrong_spec_is_an_error_with_the_allowed_values(spec):
    with pytest.raises(ValueError):
        build_transform(spec)


@pytest.mark.slow
def test_dataloader_workers_draw_different_noise_and_repeat_it_under_a_seed(cloud):
    class Noise(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return Jitter()(cloud)

    def read():
        torch.manual_seed(5)
        return torch.stack(list(torch.utils.data.DataLoader(Noise(), batch_size=None, num_workers=2)))

    first, second = read(), read()
    assert torch.equal(first, second)
    assert len({tuple(sample.flatten().tolist()) for sample in first}) == 4


STORED = {
    "scale": [-0.022435, -0.032256, -0.051892],
    "shift": [-0.096093, 0.066805, -0.063911],
    "rotate": [-0.283374, -0.050415, -0.209205],
    "up": [-0.276607, -0.037543, -0.276607],
    "jitter": [-0.042334, -0.045927, -0.024975],
    "dropout": [-1.844068, -0.018224, -0.024401],
    "shuffle": [-0.235721, -0.099075, -0.377394],
    "subsample": [0.000356, -0.869, -0.446112],
    "farthest": [-0.723274, -0.723274, -0.723274],
    "flip": [0.282204, 0.282204, -1.072213],
    "rot_scale_trans": [-0.162442, -0.02751, -0.014111],
    "range": [-0.037543, -0.037543, -0.037543],
    "center": [-0.152282, -0.152282, -0.152282],
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_transforms_are_those_of_earlier_versions(name, cloud):
    """Runs that were published are repeated with the same points."""
    cloud[:, 3:] /= 1000
    settings = {"num_points": 9} if name in ("subsample", "farthest") else {}
    assert_stored([TRANSFORMS[name](**settings)(cloud, rng(seed)) for seed in range(3)], STORED[name])


def test_a_range_keeps_the_points_in_a_box_and_a_command_line_can_give_it(cloud):
    transform = build_transform("range:point_cloud_range=[-1,-0.5,-1,0,0.5,1]")
    inside = (cloud[:, 0] <= 0) & (np.abs(cloud[:, 1]) <= 0.5)
    np.testing.assert_array_equal(transform(cloud), cloud[inside])
    with raises(ValueError, naming="point_cloud_range"):
        PointsRangeFilter((5, 5, 5, 6, 6, 6))(cloud)
    with pytest.raises(ValueError):
        PointsRangeFilter((1, 2, 3))(cloud)


def test_a_flip_mirrors_across_the_ground_and_keeps_heights(cloud):
    flip = RandomFlip(p=1, up_axis="z", normals_columns=(3, 4, 5))
    np.testing.assert_array_equal(flip(cloud), cloud * np.float32([-1, -1, 1, -1, -1, 1]))
    np.testing.assert_array_equal(RandomFlip(p=0)(cloud), cloud)
    signs = {tuple(np.sign(RandomFlip(up_axis="y")(cloud, rng(seed))[0, :3] * cloud[0, :3])) for seed in range(40)}
    assert signs == {(x, 1, z) for x in (-1, 1) for z in (-1, 1)}


def test_the_ground_of_a_street_stays_where_it_is():
    generator = rng(1)
    ground = np.column_stack([generator.uniform(-20, 20, (900, 2)), np.full(900, -1.7)])
    street = np.concatenate([ground, generator.uniform(-1.7, 3, (100, 3))]).astype(np.float32)
    moved = GlobalRotScaleTrans(up_axis="z")(street, rng(2))
    np.testing.assert_allclose(moved[:900, 2], -1.7, atol=1e-5)
    assert np.abs(moved[900:, 2] - street[900:, 2]).max() > 0.01  # things on it change their heights
    assert np.linalg.norm(moved[:, :2] - street[:, :2], axis=1).min() > 0
