"""Triton implementations, run by Triton's interpreter on the CPU, against their plain twins."""

import os

import pytest
import torch

from hf_any3d.modeling import kernels
from hf_any3d.modeling.kernels import dispatch
from hf_any3d.modeling.kernels.submanifold_convolution import NeighborTable
from hf_any3d.modeling.point_encoders.point_transformer import PatchEncoder
from hf_any3d.modeling.point_ops import neighbor_table, submanifold_convolution

pytest.importorskip("triton", reason="needs triton, which comes with torch for CUDA")
if os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1, set before triton is imported", allow_module_level=True)


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def table_of(voxels: int, side: int = 5) -> tuple[NeighborTable, torch.Tensor, torch.Tensor]:
    """Some cells of two cubes, in any order; the second cube has only one."""
    generator = torch.Generator().manual_seed(1)
    number = torch.cat([torch.randperm(side**3, generator=generator)[: voxels - 1], torch.tensor([7])])
    grid = torch.stack([number // side**2, number // side % side, number % side], dim=1)
    cloud = (torch.arange(voxels) == voxels - 1).long()
    return neighbor_table(grid, cloud, 2), grid, cloud


def results(setting: str, use_kernels, call, *tensors: torch.Tensor | None) -> list[torch.Tensor]:
    """The result of a call and the gradients of the tensors, with one of the settings."""
    use_kernels(setting)
    leaves = [None if tensor is None else tensor.clone().requires_grad_() for tensor in tensors]
    out = call(*leaves)
    weight = torch.arange(out.numel()).sin().view_as(out)
    gradients = torch.autograd.grad((out.float() * weight).sum(), [leaf for leaf in leaves if leaf is not None])
    return [out.detach(), *gradients]


@pytest.mark.parametrize(
    "voxels, sizes, dtype",
    [
        (70, (20, 18), torch.float32),
        (33, (3, 5), torch.float32),
        (70, (17, 6), torch.bfloat16),
        (20, (3, 66), torch.float32),
    ],
    ids=["two blocks", "fewer channels than a block", "bfloat16", "more channels than a block"],
)
def test_convolution_equals_its_twin(voxels, sizes, dtype, use_kernels):
    table, _, _ = table_of(voxels)
    values, weight = randn(voxels, sizes[0]).to(dtype), (randn(sizes[1], 3, 3, 3, sizes[0]) / 8).to(dtype)
    bias = randn(sizes[1]).to(dtype) if voxels == 70 else None

    def call(*tensors):
        return kernels.submanifold_convolution(*tensors, table)

    assert kernels.submanifold_convolution.uses_triton(values, weight, bias, table) is False
    expected = results("torch", use_kernels, call, values, weight, bias)
    found = results("triton", use_kernels, call, values, weight, bias)
    assert kernels.submanifold_convolution.uses_triton(values, weight, bias, table)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * float(other.abs().max()))


def test_convolution_follows_autocast_and_is_one_operator_for_compilers(use_kernels):
    table, _, _ = table_of(20)
    values, weight = randn(20, 16), randn(4, 3, 3, 3, 16) / 8

    def call(values, weight):
        with torch.autocast("cpu", torch.bfloat16):
            return submanifold_convolution(values, weight, None, table)

    found = results("triton", use_kernels, call, values, weight)
    assert found[0].dtype == torch.bfloat16 and found[1].dtype == found[2].dtype == torch.float32
    compiled = results("triton", use_kernels, torch.compile(call, backend="aot_eager", fullgraph=True), values, weight)
    for one, other in zip(found, compiled, strict=True):
        assert torch.equal(one, other)


def test_convolution_in_double_precision_is_left_to_torch(use_kernels):
    use_kernels("triton")
    table, _, _ = table_of(20)
    arguments = randn(20, 3).double(), randn(4, 3, 3, 3, 3).double(), None, table
    assert not kernels.submanifold_convolution.uses_triton(*arguments)
    assert kernels.submanifold_convolution(*arguments).dtype == torch.double


def test_list_and_table_of_neighbors_are_made_from_each_other(monkeypatch):
    table, grid, cloud = table_of(60)
    dense = table.dense(60)
    again = NeighborTable(table=dense)
    for (voxels, neighbors), (own, other) in zip(table.pairs, again.pairs, strict=True):
        assert set(zip(voxels.tolist(), neighbors.tolist(), strict=True)) == set(
            zip(own.tolist(), other.tolist(), strict=True)
        )
    for shift, row in zip(torch.cartesian_prod(*[torch.arange(-1, 2)] * 3), dense, strict=True):
        wanted = [((grid == grid[v] + shift).all(dim=1) & (cloud == cloud[v])).nonzero().flatten() for v in range(60)]
        assert row.tolist() == [int(found[0]) if len(found) else -1 for found in wanted]


def test_a_gpu_runs_triton_only_where_it_was_asked_for(monkeypatch, use_kernels):
    class OnGpu(torch.Tensor):
        device = torch.device("cuda")

    monkeypatch.setattr(dispatch, "_INTERPRETED", False)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    points = torch.zeros(1, 8, 3).as_subclass(OnGpu)
    for setting, expected in (("auto", False), ("torch", False), ("triton", True)):
        use_kernels(setting)
        assert kernels.knn.uses_triton(points, points, 3, "auto") is expected


def test_setting_without_triton_is_refused(monkeypatch):
    monkeypatch.setattr(dispatch, "_HAS_TRITON", False)
    with pytest.raises(ImportError, match="triton is not installed"):
        kernels.set_kernels("triton")


def grid_points(clouds: int, count: int) -> torch.Tensor:
    """Points on a coarse grid, many of them equally far from each other."""
    generator = torch.Generator().manual_seed(3)
    return torch.randint(-2, 3, (clouds, count, 3), generator=generator) / 4


@pytest.mark.parametrize(
    "made, rule", [(grid_points, "first"), (grid_points, "cuda"), (lambda *shape: randn(*shape, 3), "first")]
)
@pytest.mark.parametrize("is_whole", [True, False], ids=["whole", "in parts"])
def test_samples_are_those_of_the_plain_loop(made, rule, is_whole, use_kernels, monkeypatch):
    from hf_any3d.modeling.kernels.triton import farthest_point_sample as module

    if not is_whole:
        monkeypatch.setattr(module, "_WHOLE", 16)
        monkeypatch.setattr(module, "_PART", 32)
    arguments = made(2, 70), 9, torch.tensor([5, 69]), 0.1, rule
    use_kernels("triton")
    assert kernels.farthest_point_sample.uses_triton(*arguments)
    found = kernels.farthest_point_sample(*arguments)
    assert torch.equal(found, kernels.farthest_point_sample.plain(*arguments))


def test_a_cloud_without_candidates_gives_its_first_point(use_kernels):
    use_kernels("triton")
    arguments = torch.zeros(1, 5, 3), 3, 4, 0.1, "first"
    assert kernels.farthest_point_sample(*arguments).tolist() == [[4, 0, 0]]


@pytest.mark.parametrize("made, k", [(grid_points, 6), (lambda *shape: randn(*shape, 3), 1)], ids=["ties", "random"])
def test_neighbors_are_those_of_the_plain_search(made, k, use_kernels):
    points = made(2, 140)
    query = torch.cat([points[:, 136:], 2 * points[:, :1]], dim=1)
    use_kernels("triton")
    assert kernels.knn.uses_triton(query, points, k, "auto")
    index, distance = kernels.knn(query, points, k, "auto")
    expected, squares = kernels.knn.plain(query, points, k, "exact")
    assert torch.equal(index, expected) and torch.equal(distance, squares)


def test_neighbors_beyond_those_that_fit_are_searched_by_torch(use_kernels):
    use_kernels("triton")
    points = randn(1, 70, 3)
    assert not kernels.knn.uses_triton(points, points, 65, "auto")
    assert not kernels.knn.uses_triton(points, points, 5, "matmul")
    with pytest.raises(ValueError, match="k: 71; expected 1 to 70"):
        kernels.knn(points, points, 71, "auto")


@pytest.mark.parametrize(
    "k, width, widths, dtype",
    [(20, 18, (40, 24, 70), None), (7, 18, (40, 24, 70), torch.bfloat16), (3, 130, (8, 66, 5), None)],
    ids=["float32", "autocast", "more channels than a program has"],
)
def test_mini_pointnet_equals_its_twin_in_evaluation(k, width, widths, dtype, use_kernels):
    torch.manual_seed(0)
    layers = PatchEncoder(6, width, widths)
    for norm in (layers.lift_norm, layers.join_norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2)
    layers.eval().requires_grad_(False)
    patches = randn(1, 5, k, 6)
    use_kernels("torch")
    expected = kernels.pooled_patches(patches, layers)
    use_kernels("triton")
    assert kernels.pooled_patches.uses_triton(patches, layers)
    with torch.autocast("cpu", dtype or torch.bfloat16, enabled=dtype is not None):
        found = kernels.pooled_patches(patches, layers)
    assert found.dtype == (dtype or torch.float32)
    tolerance = 1e-5 if dtype is None else 2e-2
    torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance * float(expected.abs().max()))
    assert not kernels.pooled_patches.uses_triton(patches, layers.requires_grad_(True))
    assert not kernels.pooled_patches.uses_triton(patches, layers.requires_grad_(False).train())
