"""Nearest neighbors: every method against the plain loop, ties included."""

import importlib
import re

import pytest
import torch

from hf_any3d.modeling.point_ops import knn
from tests.modeling.point_ops.loops import neighbors_plainly

# The attribute of the package is the operation itself.
MODULE = importlib.import_module("hf_any3d.modeling.kernels.knn")


@pytest.mark.parametrize("method", ["exact", "kdtree", "auto"])
@pytest.mark.parametrize(("count", "k"), [(1, 1), (2, 2), (7, 3), (50, 50), (120, 6)])
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


@pytest.mark.parametrize("method", ["exact", "matmul", "kdtree"])
@pytest.mark.parametrize("block", [1, 150, 1000])
def test_results_do_not_depend_on_the_block_size(monkeypatch, method, block):
    clouds = torch.randint(-2, 3, (3, 100, 3)).float()
    queries = clouds[:, :37] + 0.25
    whole = knn(queries, clouds, 5, method=method)
    monkeypatch.setattr(MODULE, "_BLOCK_CPU", block)
    assert torch.equal(knn(queries, clouds, 5, method=method), whole)


@pytest.mark.parametrize("method", ["exact", "matmul", "kdtree"])
def test_autocast_does_not_change_the_neighbors(method):
    cloud = torch.rand(1, 400, 3, generator=torch.Generator().manual_seed(0))
    expected = knn(cloud, cloud, 16, method=method)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(knn(cloud, cloud, 16, method=method), expected)


def test_auto_uses_the_tree_only_for_many_points_per_neighbor(monkeypatch):
    taken = []
    monkeypatch.setattr(MODULE, "_search_tree", _noting(taken, "kdtree", MODULE._search_tree))
    monkeypatch.setattr(MODULE, "_search_exactly", _noting(taken, "exact", MODULE._search_exactly))
    cloud = torch.rand(1, 64, 3)
    knn(cloud, cloud, 4)
    knn(cloud, cloud, 5)
    assert taken == ["kdtree", "exact"]


def test_a_point_is_its_own_first_neighbor():
    cloud = torch.randn(1, 300, 3)
    assert knn(cloud, cloud, 2)[0, :, 0].tolist() == list(range(300))


def test_further_channels_do_not_count_and_half_precision_is_read():
    cloud = torch.randn(1, 60, 6).half()
    assert torch.equal(knn(cloud, cloud, 5), knn(cloud[..., :3].float(), cloud[..., :3].float(), 5))


def test_no_gradient_is_recorded():
    cloud = torch.randn(1, 20, 3, requires_grad=True)
    index, distance = knn(cloud, cloud, 3, method="exact", return_distances=True)
    assert not index.requires_grad and not distance.requires_grad


@pytest.mark.parametrize("method", ["exact", "matmul", "kdtree"])
def test_no_query_gives_no_neighbor(method):
    assert knn(torch.zeros(2, 0, 3), torch.zeros(2, 9, 3), 4, method=method).shape == (2, 0, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(5, 3)}, r"query: shape \(5, 3\); expected \(batch, points, channels\)"),
        ({"points": torch.zeros(1, 5, 2)}, r"points: shape \(1, 5, 2\)"),
        ({"points": torch.zeros(1, 5, 3, dtype=torch.int32)}, "points: dtype torch.int32"),
        ({"query": torch.zeros(2, 5, 3)}, "query: batch of 2; expected 1"),
        ({"query": torch.full((1, 5, 3), float("nan"))}, "query: found NaN"),
        ({"points": torch.full((1, 5, 3), float("inf"))}, "points: found NaN or infinite"),
        ({"k": 6}, "k: 6; expected 1 to 5"),
        ({"k": 0}, "k: 0; expected 1 to 5"),
        ({"method": "ball"}, "method: 'ball'; expected one of"),
        ({"query": torch.zeros(1, 5, 3, device="meta")}, "device"),
    ],
)
def test_errors_name_the_argument_and_the_value(change, message):
    arguments = {"query": torch.zeros(1, 5, 3), "points": torch.zeros(1, 5, 3), "k": 2, **change}
    with pytest.raises(ValueError, match=message):
        knn(**arguments)


def _noting(taken, name, search):
    def noted(*arguments):
        taken.append(name)
        return search(*arguments)

    return noted


def test_trees_are_chosen_by_the_number_of_points_per_neighbor():
    query, points = torch.zeros(1, 2, 3), torch.zeros(1, 64, 3)
    assert MODULE.has_many_points(query, points, 4, "auto") and not MODULE.has_many_points(query, points, 5, "auto")
    assert not MODULE.has_many_points(query[0], points[0], 1, "auto")  # is refused later
    for k in (1, 64):
        found = {method: MODULE.has_many_points(query, points, k, method) for method in ("exact", "matmul", "kdtree")}
        assert found == {"exact": False, "matmul": False, "kdtree": True}


def test_blocks_hold_as_many_distances_as_allowed():
    def blocks(*sizes):
        return [(c.start, c.stop, r.start, r.stop) for c, r in MODULE._blocks(*sizes)]

    assert blocks(2, 5, 10, 20) == [(c, c + 1, r, r + 2) for c in (0, 1) for r in (0, 2, 4)]
    assert blocks(3, 4, 5, 40) == [(0, 2, 0, 4), (2, 4, 0, 4)]
    assert blocks(2, 1, 5, 1) == [(0, 1, 0, 1), (1, 2, 0, 1)]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"query": torch.zeros(2, 5, 3)}, "query: batch of 2; expected 1, the batch of points"),
        ({"query": torch.zeros(1, 5, 3, device="meta")}, "query: on device meta; expected cpu, the device of points"),
        ({"k": 6}, "k: 6; expected 1 to 5, the number of points"),
        ({"method": "ball"}, "method: 'ball'; expected one of ('auto', 'exact', 'matmul', 'kdtree')"),
        ({"points": torch.full((1, 5, 3), 2e12)}, "points: found 2e+12 in cloud 0; expected numbers of at most 1e+12"),
    ],
)
def test_messages_say_what_is_expected(change, message):
    arguments = {"query": torch.zeros(1, 5, 3), "points": torch.zeros(1, 5, 3), "k": 2, **change}
    with pytest.raises(ValueError, match=re.escape(message)):
        knn(**arguments)
