"""Scenes cut into blocks and merged again: no point is lost or counted twice."""

import numpy as np
import pytest

from hf_any3d.data.blocks import draw_crop, merge_blocks, split_into_blocks
from tests.errors import raises


@pytest.fixture
def scene():
    """A long room, denser at one end, y up."""
    generator = np.random.default_rng(0)
    x = 7 * generator.random(900) ** 2
    return np.stack([x, 2.5 * generator.random(900), 3 * generator.random(900)], axis=1).astype(np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("block_size", [None, 0.4, 1.5, 20.0])
@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
@pytest.mark.parametrize("num_points", [1, 64, 5000])
def test_blocks_cover_every_point(scene, block_size, overlap, num_points):
    index = split_into_blocks(scene, num_points, block_size, overlap)
    assert index.shape[1] == num_points and index.dtype == np.int64
    assert np.array_equal(np.unique(index), np.arange(len(scene)))


@pytest.mark.parametrize(("low", "size", "columns"), [(0.1, 0.3, 4), (0.1, 0.3, 7), (0.1, 0.6, 2), (0.1, 0.7, 4)])
def test_rounding_leaves_no_point_outside_the_last_block(low, size, columns):
    """A scene as long as a whole number of columns, whose last edge is a rounding error before its last point."""
    ends = np.zeros((2, 3))
    ends[:, 0] = low, low + size * columns
    ends[:, 2] = low
    assert np.array_equal(np.unique(split_into_blocks(ends, 4, size, 0.0)), [0, 1])


def test_blocks_are_columns_of_their_size(scene):
    index = split_into_blocks(scene, 64, 1.5)
    extents = np.ptp(scene[index], axis=1)  # (blocks, 3)
    assert extents[:, [0, 2]].max() <= 1.5 + 1e-5
    assert extents[:, 1].max() > 2.4, "columns are as high as the scene"
    upright = split_into_blocks(scene[:, [0, 2, 1]], 64, 1.5, up_axis="z")
    assert np.array_equal(upright, index)


def test_blocks_repeat_a_point_only_if_a_column_has_too_few(scene):
    index = split_into_blocks(scene, 64, 1.0, 0.0)
    distinct = [np.unique(block) for block in index]
    short = [number for number, own in enumerate(distinct) if len(own) < 64]
    assert 0 < len(short) < len(index)
    for number in short:
        others = np.concatenate([own for other, own in enumerate(distinct) if other != number])
        assert not np.isin(distinct[number], others).any(), "the column had more points"
        assert np.ptp(np.bincount(index[number])[distinct[number]]) <= 1, "repeats are spread evenly"


def test_no_point_is_lost_far_from_the_origin(scene):
    far = scene.astype(np.float64) + [4e5, 0, 5e6]
    for points in (far, far.astype(np.float32)):
        index = split_into_blocks(points, 64, 1.5, 0.0)
        assert np.array_equal(np.unique(index), np.arange(len(scene)))


@pytest.mark.parametrize("overlap", [0.0, 0.5, 0.8])
def test_a_point_far_away_adds_one_place_and_not_all_that_are_between(scene, overlap):
    far = scene[:1] + np.float32([3e7, 0, 5e7])
    alone = split_into_blocks(scene, 64, 1.5, overlap, generator=1)
    index = split_into_blocks(np.concatenate([scene, far]), 64, 1.5, overlap, generator=1)
    assert np.array_equal(np.unique(index), np.arange(len(scene) + 1))
    # The slack at the low end follows the largest coordinate, so that blocks may be cut at other places.
    assert len(index) < 4 * len(alone) + 40


def test_a_scene_of_another_unit_by_far_is_refused(scene):
    with raises(ValueError, naming="block_size"):
        split_into_blocks(scene * np.float32(1e20), 64, 1.5)


def test_merging_averages_over_all_occurrences_of_a_point(scene):
    index = split_into_blocks(scene, 64, 1.5)
    logits = np.random.default_rng(1).normal(size=(*index.shape, 3))
    merged = merge_blocks(index, logits, len(scene))
    assert merged.shape == (900, 3)
    for point in range(0, 900, 37):
        found = [logits[b, n] for b in range(len(index)) for n in range(64) if index[b, n] == point]
        np.testing.assert_allclose(merged[point], np.mean(found, axis=0))


def test_merging_refuses_points_in_no_block():
    with pytest.raises(ValueError, match="leaves out 2 of 5 points"):
        merge_blocks(np.array([[0, 1, 3]]), np.zeros((1, 3, 2)), 5)
    with raises(ValueError, naming="points beyond them"):
        merge_blocks(np.array([[0, 1, 2]]), np.zeros((1, 3, 2)), 2)
    with pytest.raises(ValueError):
        merge_blocks(np.array([[0, 1, 2]]), np.zeros((1, 2, 2)), 3)


def test_thin_columns_are_drawn_again():
    # Ten thousand points around the origin and as many that stand alone, far from each other.
    generator = np.random.default_rng(0)
    crowd = generator.uniform(-0.2, 0.2, (10_000, 3))
    alone = np.column_stack([10.0 + 2 * np.arange(10_000), np.zeros(10_000), np.zeros(10_000)])
    scene = np.concatenate([crowd, alone])
    crops = [draw_crop(scene, 64, 1.0, generator) for _ in range(40)]
    assert any((crop >= 10_000).any() for crop in crops)
    crops = [draw_crop(scene, 64, 1.0, generator, min_points=65) for _ in range(40)]
    assert all((crop < 10_000).all() for crop in crops)
    assert len(draw_crop(scene[10_000:], 64, 1.0, generator, min_points=65)) == 64
