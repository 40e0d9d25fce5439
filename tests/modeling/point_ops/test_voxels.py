"""Sampling, pooling, curves, patches and convolution on a grid, against stored runs and dense operations."""

import pytest
import torch

from hf_any3d.modeling.point_ops import (
    CURVES,
    grid_pool,
    neighbor_table,
    patch_table,
    serialize,
    submanifold_convolution,
)
from tests.errors import raises
from tests.modeling.ptv3_case import Ptv3Case

NAMES = ("sonata", "concerto", "utonia", "options")


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return Ptv3Case(f"ptv3_{request.param}")


def stages(case):
    """Yield the number, grid coordinates, clouds and counts of each stage."""
    for number, spec in enumerate(case.manifest["stages"].values()):
        counts = torch.tensor(spec["points"])
        cloud = torch.arange(len(counts)).repeat_interleave(counts)
        yield number, case.expected[f"s{number}.grid_coord"].long(), cloud, spec


def test_orders_patches_pools_and_neighbors_are_the_stored_ones(case):
    arguments, expected = case.arguments, case.expected
    before = None
    for number, grid, cloud, spec in stages(case):
        found = serialize(grid, cloud, 2, arguments["order"], depth_of_batch=True)
        assert torch.equal(found.code, expected[f"s{number}.code"].long())
        assert torch.equal(found.order, expected[f"s{number}.order"].long())
        assert torch.equal(found.inverse.gather(1, found.order), torch.arange(len(grid)).expand_as(found.order))
        patch = arguments["enc_patch_size"][number]
        sizes = {"plain.": min(patch, *spec["points"])}
        if "flash" in case.manifest["runs"]:
            sizes[""] = patch
        for prefix, size in sizes.items():
            pad, unpad, starts = patch_table(spec["points"], size)
            assert torch.equal(pad, expected[f"{prefix}s{number}.pad"].long())
            assert torch.equal(unpad, expected[f"{prefix}s{number}.unpad"].long())
            if not prefix:
                assert torch.equal(starts, expected[f"s{number}.cu_seqlens"].int())
        table = neighbor_table(grid, cloud, 2)
        pairs = [len(grid) if position == 13 else len(table.at(position)[0]) for position in range(27)]
        assert pairs == expected[f"s{number}.pairs"].tolist()
        if before is not None:
            pooled = grid_pool(*before, 2, arguments["stride"][number - 1])
            assert torch.equal(pooled.grid_coord, grid) and torch.equal(pooled.cloud, cloud)
            assert torch.equal(pooled.inverse, expected[f"s{number}.pooling_inverse"].long())
        before = grid, cloud


def random_cells(count: int = 60, extent: int = 6, clouds: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    """Different cells of some clouds, in no order within a cloud."""
    generator = torch.Generator().manual_seed(0)
    cells = [torch.randperm(extent**3, generator=generator)[:count] for _ in range(clouds)]
    number = torch.cat(cells)
    grid = torch.stack([number // extent**2, number // extent % extent, number % extent], dim=1)
    return grid, torch.arange(clouds).repeat_interleave(count)


def test_convolution_in_half_precision_sums_in_float32_and_follows_autocast():
    grid, cloud = random_cells()
    table = neighbor_table(grid, cloud, 2)
    torch.manual_seed(1)
    values, weight = torch.randn(120, 16), torch.randn(16, 3, 3, 3, 16) / 8
    exact = submanifold_convolution(values, weight, None, table)
    half = submanifold_convolution(values.bfloat16(), weight.bfloat16(), None, table)
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.02 * exact.abs().max()
    leaf = weight.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        cast = submanifold_convolution(values, leaf, None, table)
    assert torch.equal(cast, half)
    cast.float().sum().backward()
    assert leaf.grad.dtype == torch.float32


def test_small_terms_are_not_lost_in_half_precision_sums():
    # In bfloat16, 256 + 1 is 256: summed there, one after the other, the 26 neighbors of a full block would not count.
    grid = torch.cartesian_prod(*[torch.arange(3)] * 3)
    table = neighbor_table(grid, torch.zeros(27, dtype=torch.long), 1)
    center = int((grid == 1).all(dim=1).nonzero())
    weight = torch.ones(1, 3, 3, 3, 1, dtype=torch.bfloat16)
    weight[:, 1, 1, 1] = 256
    values = torch.ones(27, 1, dtype=torch.bfloat16, requires_grad=True)
    out = submanifold_convolution(values, weight, None, table)
    out.backward(torch.ones_like(out))
    assert out.dtype == values.grad.dtype == torch.bfloat16
    assert out[center].item() == values.grad[center].item() == 256 + 26


def test_orders_of_a_cloud_do_not_depend_on_the_others_unless_asked():
    grid, cloud = random_cells(clouds=1)
    far = torch.tensor([[20, 3, 9]])
    together = torch.cat([grid, far]), torch.cat([cloud, torch.ones(1, dtype=torch.long)])
    alone = serialize(grid, cloud, 1, CURVES).order
    assert torch.equal(serialize(*together, 2, CURVES).order[:, :60], alone)
    faithful = serialize(*together, 2, CURVES, depth_of_batch=True).order[:, :60]
    assert (faithful == alone).all(dim=1).tolist() == [True, True, False, False]


def test_coordinates_out_of_range_are_refused():
    cloud = torch.zeros(1, dtype=torch.long)
    for bad in (-1, 2**16):
        with pytest.raises(ValueError, match=f"found {bad}; expected 0 to 65534 along each axis"):
            serialize(torch.tensor([[0, bad, 0] if bad > 0 else [bad, 0, 0]]), cloud, 1, CURVES)
    with raises(ValueError, naming="curve='peano'; expected one of 'z'"):
        serialize(torch.zeros(1, 3, dtype=torch.long), cloud, 1, ["peano"])
