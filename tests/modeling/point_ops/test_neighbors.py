"""Nearest neighbors: every method against the plain loop, ties included."""

import pytest
import torch

from hf_any3d.modeling.point_ops import knn
from tests.errors import raises
from tests.modeling.point_ops.loops import neighbors_plainly


@pytest.mark.slow
@pytest.mark.parametrize("method", ["exact", "kdtree", "auto"])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 2), (7, 3), (50, 50), (121, 6)])
def test_neighbors_and_their_order_are_those_of_the_plain_loop(make_clouds, method, count, k):
    clouds, queries = make_clouds(2, count, seed=1), make_clouds(2, 30, seed=2)
    index = knn(torch.from_numpy(queries), torch.from_numpy(clouds), k, method=method)
    assert index.dtype == torch.long
    assert index.tolist() == [neighbors_plainly(*pair, k) for pair in zip(queries, clouds, strict=True)]


def test_matmul_finds_the_same_neighbors_up_to_rounding():
    generator = torch.Generator().manual_seed(0)
    clouds = torch.rand(3, 500, 3, generator=generator)
    exact, approximate = (knn(clouds, clouds, 16, method=method) for method in ("exact", "matmul"))
    assert (exact == approximate).float().mean() > 0.995


@pytest.mark.parametrize("method", ["exact", "matmul", "kdtree"])
def test_distances_belong_to_the_indices_and_grow(method):
    clouds, queries = torch.randn(2, 200, 3), torch.randn(2, 40, 3)
    index, distance = knn(queries, clouds, 9, method=method, return_distances=True)
    neighbors_xyz = torch.stack([cloud[rows] for cloud, rows in zip(clouds, index, strict=True)])
    expected = (neighbors_xyz - queries[:, :, None]).square().sum(-1)
    torch.testing.assert_close(distance, expected, atol=1e-5, rtol=1e-5)
    assert (distance[..., 1:] >= distance[..., :-1]).all()


def test_further_channels_do_not_count_and_half_precision_is_read():
    cloud = torch.randn(1, 60, 6).half()
    assert torch.equal(knn(cloud, cloud, 5), knn(cloud[..., :3].float(), cloud[..., :3].float(), 5))


@pytest.mark.parametrize("method", ["exact", "matmul", "kdtree"])
def test_no_query_gives_no_neighbor(method):
    assert knn(torch.zeros(2, 0, 3), torch.zeros(2, 9, 3), 4, method=method).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("change", "culprit"),
    [
        ({"query": torch.zeros(5, 3)}, "query: shape (5, 3)"),
        ({"points": torch.zeros(1, 5, 2)}, "points: shape (1, 5, 2)"),
        ({"query": torch.zeros(2, 5, 3)}, "query: batch of 2"),
        ({"query": torch.full((1, 5, 3), float("nan"))}, "query: found NaN"),
        ({"points": torch.full((1, 5, 3), 2e12)}, "points: found 2e+12 in cloud 0"),
        ({"k": 6}, "k: 6"),
        ({"k": 0}, "k: 0"),
        ({"method": "ball"}, "method: 'ball'"),
    ],
)
def test_errors_name_the_argument_and_the_value(change, culprit):
    arguments = {"query": torch.zeros(1, 5, 3), "points": torch.zeros(1, 5, 3), "k": 2, **change}
    with raises(ValueError, naming=culprit):
        knn(**arguments)
