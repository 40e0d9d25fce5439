"""Operators that compilers call without tracing them: the shapes that these infer are those of the results."""

import importlib
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels import neighborhoods
from hf_any3d.modeling.kernels.dispatch import IMPLEMENTATIONS
from hf_any3d.modeling.kernels.knn import knn_traced
from tests.modeling.kernels.test_table import CASES, randn, results_of, trained


def described(tree: Any) -> list[tuple]:
    return [(tuple(leaf.shape), leaf.dtype) for leaf in tree_leaves(tree)]


class Inferring(TorchDispatchMode):
    """Runs each operator of this package on "meta", too, and compares the results."""

    def __init__(self):
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "hf_any3d":
            name = func._schema.name.split("::")[1]
            on_meta = tree_map(lambda leaf: leaf.to("meta") if isinstance(leaf, torch.Tensor) else leaf, args)
            inferred = func(*on_meta)
            assert type(inferred) is type(result), name
            assert all(leaf.is_meta for leaf in tree_leaves(inferred)), name
            assert described(inferred) == described(result), name
            self.names.append(name)
        return result


@pytest.mark.parametrize("name", ["pooled_blocks", "pooled_patches"])
def test_shapes_of_fused_layers_and_of_their_gradients(name, monkeypatch):
    # Several parts of nine centers with six neighbors and twelve channels.
    for limit in ("_PART_CPU", "_PART"):
        monkeypatch.setattr(neighborhoods, limit, 4 * 6 * 12)
    with Inferring() as mode:
        results_of(name, kernels.TABLE[name].fused)
    assert mode.names == [name, f"{name}_backward"]


def test_shapes_of_indices():
    sample = importlib.import_module("hf_any3d.modeling.kernels.farthest_point_sample").farthest_point_sample_traced
    points, query = randn(2, 9, 4).detach(), randn(2, 5, 3).detach()
    with Inferring() as mode:
        index, distance = knn_traced(query, points, 4, "exact")
        samples = [sample(points, 6, start, 0.5, "cuda") for start in (2, torch.tensor([3, 1]))]
    assert mode.names == ["knn", "farthest_point_sample", "farthest_point_sample"]
    expected = kernels.knn.plain(query, points, 4, "exact")
    assert torch.equal(index, expected[0]) and torch.equal(distance, expected[1])
    for found, start in zip(samples, (2, torch.tensor([3, 1])), strict=True):
        assert torch.equal(found, kernels.farthest_point_sample.plain(points, 6, start, 0.5, "cuda"))


def test_functions_of_the_operators_are_found_by_their_names():
    layers = [f"{name}{ending}" for name in ("pooled_blocks", "pooled_patches") for ending in ("", "_backward")]
    assert set(IMPLEMENTATIONS) == {"farthest_point_sample", "knn", *layers}
    query, points = randn(2, 5, 3).detach(), randn(2, 9, 3).detach()
    found = IMPLEMENTATIONS["knn"](query, points, 4, "exact")
    assert all(map(torch.equal, found, torch.ops.hf_any3d.knn(query, points, 4, "exact")))


class Stopped(torch.autograd.Function):
    """Returns its input, but no gradient."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> None:
        return None


@pytest.mark.parametrize("name", ["pooled_blocks", "pooled_patches"])
def test_results_whose_gradient_is_stopped_pass_none_on(name):
    tensors, arguments = CASES[name]
    inputs = [*tensors, *trained(name)]
    result = Stopped.apply(kernels.TABLE[name].fused(*arguments(*tensors)))
    assert torch.autograd.grad(result.sum(), inputs, allow_unused=True) == (None,) * len(inputs)
