"""A stage's blocks and their maximum as one operation, against the plain modules one after the other."""

import copy

import pytest
import torch

from hf_any3d.modeling.any2point import neighborhoods
from hf_any3d.modeling.any2point.neighborhoods import Neighborhoods, offset_frequencies
from hf_any3d.modeling.any2point.point_tokenizer import ResidualBlock, train_as_one, trains_as_one
from hf_any3d.modeling.pooling_rows import largest as find_largest

WIDTH, HIDDEN, POINTS, CENTERS, K = 12, 5, 20, 9, 6


@pytest.fixture(params=[1, 2, 3], ids="{} blocks".format)
def case(request):
    """Blocks without a default weight and random neighbourhoods, in float64."""
    generator = torch.Generator().manual_seed(5)
    blocks = torch.nn.ModuleList(ResidualBlock(WIDTH, HIDDEN) for _ in range(request.param)).double()
    with torch.no_grad():
        for parameter in blocks.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    hoods = Neighborhoods(
        torch.randn(POINTS, WIDTH // 2, generator=generator, dtype=torch.float64).requires_grad_(),
        torch.randint(POINTS, (CENTERS, K), generator=generator),
        torch.randint(POINTS, (CENTERS,), generator=generator),
        torch.rand(CENTERS, K, 3, generator=generator, dtype=torch.float64) - 0.5,
        offset_frequencies(WIDTH, 1000.0, 100.0).double(),
    )
    return blocks, hoods


def plain(blocks, hoods):
    rows = hoods.all_rows()
    for block in blocks:
        rows = block(rows)
    return rows.view(CENTERS, K, WIDTH).amax(dim=1)


def run(how, blocks, hoods):
    """Outputs, gradients and buffers of one training step."""
    blocks = copy.deepcopy(blocks).train()
    pooled = how(blocks, hoods)
    weight = torch.arange(pooled.numel(), dtype=pooled.dtype).sin().view_as(pooled)
    inputs = [hoods.features, *blocks.parameters()]
    return pooled, torch.autograd.grad((pooled * weight).sum(), inputs), list(blocks.buffers())


@pytest.mark.parametrize("part", [1, 2 * K * WIDTH, 1 << 18], ids=["single", "two", "whole"])
def test_one_operation_equals_the_modules(case, part, monkeypatch):
    monkeypatch.setattr(neighborhoods, "_PART_CPU", part)
    expected, found = run(plain, *case), run(train_as_one, *case)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_waves_read_from_a_table_change_nothing(case):
    blocks, hoods = case
    # Slow waves: a table of them is shorter than the list of offsets.
    hoods.frequencies = hoods.frequencies / 100
    assert len(hoods.table.waves) < hoods.offsets.numel()
    torch.testing.assert_close(run(train_as_one, blocks, hoods), run(plain, blocks, hoods), rtol=1e-5, atol=2e-6)


def test_first_of_equally_large_neighbors_wins_and_undefined_rows_do_no_harm():
    rows = torch.tensor([[1.0, 3.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [0.0, -1e-20, 1e-20, 0.0]]).unsqueeze(-1)
    largest, winners = find_largest(rows.clone())
    assert largest.flatten().tolist() == [3.0, 5.0, rows[2, 2].item()]
    assert winners.flatten().tolist() == [1, 0, 2]
    rows[0] = float("nan")
    largest, winners = find_largest(rows)
    assert largest[0].isnan() and 0 <= winners[0] < 4


def test_input_of_the_first_block_and_full_rows_are_not_kept(case):
    blocks, hoods = case
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda nothing: nothing):
        train_as_one(blocks.train(), hoods)
    rows = CENTERS * K
    wide = [tensor for tensor in kept if tensor.numel() == rows * WIDTH]
    narrow = [tensor for tensor in kept if tensor.numel() == rows * HIDDEN]
    assert len(wide) == len(blocks) - 1 and len(narrow) == len(blocks)


def test_a_large_mean_does_not_drown_the_spread(case):
    blocks, hoods = case
    far = Neighborhoods(
        hoods.features.detach().float() * 1e-2 + 10, hoods.neighbors, hoods.centers, hoods.offsets, hoods.frequencies
    )
    far.features.requires_grad_()
    found = run(train_as_one, copy.deepcopy(blocks).float(), far)[0]
    far.features = far.features.detach().double().requires_grad_()
    torch.testing.assert_close(found.double(), run(plain, blocks, far)[0], rtol=1e-3, atol=1e-3)


def test_changed_modules_and_other_modes_go_the_plain_way(case):
    blocks, hoods = case
    assert trains_as_one(blocks.train(), hoods)
    assert not trains_as_one(copy.deepcopy(blocks).eval(), hoods)
    assert not trains_as_one(copy.deepcopy(blocks).bfloat16(), hoods)
    with torch.autocast("cpu"):
        assert not trains_as_one(blocks, hoods)
    synchronised = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(blocks))
    assert not trains_as_one(synchronised, hoods)
    hoods.offsets.requires_grad_()
    assert not trains_as_one(blocks, hoods)
