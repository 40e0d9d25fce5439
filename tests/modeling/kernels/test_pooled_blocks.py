"""The fused blocks of a tokenizer stage against the modules, called one after the other."""

import copy
from dataclasses import replace

import pytest
import torch

from hf_any3d.modeling import kernels
from hf_any3d.modeling.any2point.point_tokenizer import ResidualBlock
from hf_any3d.modeling.kernels import neighborhoods as module
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods, offset_frequencies
from hf_any3d.modeling.kernels.pooling import largest as find_largest
from tests.closeness import assert_nearly_equal

plain, fused = kernels.pooled_blocks.plain, kernels.pooled_blocks.fused

WIDTH, HIDDEN, POINTS, CENTERS, K = 12, 5, 20, 9, 6


@pytest.fixture(params=[1, 2, 3], ids="{} blocks".format)
def case(request):
    """Blocks with random weights and random neighborhoods, in float64."""
    generator = torch.Generator().manual_seed(5)
    blocks = torch.nn.ModuleList(ResidualBlock(WIDTH, HIDDEN) for _ in range(request.param)).double()
    with torch.no_grad():
        for parameter in blocks.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    neighborhoods = Neighborhoods(
        torch.randn(POINTS, WIDTH // 2, generator=generator, dtype=torch.float64).requires_grad_(),
        torch.randint(POINTS, (CENTERS, K), generator=generator),
        torch.randint(POINTS, (CENTERS,), generator=generator),
        torch.rand(CENTERS, K, 3, generator=generator, dtype=torch.float64) - 0.5,
        offset_frequencies(WIDTH, 1000.0, 100.0).double(),
    )
    return blocks, neighborhoods


def run(how, blocks, neighborhoods):
    """Outputs, gradients and buffers of one training step."""
    blocks = copy.deepcopy(blocks).train()
    pooled = how(neighborhoods, blocks)
    weight = torch.arange(pooled.numel(), dtype=pooled.dtype).sin().view_as(pooled)
    inputs = [neighborhoods.features, *blocks.parameters()]
    return pooled, torch.autograd.grad((pooled * weight).sum(), inputs), list(blocks.buffers())


@pytest.mark.parametrize("part", [1, 2 * K * WIDTH, 1 << 18], ids=["single", "two", "whole"])
def test_fused_blocks_equal_the_modules(case, part, monkeypatch):
    monkeypatch.setattr(module, "_PART", part)
    expected, found = run(plain, *case), run(fused, *case)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


@torch.no_grad()
def test_norms_in_evaluation_are_folded_into_the_weights(case, monkeypatch):
    blocks, neighborhoods = copy.deepcopy(case[0]), case[1]
    plain(neighborhoods, blocks.train())  # moves the running statistics
    monkeypatch.setattr(module, "_PART", 2 * K * WIDTH)
    blocks.eval()
    assert kernels.pooled_blocks.uses_fused(neighborhoods, blocks)
    torch.testing.assert_close(fused(neighborhoods, blocks), plain(neighborhoods, blocks), rtol=1e-6, atol=1e-8)
    blocks[0].expand.register_forward_hook(lambda *args: None)
    assert not kernels.pooled_blocks.uses_fused(neighborhoods, blocks)


def test_interpolated_waves_give_the_same_results(case):
    blocks, neighborhoods = case
    # Slow waves: a table of them is shorter than the list of offsets.
    neighborhoods.frequencies = neighborhoods.frequencies / 100
    assert len(neighborhoods.table.waves) < neighborhoods.offsets.numel()
    torch.testing.assert_close(
        run(fused, blocks, neighborhoods), run(plain, blocks, neighborhoods), rtol=1e-5, atol=2e-6
    )


def test_the_first_of_equal_maxima_wins_and_nan_has_a_valid_winner():
    rows = torch.tensor([[1.0, 3.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [0.0, -1e-20, 1e-20, 0.0]]).unsqueeze(-1)
    largest, winners = find_largest(rows.clone())
    assert largest.flatten().tolist() == [3.0, 5.0, rows[2, 2].item()]
    assert winners.flatten().tolist() == [1, 0, 2]
    rows[0] = float("nan")
    largest, winners = find_largest(rows)
    assert largest[0].isnan() and 0 <= winners[0] < 4


def test_only_narrow_rows_and_inputs_after_the_second_block_are_saved(case):
    blocks, neighborhoods = case
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda nothing: nothing):
        fused(neighborhoods, blocks.train())
    rows = CENTERS * K
    wide = [tensor for tensor in kept if tensor.numel() == rows * WIDTH]
    narrow = [tensor for tensor in kept if tensor.numel() == rows * HIDDEN]
    assert (len(narrow), len(wide)) == (len(blocks) - 1, max(0, len(blocks) - 2))


def test_a_large_mean_does_not_cancel_the_variance(case):
    blocks, neighborhoods = case
    far = Neighborhoods(
        neighborhoods.features.detach().float() * 1e-2 + 10,
        neighborhoods.neighbors,
        neighborhoods.centers,
        neighborhoods.offsets,
        neighborhoods.frequencies,
    )
    far.features.requires_grad_()
    found = run(fused, copy.deepcopy(blocks).float(), far)[0]
    far.features = far.features.detach().double().requires_grad_()
    torch.testing.assert_close(found.double(), run(plain, blocks, far)[0], rtol=1e-3, atol=1e-3)


def test_changed_modules_and_other_modes_are_not_fused(case):
    blocks, neighborhoods = case
    uses_fused = kernels.pooled_blocks.uses_fused
    assert uses_fused(neighborhoods, blocks.train())
    assert not uses_fused(neighborhoods, copy.deepcopy(blocks).eval())
    assert not uses_fused(neighborhoods, copy.deepcopy(blocks).bfloat16())
    assert not uses_fused(neighborhoods, [])
    synchronized = torch.nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(blocks))
    assert not uses_fused(neighborhoods, synchronized)
    neighborhoods.offsets.requires_grad_()
    assert not uses_fused(neighborhoods, blocks)


def test_features_in_bfloat16_are_multiplied_in_it(case):
    blocks, neighborhoods = copy.deepcopy(case[0]).float().train(), case[1]
    rounded = neighborhoods.features.detach().bfloat16()
    neighborhoods.offsets, neighborhoods.frequencies = neighborhoods.offsets.float(), neighborhoods.frequencies.float()
    neighborhoods.features = rounded.float().requires_grad_()
    expected, gradients, statistics = run(fused, blocks, neighborhoods)
    neighborhoods.features = rounded.requires_grad_()
    found, others, measured = run(fused, blocks, neighborhoods)
    assert not torch.equal(found, expected) and found.dtype == torch.float32
    assert_nearly_equal(found, expected, 0.05)
    # In the second half of each block, and in the norms, little depends on which rows have the maximum.
    for one, other in zip((*gradients[-3:], *statistics), (*others[-3:], *measured), strict=True):
        assert other.dtype == one.dtype and (other - one).float().norm() <= 0.1 * one.float().norm() + 1e-4


@torch.no_grad()
def test_evaluation_in_bfloat16_is_close_to_full_precision(case):
    blocks, neighborhoods = copy.deepcopy(case[0]).float(), case[1]
    neighborhoods.offsets, neighborhoods.frequencies = neighborhoods.offsets.float(), neighborhoods.frequencies.float()
    neighborhoods.features = neighborhoods.features.bfloat16().float()
    fused(neighborhoods, blocks.train())  # moves the running statistics
    expected = fused(neighborhoods, blocks.eval())
    half = copy.deepcopy(blocks).bfloat16()
    neighborhoods.features = neighborhoods.features.bfloat16()
    assert kernels.pooled_blocks.uses_fused(neighborhoods, half)
    found = kernels.pooled_blocks(neighborhoods, half)
    assert found.dtype == torch.bfloat16
    assert_nearly_equal(found.float(), expected, 0.05)


def test_autocast_does_not_round_the_fused_rows(case):
    blocks, neighborhoods = copy.deepcopy(case[0]).float().train(), case[1]
    neighborhoods.features = neighborhoods.features.detach().float().requires_grad_()
    neighborhoods.offsets, neighborhoods.frequencies = neighborhoods.offsets.float(), neighborhoods.frequencies.float()
    expected = fused(neighborhoods, copy.deepcopy(blocks))
    with torch.autocast("cpu", torch.bfloat16):
        found = kernels.pooled_blocks(neighborhoods, blocks)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, expected.bfloat16())


@pytest.mark.parametrize("way", [plain, fused], ids=["plain", "fused"])
def test_a_single_row_has_no_statistics(case, way):
    blocks, neighborhoods = case
    index = torch.zeros(1, 1, dtype=torch.long)
    one = replace(neighborhoods, neighbors=index, centers=index[0], offsets=torch.zeros(1, 1, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="more than 1 value per channel|1 row in training"):
        way(one, blocks.train())
