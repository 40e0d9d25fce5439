from pathlib import Path

import numpy as np
import pytest
import torch
import trimesh

from hf_any3d import PointCloudProcessor
from hf_any3d.data.files import PointCloudData
from hf_any3d.modeling.point_ops import farthest_point_sample
from tests.errors import raises

FILES = Path(__file__).parents[1] / "files"
CHAIR = np.load(FILES / "chair.npy")


def cloud(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32) * 3 + 5


@pytest.mark.parametrize("sampling", ["random", "farthest", "first"])
def test_points_are_centered_and_fill_the_unit_sphere(sampling):
    out = PointCloudProcessor(num_points=100, sampling=sampling)([cloud(500), cloud(100), cloud(1000, 1)])
    points = out["points"]
    assert points.shape == (3, 100, 3) and points.dtype == torch.float32
    assert points.mean(1).abs().max() < 1e-6
    np.testing.assert_allclose(points.norm(dim=2).amax(1), 1, atol=1e-6)


@pytest.mark.parametrize(("up_axis", "up"), [("x", 0), ("y", 1), ("z", 2)])
def test_centered_on_the_ground_a_cloud_keeps_its_heights(up_axis, up):
    processor = PointCloudProcessor(num_points=500, center="ground", scale=None, up_axis=up_axis)
    points, given = processor(cloud(500))["points"][0].numpy(), cloud(500)
    expected = given - given.mean(0)
    expected[:, up] = given[:, up] - given[:, up].min()
    np.testing.assert_allclose(points, expected, atol=1e-5)


@pytest.mark.parametrize("up_axis", [None, "y"])
def test_a_block_of_a_room_knows_its_place_in_it(up_axis):
    room = np.random.default_rng(0).uniform([10, -3, 2], [14, 5, 5], (5000, 3)).astype(np.float32)
    block = room[(room[:, 0] < 11) & (room[:, 1] > 4)]
    low, high = room.min(axis=0), room.max(axis=0)
    colors = np.random.default_rng(1).random(block.shape)
    settings = {"center": "room", "scale": None, "block_size": 1.0, "up_axis": "z", "features": ("xyz", "rgb")}
    processor = PointCloudProcessor(num_points=len(block), **settings)
    middle = block.min(axis=0) + 0.5
    middle[2] = low[2]
    expected = np.concatenate([block - middle, colors, (block - low) / (high - low)], axis=1)
    bounds = np.stack([low, high])
    if up_axis == "y":  # (x, y, z) is (x, z, -y) with y up
        block, bounds = (np.stack([xyz[:, 0], xyz[:, 2], -xyz[:, 1]], axis=1) for xyz in (block, bounds))
    cloud = {"points": block, "colors": colors}
    points = processor(cloud, up_axis=up_axis, bounds=bounds, return_tensors="np")["points"][0]
    np.testing.assert_allclose(points, expected, atol=1e-5)
    alone = processor(cloud, up_axis=up_axis, return_tensors="np")["points"][0]
    assert alone[:, 6:].min() == 0 and alone[:, 6:].max() == 1


def test_whole_clouds_can_set_center_and_radius_before_they_are_sampled():
    processor = PointCloudProcessor(num_points=64, sampling="farthest", extent="all", min_squared_norm=0.04)
    centered = CHAIR.astype(np.float64) - CHAIR.mean(0, dtype=np.float64)
    expected = torch.from_numpy(centered / np.linalg.norm(centered, axis=1).max()).float()
    index = farthest_point_sample(expected[None], 64, min_squared_norm=0.04)[0]
    plain = farthest_point_sample(expected[None], 64)[0]
    assert not torch.equal(index, plain)
    points = processor(CHAIR)["points"][0]
    torch.testing.assert_close(points, expected[index], rtol=0, atol=1e-6)
    assert (points[1:].norm(dim=1) > 0.2).all()
    kept = PointCloudProcessor(num_points=64, sampling="farthest")(CHAIR)["points"][0]
    assert not torch.allclose(points.mean(0), kept.mean(0), atol=1e-4)


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_farthest_sampling_works_at_every_scale(factor):
    processor = PointCloudProcessor(num_points=64, sampling="farthest")
    same = processor(CHAIR.astype(np.float64) * factor)["points"]
    np.testing.assert_allclose(same, processor(CHAIR)["points"], atol=1e-4)


@pytest.mark.parametrize("sampling", ["random", "farthest", "first"])
def test_a_call_depends_on_the_seed_and_not_on_the_other_clouds(sampling):
    processor = PointCloudProcessor(num_points=50, sampling=sampling)
    batch = [cloud(300), FILES / "lamp.stl", cloud(51, 2), cloud(300, 3)]
    together = processor(batch)["points"]
    for i, single in enumerate(batch):
        assert torch.equal(processor(single)["points"][0], together[i])
    assert torch.equal(processor(batch[::-1])["points"].flip(0), together)
    if sampling == "random":
        other = processor(batch, seed=1)["points"]
        assert not torch.equal(other, together)
        assert torch.equal(PointCloudProcessor(num_points=50, sampling=sampling, seed=1)(batch)["points"], other)


def test_without_a_seed_torchs_generator_decides():
    processor = PointCloudProcessor(num_points=50, seed=None)
    torch.manual_seed(3)
    first, second = processor(cloud(300))["points"], processor(cloud(300))["points"]
    torch.manual_seed(3)
    assert torch.equal(processor(cloud(300))["points"], first) and not torch.equal(first, second)


def test_small_clouds_are_filled_up_behind_their_own_points_with_one_warning():
    processor = PointCloudProcessor(num_points=50)
    with pytest.warns(UserWarning) as caught:
        points = processor([cloud(20), cloud(60), cloud(30)])["points"]
    assert len(caught) == 1
    assert "2 of 3 clouds have fewer than num_points=50 points, the smallest 20" in str(caught[0].message)
    alone = PointCloudProcessor(num_points=20)(cloud(20))["points"][0]
    assert torch.equal(points[0, :20], alone)
    assert all((row == alone).all(1).any() for row in points[0, 20:])


@pytest.mark.filterwarnings("error")
def test_small_clouds_are_padded_and_masked_on_request():
    processor = PointCloudProcessor(num_points=50, small_clouds="masked")
    made = processor([cloud(20), cloud(40), cloud(30)])
    assert made["points"].shape == (3, 40, 3) and made["points_mask"].dtype == torch.bool
    assert made["points_mask"].sum(dim=1).tolist() == [20, 40, 30] and made["points_mask"][0, :20].all()
    assert torch.equal(made["points"][0, :20], PointCloudProcessor(num_points=20)(cloud(20))["points"][0])
    assert not made["points"][~made["points_mask"]].any()
    assert processor([cloud(60), cloud(70)])["points_mask"].shape == (2, 50)


def test_meshes_are_sampled_on_their_surface_by_area():
    points = PointCloudProcessor(num_points=3000, center=False, scale=None)(FILES / "screwdriver.obj")["points"][0]
    mesh = trimesh.load(FILES / "screwdriver.ply", process=False)
    _, distance, _ = trimesh.proximity.closest_point_naive(mesh, points[:200].double().numpy())
    assert distance.max() < 1e-3
    np.testing.assert_allclose(points.double().mean(0), mesh.centroid, atol=0.5)
    spread = PointCloudProcessor(num_points=64, sampling="farthest")(FILES / "lamp.off")["points"][0]
    plain = PointCloudProcessor(num_points=64)(FILES / "lamp.off")["points"][0]
    nearest = [torch.cdist(p, p).fill_diagonal_(9).amin() for p in (spread, plain)]
    assert nearest[0] > 2 * nearest[1]


def test_channels_follow_the_features():
    files = [FILES / "chair.npz", FILES / "chair_points.ply"]
    both = PointCloudProcessor(num_points=16, features=("xyz", "normals", "rgb"), sampling="first")(files)["points"]
    assert both.shape == (2, 16, 9)
    np.testing.assert_allclose(both[0], both[1], atol=1e-3)
    np.testing.assert_allclose(both[0, :, 3:6].norm(dim=1), 1, atol=1e-3)
    expected = np.load(FILES / "chair_xyzrgb.npy")[:16, 3:]
    np.testing.assert_allclose(both[0, :, 6:], expected, atol=1e-6)
    swapped = PointCloudProcessor(num_points=16, features=("xyz", "rgb"), sampling="first")(files[0])["points"]
    np.testing.assert_allclose(swapped[0, :, 3:], expected, atol=1e-6)
    mesh = PointCloudProcessor(num_points=16, features=("xyz", "rgb"))(FILES / "chair.ply")["points"]
    assert mesh.shape == (1, 16, 6) and 0 <= mesh[..., 3:].min() and mesh[..., 3:].max() <= 1


@pytest.mark.parametrize(("up_axis", "old"), [("x", 0), ("z", 2)])
def test_a_call_turns_clouds_with_another_up_axis(up_axis, old):
    given = np.load(FILES / "chair.npz")
    row = {"points": given["points"], "normals": given["normals"]}
    processor = PointCloudProcessor(num_points=len(row["points"]), features=("xyz", "normals"), seed=0)
    expected, third = processor(row)["points"][0], 3 - 1 - old
    lying = {}
    for name, values in row.items():
        lying[name] = values.copy()
        lying[name][:, old], lying[name][:, 1] = values[:, 1], -values[:, old]  # Y up to another up axis
    torch.testing.assert_close(processor(lying, up_axis=up_axis)["points"][0], expected)
    assert (processor(lying)["points"][0, :, third] - expected[:, third]).abs().max() < 1e-6
    assert (processor(lying)["points"][0] - expected).abs().max() > 0.5
    torch.testing.assert_close(processor(row, up_axis="y")["points"][0], expected)
    with raises(ValueError, naming="up_axis"):
        processor(row, up_axis="up")


def test_the_up_axis_of_a_call_is_that_of_the_file_where_axes_are_exchanged():
    """Y and z are exchanged before all else, so a file with Z up needs no turn for a model with Y up."""
    processor = PointCloudProcessor(num_points=len(CHAIR), axes="xzy", up_axis="y", sampling="first")
    torch.testing.assert_close(processor(CHAIR, up_axis="z")["points"], processor(CHAIR)["points"])
    assert (processor(CHAIR, up_axis="y")["points"] - processor(CHAIR)["points"]).abs().max() > 0.5


def test_missing_features_are_named():
    processor = PointCloudProcessor(features=("xyz", "rgb"))
    with raises(ValueError, naming="'xyz', 'rgb')"):
        processor(CHAIR)
    with pytest.raises(ValueError, match="cloud 1: no normals"):
        PointCloudProcessor(features=("xyz", "normals"))([FILES / "chair.txt", FILES / "chair.xyz"])


@pytest.mark.parametrize(
    "bad, why",
    [
        (np.full((10, 3), np.nan), "cloud 1: points has NaN, infinite"),
        (np.full((10, 3), np.inf), "cloud 1: points has NaN, infinite"),
        (np.zeros((0, 3)), "cloud 1: has no points"),
        (np.ones((10, 3)) * 0.1, "cloud 1: all 10 points are equal; a cloud without extent cannot be scaled"),
        (cloud(2), "cloud 1: 2 points; expected at least 3"),
        (np.full((4, 3), "a"), "cloud 1: points"),
        ("missing.ply", "cloud 1: missing.ply: no such file"),
        (PointCloudData(cloud(3), faces=[[0, 0, 1]]), "cloud 1: all 1 triangles have zero area"),
    ],
)
def test_a_cloud_that_cannot_be_used_is_named(bad, why):
    with pytest.raises(ValueError, match=why):
        PointCloudProcessor(num_points=10)([cloud(10), bad])


def test_equal_points_are_allowed_when_nothing_is_scaled():
    points = PointCloudProcessor(num_points=4, scale=None, center=False)(np.full((4, 3), 2.0))["points"]
    assert (points == 2).all()


@pytest.mark.parametrize("sampling", ["first", "random", "farthest"])
def test_a_larger_cloud_gives_no_point_twice(sampling):
    for count in (50, 99, 100):
        points = PointCloudProcessor(num_points=count, sampling=sampling)(cloud(100))["points"][0]
        assert len(points) == len(points.unique(dim=0)) == count


@pytest.mark.slow
def test_ten_million_points_are_read_and_sampled():
    points = np.random.default_rng(0).random((10_000_000, 3), dtype=np.float32)
    for sampling in ("random", "farthest"):
        out = PointCloudProcessor(num_points=64, sampling=sampling)(points)["points"]
        assert out.shape == (1, 64, 3) and torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"center": "mean"}, "center='mean'; expected one of True, 'ground', 'room', False"),
        ({"scale": "cube"}, "scale"),
        ({"sampling": "voxel"}, "sampling"),
        ({"features": ("rgb",)}, "features"),
        ({"features": ("xyz", "xyz")}, "features"),
        ({"features": ("xyz", "depth")}, "features"),
        ({"up_axis": "up"}, "up_axis"),
        ({"extent": "most"}, "extent"),
        ({"small_clouds": "dropped"}, "small_clouds"),
        ({"default_rgb": (0.5, 0.5)}, "default_rgb"),
        ({"default_rgb": (0.5, 0.5, float("nan"))}, "default_rgb"),
        ({"default_rgb": (0, 2, 0)}, "default_rgb"),
    ],
)
def test_a_setting_that_would_mean_something_else_is_refused(arguments, named):
    with raises(ValueError, naming=named):
        PointCloudProcessor(**arguments)


def test_a_misspelt_argument_is_refused():
    with raises(TypeError, naming="num_point"):
        PointCloudProcessor(num_point=5)
    with pytest.raises((ValueError, IndexError)):
        PointCloudProcessor()(CHAIR, num_points=0)


def test_each_cloud_of_a_call_may_have_its_own_seed():
    clouds = list(np.random.default_rng(0).standard_normal((3, 60, 3)).astype(np.float32))
    processor = PointCloudProcessor(num_points=20)
    together = processor(clouds, seed=[5, 6, 5], return_tensors="np")["points"]
    for cloud, seed, found in zip(clouds, [5, 6, 5], together, strict=True):
        np.testing.assert_array_equal(found, processor(cloud, seed=seed, return_tensors="np")["points"][0])
    with raises(ValueError, naming="shorter"):
        processor(clouds, seed=[1, 2])
    with raises(ValueError, naming="non-negative"):
        processor(clouds, seed=[1, 2, -1])
