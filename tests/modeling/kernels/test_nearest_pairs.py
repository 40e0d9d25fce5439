"""Nearest points of two clouds: every search against the full matrix of distances."""

import importlib

import pytest
import torch

from hf_any3d.modeling.kernels.chamfer import nearest_pairs

# The attribute of the package is the operation itself.
MODULE = importlib.import_module("hf_any3d.modeling.kernels.chamfer")

SHAPES = [(1, 1, 1), (300, 32, 32), (7, 8, 128), (2, 129, 130), (2, 40, 700), (1, 900, 800)]


def plainly(x, y, x_mask=None, y_mask=None):
    distance = (x[:, :, None] - y[:, None]).square()
    distance = distance[..., 0] + distance[..., 1] + distance[..., 2]
    if x_mask is not None:
        distance = distance.masked_fill(~x_mask[:, :, None], torch.inf)
    if y_mask is not None:
        distance = distance.masked_fill(~y_mask[:, None], torch.inf)
    return distance.argmin(2), distance.argmin(1)


def make(batch, rows, columns, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(batch, rows, 3, generator=generator)
    y = torch.randn(batch, columns, 3, generator=generator)
    x_mask = torch.rand(batch, rows, generator=generator) < 0.7
    y_mask = torch.rand(batch, columns, generator=generator) < 0.7
    x_mask[:, 0] = y_mask[:, 0] = True
    return x, y, x_mask, y_mask


@pytest.mark.parametrize("tree_from", [0, 10**9], ids=["trees", "blocks"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES)
def test_neighbors_are_those_of_the_full_matrix(monkeypatch, shape, masked, tree_from):
    monkeypatch.setattr(MODULE, "_TREE_FROM", tree_from)
    x, y, x_mask, y_mask = make(*shape)
    masks = (x_mask, y_mask) if masked else (None, None)
    found, expected = nearest_pairs(x, y, *masks), plainly(x, y, *masks)
    for index, plain, mask in zip(found, expected, masks, strict=True):
        kept = ... if mask is None else mask
        assert index.dtype == torch.long
        assert torch.equal(index[kept], plain[kept])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("max_pairs", [1, 7, 100, 5000, None])
def test_the_first_of_equally_near_points_is_found_for_any_block_size(dtype, max_pairs):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (3, 20, 3), generator=generator).to(dtype)
    y = torch.randint(-2, 3, (3, 35, 3), generator=generator).to(dtype)
    for found, expected in zip(nearest_pairs(x, y, max_pairs=max_pairs), plainly(x, y), strict=True):
        assert torch.equal(found, expected)


def test_distances_that_differ_in_their_last_bit_are_distinguished():
    x = torch.zeros(1, 1, 3)
    y = torch.tensor([1.0, 0, 0]).repeat(1, 100, 1)
    y[0, 70, 0] = torch.nextafter(torch.tensor(1.0), torch.tensor(0.0))
    distance = (y - x).square().sum(-1)
    assert distance[0].unique().numel() == 2 and distance[0, 70] < distance[0, 0]
    assert nearest_pairs(x, y)[0].item() == 70


def test_trees_find_one_of_the_equally_near_points(monkeypatch):
    monkeypatch.setattr(MODULE, "_TREE_FROM", 0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(-2, 3, (2, 60, 3), generator=generator).float()
    y = torch.randint(-2, 3, (2, 90, 3), generator=generator).float()
    for points, others, found, first in zip((x, y), (y, x), nearest_pairs(x, y), plainly(x, y), strict=True):
        distances = [
            (points - others.gather(1, index[..., None].expand(-1, -1, 3))).square().sum(-1)
            for index in (found, first)
        ]
        assert torch.equal(*distances)


@pytest.mark.parametrize("count", [20, 2000])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_leave_indices_in_range(count, value):
    x, y, _, _ = make(1, count, count)
    x[0, 3], y[0, 5] = value, value
    for index in nearest_pairs(x, y):
        assert index.min() >= 0 and index.max() < count
