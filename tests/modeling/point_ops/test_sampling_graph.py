"""The loop of exported graphs samples the same points as `farthest_point_sample`."""

import numpy as np
import pytest
import torch

from hf_any3d.modeling.kernels.farthest_point_sample import _cuda_order, farthest_point_sample_traced, sample_in_graph
from hf_any3d.modeling.point_ops import farthest_point_sample


def clouds(batch: int, count: int, steps: int | None) -> torch.Tensor:
    points = torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(count)) * 2 - 1
    # Points of a coarse grid are often equally far or equal.
    return points if steps is None else (points * steps).round() / steps


def cuda_priority(count: int) -> np.ndarray:
    """Return the order in which the CUDA kernel prefers equally far points of a cloud.

    Thread t of T (the largest power of two up to `count`, at most 512) scans points t, t + T, … and keeps its first
    maximum. The reduction then compares threads a half, a quarter, … of a block apart and keeps the lower one on a
    tie. Its last step compares odd with even threads, so the lowest bit of t decides first: the winner has the
    smallest bit-reversed t, then the smallest index.
    """
    bits = min(count, 512).bit_length() - 1
    index = np.arange(count)
    thread = index % (1 << bits)
    reversed_thread = np.zeros_like(index)
    for bit in range(bits):
        reversed_thread |= ((thread >> bit) & 1) << (bits - 1 - bit)
    return np.lexsort((index, reversed_thread))


@pytest.mark.parametrize("tie_rule", ["first", "cuda"])
@pytest.mark.parametrize("steps", [None, 2], ids=["scattered", "grid"])
@pytest.mark.parametrize(("batch", "count", "samples"), [(1, 33, 33), (3, 100, 1), (4, 700, 64)])
def test_indices_are_those_of_the_plain_function(tie_rule, steps, batch, count, samples):
    points = clouds(batch, count, steps)
    start = torch.arange(batch) * 3
    expected = farthest_point_sample(points, samples, start_index=start, tie_rule=tie_rule)
    assert torch.equal(sample_in_graph(points, samples, start, None, tie_rule), expected)


def test_points_near_the_origin_are_no_candidates():
    points = clouds(2, 200, None)
    expected = farthest_point_sample(points, 50, min_squared_norm=0.5)
    found = sample_in_graph(points, 50, torch.zeros(2, dtype=torch.long), 0.5, "first")
    assert torch.equal(found, expected)
    assert (points.gather(1, found[:, 1:, None].expand(-1, -1, 3)).square().sum(-1) > 0.5).all()


@pytest.mark.parametrize("count", [1, 2, 3, 31, 32, 500, 511, 512, 513, 2000])
def test_priority_is_that_of_the_cuda_kernel(count):
    assert _cuda_order(count, torch.device("cpu")).tolist() == cuda_priority(count).tolist()


@pytest.mark.parametrize("exporting", [False, True])
@pytest.mark.parametrize("limit", [None, 0.3])
def test_traced_samples_are_those_of_the_plain_function(exporting, limit, monkeypatch):
    points = torch.cat([clouds(2, 60, 3), clouds(2, 60, None)], dim=2).half().requires_grad_()
    expected = [
        farthest_point_sample(points, 9, start_index=s, min_squared_norm=limit) for s in (4, torch.tensor([2, 7]))
    ]
    monkeypatch.setattr(torch.compiler, "_is_exporting_flag", exporting)
    for start, wanted in zip((4, torch.tensor([2, 7])), expected, strict=True):
        found = farthest_point_sample_traced(points, 9, start, limit, "first")
        assert torch.equal(found, wanted) and not found.requires_grad
