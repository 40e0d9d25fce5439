"""`PointTransformerV3Processor` against plain loops: places, cells, channels, fragments, and what it refuses."""

from collections import defaultdict

import numpy as np
import pytest

from hf_any3d import PointTransformerV3Processor
from hf_any3d.data.files import PointCloudData
from tests.errors import raises

FINE = 1e-3  # each point has a cell of its own


def cloud(count=40, seed=0, **more):
    """Points of a box that is off the origin, with another extent along each axis."""
    return PointCloudData(
        np.random.default_rng(seed).random((count, 3)) * [1, 0.5, 0.75] + [0.5, -0.25, 0.125], **more
    )


def placed(points, *, up="z", factor=1.0, box_center="ground", scale=None, model_axes=None, clip=None):
    """Move and scale points one after the other, in float64."""
    xyz = np.asarray(points, np.float64)
    if scale is not None:
        xyz = xyz - xyz.mean(axis=0)
        xyz = xyz / (np.abs(xyz).max() if scale == "unit_box" else np.sqrt((xyz**2).sum(axis=1)).max())
    xyz = xyz * factor
    if box_center is not None:
        origin, height = (xyz.min(axis=0) + xyz.max(axis=0)) / 2, xyz.min(axis=0)["xyz".index(up)]
        origin["xyz".index(up)] = {"ground": height, "half_ground": height / 2, "across": 0}[box_center]
        xyz = xyz - origin
    if model_axes is not None:
        xyz = np.stack([xyz[:, "xyz".index(axis[-1])] * (-1 if "-" in axis else 1) for axis in model_axes], axis=1)
    return xyz if clip is None else np.clip(xyz, *clip)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"up_axis": "y"},
        {"up_axis": "x", "box_center": "half_ground"},
        {"box_center": "across", "factor": 0.75},
        {"box_center": None},
        {"scale": "unit_sphere", "box_center": None},
        {"scale": "unit_box", "box_center": None, "factor": 1.5},
        {"scale": "unit_box", "up_axis": "y", "model_axes": ["-x", "z", "y"]},
        {"model_axes": ["z", "-y", "x"], "clip": [[-0.1, -0.9, -0.3], [0.1, 0.9, 0.9]]},
        {"clip": [[-0.2, -0.1, 0.1], [0.4, 0.2, 0.5]]},
        {"center_voxels": True, "up_axis": "y", "box_center": "half_ground", "factor": 2.0},
    ],
)
def test_points_are_moved_and_scaled_as_the_settings_say(settings):
    processor = PointTransformerV3Processor(features=["xyz"], grid_size=FINE, **settings)
    made = processor(cloud(), return_tensors="np")
    plain = {name: value for name, value in settings.items() if name not in ("up_axis", "center_voxels")}
    expected = placed(cloud().points, up=settings.get("up_axis", "z"), **plain)
    assert made["points"].dtype == np.float32 and sorted(made["inverse"][0]) == list(range(made["points"].shape[1]))
    np.testing.assert_allclose(made["points"][0][made["inverse"][0]], expected, atol=1e-6)


def test_of_each_cell_the_point_nearest_to_its_middle_is_kept():
    points, size = cloud(200).points, 0.25
    processor = PointTransformerV3Processor(features=["xyz"], grid_size=size, box_center=None)
    made = processor(cloud(200), return_tensors="np")
    xyz = np.asarray(points, np.float32).astype(np.float64)
    cells, members = np.floor(xyz / size).astype(int), defaultdict(list)
    for number, cell in enumerate(cells):
        members[tuple(cell)].append(number)
    found = made["points"][0]
    assert len(found) == len(members) and made["point_mask"].tolist() == [[True] * len(members)]
    np.testing.assert_array_equal(made["grid_coord"][0][made["inverse"][0]], cells - cells.min(axis=0))
    for cell, numbers in members.items():
        middle = (np.array(cell) + 0.5) * size
        nearest = min(numbers, key=lambda number: ((xyz[number] - middle) ** 2).sum())
        (voxel,) = {made["inverse"][0][number] for number in numbers}
        np.testing.assert_allclose(found[voxel], xyz[nearest], atol=1e-6)


@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_cells_are_cut_before_voxels_are_centered(factor):
    settings = {"features": ["xyz"], "grid_size": 0.25, "box_center": "across", "factor": factor}
    kept = PointTransformerV3Processor(**settings | {"box_center": None})(cloud(200), return_tensors="np")
    after = PointTransformerV3Processor(**settings, center_voxels=True)(cloud(200), return_tensors="np")
    before = PointTransformerV3Processor(**settings)(cloud(200), return_tensors="np")
    np.testing.assert_array_equal(after["inverse"], kept["inverse"])
    np.testing.assert_array_equal(after["grid_coord"], kept["grid_coord"])
    np.testing.assert_allclose(after["points"][0], placed(kept["points"][0], box_center="across"), atol=1e-6)
    assert before["grid_coord"].shape != kept["grid_coord"].shape or (before["inverse"] != kept["inverse"]).any()


def test_channels_follow_their_points():
    rng = np.random.default_rng(1)
    whole = {
        "colors": rng.random((40, 3)),
        "normals": rng.normal(size=(40, 3)),
        "intensity": rng.integers(0, 256, 40).astype(float),
    }
    names = ["xyz", "normals", "intensity", "rgb"]

    def channels(given, **settings):
        processor = PointTransformerV3Processor(features=names, grid_size=FINE, **settings)
        made = processor(given, return_tensors="np")
        own = made["points"][0][made["inverse"][0]][:, 3:]
        return own[:, :3], own[:, 3], own[:, 4:]

    given = cloud(**whole)
    for settings, intensity, colors in (
        ({}, whole["intensity"], whole["colors"]),
        ({"intensity_range": "bytes", "color_range": "signed"}, whole["intensity"] / 255, 2 * whole["colors"] - 1),
        ({"intensity_range": "tanh"}, np.tanh(whole["intensity"]), whole["colors"]),
    ):
        found = channels(given, **settings)
        for values, expected in zip(found, (given.normals, intensity, colors), strict=True):
            np.testing.assert_allclose(values, expected, atol=1e-6)
    bare = cloud(intensity=whole["intensity"])
    zeros = {"default_rgb": (0, 0, 0), "needs_normals": False}
    normals, _, colors = channels(bare, **zeros)
    assert not normals.any() and not colors.any()
    assert (channels(bare, color_range="signed", **zeros)[2] == -1).all()
    filled = channels(bare, default_rgb=[0.25, 0.5, 1.0], needs_normals=False)
    assert filled[2][0].tolist() == [0.25, 0.5, 1.0]
    for settings, missing in (
        ({}, "no colors and no normals"),
        ({"default_rgb": (0, 0, 0)}, "no normals"),
        ({"needs_normals": False}, "no colors"),
    ):
        with pytest.raises(ValueError, match=f"^{missing}, but .* Pointcept/Sonata, .*needs_normals=False"):
            channels(bare, **settings)


@pytest.mark.parametrize(
    ("values", "refused"),
    [
        ([0, 255], None),
        ([0, 0], "no intensity"),
        ([0, 1], None),
        ([1, 1.5], None),
        ([-1, 5], "intensity from -1 to 5; expected the sensor's bytes, 0 to 255"),
        ([0, 256], "intensity from 0 to 256"),
        ([0.5, 1], "intensity from 0.5 to 1"),
        ([0, 0.5], "intensity from 0 to 0.5"),
    ],
)
def test_an_intensity_in_another_unit_is_refused(values, refused):
    processor = PointTransformerV3Processor(features=["xyz", "intensity"], grid_size=FINE, intensity_range="bytes")
    given = cloud(4, intensity=np.array([*values, values[0], values[1]], float))
    if refused is not None:
        with pytest.raises(ValueError, match=refused):
            processor(given)
        return
    made = processor(given, return_tensors="np")
    own = made["points"][0][made["inverse"][0]][:, 3]
    np.testing.assert_allclose(own, np.array([*values, *values]) / 255, atol=1e-7)


def test_larger_clouds_are_reduced_and_smaller_ones_refused():
    settings = {"features": ["xyz"], "grid_size": FINE, "box_center": None, "sampling": "first"}
    processor = PointTransformerV3Processor(num_points=9, min_points=5, **settings)
    for count, kept in ((40, 9), (9, 9), (6, 6), (5, 5)):
        made = processor(cloud(count), return_tensors="np")
        own = made["points"][0][made["inverse"][0]]
        np.testing.assert_allclose(own, cloud(count).points[:kept], atol=1e-6)
    assert processor(cloud(40), num_points=7)["points"].shape == (1, 7, 3)
    with raises(ValueError, naming="4 points"):
        processor(cloud(4))
    with raises(ValueError, naming="cloud 1: 4 points"):
        processor([cloud(9), cloud(4)])
    faces = PointCloudData([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.5]], faces=np.array([[0, 1, 2], [1, 2, 3]]))
    assert processor(faces)["inverse"].shape == (1, 9)


def test_clouds_of_a_batch_are_filled_up_at_their_ends():
    processor = PointTransformerV3Processor(features=["xyz"], grid_size=FINE)
    clouds = [cloud(5), cloud(9, 1), cloud(7, 2)]
    made = processor(clouds, return_tensors="np")
    lists = processor(clouds, return_tensors=None)
    assert [len(values) for values in lists["points"]] == [5, 9, 7]
    for number, single in enumerate(clouds):
        alone, count = processor(single, return_tensors="np"), len(single)
        for name, fill in (("points", 0), ("grid_coord", 0), ("point_mask", 0), ("inverse", -1)):
            assert made[name].shape[:2] == (3, 9) and made[name].dtype == alone[name].dtype
            np.testing.assert_array_equal(made[name][number, :count], alone[name][0])
            np.testing.assert_array_equal(lists[name][number], alone[name][0])
            assert (made[name][number, count:] == fill).all()


def test_points_that_are_not_drawn_lead_to_the_nearest_voxel():
    settings = {"features": ["xyz"], "grid_size": FINE, "box_center": None, "drawn_points": 10}
    processor = PointTransformerV3Processor(**settings)
    made, points = processor(cloud(), seed=3, return_tensors="np"), np.asarray(cloud().points, np.float32)
    voxels = made["points"][0]
    assert voxels.shape == (10, 3) and made["inverse"].shape == (1, 40)
    assert {tuple(voxel) for voxel in voxels.tolist()} <= {tuple(point) for point in points.tolist()}
    distances = ((points[:, None].astype(float) - voxels[None].astype(float)) ** 2).sum(axis=2)
    np.testing.assert_array_equal(made["inverse"][0], distances.argmin(axis=1))
    again, other = (processor(cloud(), seed=seed, return_tensors="np")["points"][0] for seed in (3, 4))
    assert np.array_equal(again, voxels) and not np.array_equal(other, voxels)
    few = processor(cloud(10), return_tensors="np")
    assert sorted(map(tuple, few["points"][0].tolist())) == sorted(
        map(tuple, np.asarray(cloud(10).points, np.float32).tolist())
    )


@pytest.mark.parametrize("first_grid", [None, 0.25])
@pytest.mark.parametrize("center_voxels", [True, False])
@pytest.mark.parametrize("up", ["z", "y"])
def test_a_cloud_is_seen_in_views_whose_fragments_have_a_point_of_each_cell(up, center_voxels, first_grid):
    rng, views, size = np.random.default_rng(2), [[1, 0], [0.5, 90], [1.5, 30]], 0.2
    given = cloud(60, normals=rng.normal(size=(60, 3)), colors=rng.random((60, 3)))
    processor = PointTransformerV3Processor(
        features=["xyz", "rgb", "normals"], grid_size=size, up_axis=up, views=views, center_voxels=center_voxels,
        first_grid=first_grid, box_center="half_ground",
    )  # fmt: skip
    base = placed(given.points, up=up, box_center=None if center_voxels else "half_ground").astype(np.float32)
    rows, stands_for = processor.first_sample(given)
    if first_grid is None:
        assert rows.tolist() == stands_for.tolist() == list(range(60))
    else:
        cells = np.floor(base.astype(float) / first_grid).astype(int)
        assert len(rows) == len(np.unique(cells, axis=0)) and (cells[rows[stands_for]] == cells).all()
    base, found = base[rows].astype(np.float64), list(processor.fragments(given))
    first, second = ((1, 2, 0)["xyz".index(up)], (2, 0, 1)["xyz".index(up)])
    for scale, degrees in views:
        turn, angle = np.eye(3), np.radians(degrees)
        turn[first, first] = turn[second, second] = np.cos(angle)
        turn[first, second], turn[second, first] = -np.sin(angle), np.sin(angle)
        moved = (scale * base) @ turn.T
        cells = np.floor(np.round(moved / size, 9)).astype(int)
        counts = np.unique(cells, axis=0, return_counts=True)[1]
        seen = []
        for _ in range(counts.max()):
            index, made = found.pop(0)
            place = np.searchsorted(rows, index) if np.all(np.diff(rows) > 0) else [list(rows).index(n) for n in index]
            own = cells[place]
            assert len(np.unique(own, axis=0)) == len(own) == len(counts)
            np.testing.assert_array_equal(made["grid_coord"][0].numpy(), own - cells.min(axis=0))
            points = moved[place]
            if center_voxels:
                points = placed(points, up=up, box_center="half_ground")
            values = made["points"][0].numpy()
            np.testing.assert_allclose(values[:, :3], points, atol=1e-6)
            np.testing.assert_allclose(values[:, 3:6], given.colors[index], atol=1e-6)
            np.testing.assert_allclose(values[:, 6:], given.normals[index] @ turn.T, atol=1e-6)
            assert made["points"].dtype.is_floating_point and len(made["points"]) == 1
            seen += index.tolist()
        assert set(seen) == set(rows.tolist())
    assert not found


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"box_center": "middle"}, "box_center='middle'; expected one of 'ground', 'half_ground', 'across', None"),
        ({"small_clouds": "masked"}, "small_clouds"),
        ({"color_range": "bytes"}, "color_range"),
        ({"intensity_range": "unit"}, "intensity_range"),
        ({"model_axes": ["x", "y"]}, "model_axes"),
        ({"model_axes": ["x", "-x", "z"]}, "model_axes"),
        ({"model_axes": ["x", "y", "+z"]}, "model_axes"),
        ({"model_axes": ["x", "y", "z"], "center_voxels": True}, "model_axes"),
        ({"model_axes": ["x", "y", "z"], "views": [[1, 0]]}, "model_axes"),
        ({"scale": "box"}, "scale"),
    ],
)
def test_settings_that_would_mean_something_else_are_refused(settings, named):
    with raises(ValueError, naming=named):
        PointTransformerV3Processor(**settings)
