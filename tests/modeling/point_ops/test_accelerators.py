"""Operations give the same results on accelerators, where they take other ways; the values here are on the CPU."""

import importlib

import pytest
import torch

from hf_any3d.modeling.point_ops import ball_query, farthest_point_sample, grouping, knn
from tests.errors import raises
from tests.modeling.accelerator import on_accelerator

COORDINATES = importlib.import_module("hf_any3d.modeling.kernels.coordinates")
KNN = importlib.import_module("hf_any3d.modeling.kernels.knn")


@pytest.fixture(autouse=True)
def checks(monkeypatch):
    """Checks that an accelerator makes later."""
    made = []
    monkeypatch.setattr(COORDINATES, "refuse_later", lambda failed, message: made.append((bool(failed), message)))
    return made


def cloud(batch: int, count: int, seed: int = 0, steps: int = 4) -> torch.Tensor:
    """Points on a coarse grid, many of them equally far from each other."""
    points = torch.rand(batch, count, 3, generator=torch.Generator().manual_seed(seed))
    return (points * steps).round() / steps


@pytest.mark.parametrize("tie_rule", ["first", "cuda"])
@pytest.mark.parametrize("count", [5, 70, 600])
def test_samples(tie_rule, count, checks):
    points, start = cloud(2, count), torch.tensor([3, 1])
    settings = {"min_squared_norm": 0.1, "tie_rule": tie_rule}
    expected = farthest_point_sample(points, 5, start_index=start, **settings)
    found = farthest_point_sample(on_accelerator(points), 5, start_index=on_accelerator(start), **settings)
    assert found.tolist() == expected.tolist()
    message = "points: found NaN, infinite numbers or numbers above 1e+12 in an earlier batch"
    assert checks == [(False, message)]


@pytest.mark.parametrize("method", ["auto", "exact", "matmul"])
def test_neighbors(method, monkeypatch):
    monkeypatch.setattr(KNN, "_BLOCK", 150)
    steps = 4 if method != "matmul" else 10**6  # products hide which points are equally far
    points, query = cloud(3, 80, steps=steps), cloud(3, 7, seed=1, steps=steps)
    expected = knn(query, points, 4, method="exact", return_distances=True)
    found = knn(on_accelerator(query), on_accelerator(points), 4, method=method, return_distances=True)
    assert found[0].tolist() == expected[0].tolist()
    torch.testing.assert_close(found[1].as_subclass(torch.Tensor), expected[1])


def test_trees_are_for_the_cpu_only():
    points = on_accelerator(cloud(1, 80))
    with raises(ValueError, naming="'kdtree' on device"):
        knn(points, points, 4, method="kdtree")


@pytest.mark.parametrize("way", ["accelerator", "compilers", "exporters"])
@pytest.mark.parametrize("pairs", [2**22, 100])
def test_balls(way, pairs, monkeypatch):
    points = cloud(2, 60)
    query = torch.cat([points[:, :8], points[:, -1:], torch.full((2, 1, 3), 9.0)], dim=1)
    expected = ball_query(query, points, 0.3, 4, return_counts=True)
    assert expected[1].min() == 0 and (expected[1] > 4).any() and ((expected[1] > 0) & (expected[1] < 4)).any()
    monkeypatch.setattr(grouping, "_BALL_PAIRS", pairs)
    if way == "accelerator":
        query, points = on_accelerator(query), on_accelerator(points)
    else:
        monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
        monkeypatch.setattr(torch.compiler, "_is_exporting_flag", way == "exporters")
    found = ball_query(query, points, 0.3, 4, return_counts=True)
    assert [one.tolist() for one in found] == [one.tolist() for one in expected]
    assert ball_query(query, points, 0.3, 4).tolist() == expected[0].tolist()
