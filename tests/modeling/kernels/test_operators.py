"""Operators that compilers call without tracing them: the shapes that these infer are those of the results."""

import importlib
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels.knn import knn_traced
from tests.modeling.kernels.test_table import randn


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
