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


def test_the_first_of_equal_maxima_wins_and_nan_has_a_valid_winner():
    rows = torch.tensor([[1.0, 3.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0], [0.0, -1e-20, 1e-20, 0.0]]).unsqueeze(-1)
    largest, winners = find_largest(rows.clone())
    assert largest.flatten().tolist() == [3.0, 5.0, rows[2, 2].item()]
    assert winners.flatten().tolist() == [1, 0, 2]
    rows[0] = float("nan")
    largest, winners = find_largest(rows)
    assert largest[0].isnan() and 0 <= winners[0] < 4


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


@pytest.mark.parametrize("way", [plain, fused], ids=["plain", "fused"])
def test_a_single_row_has_no_statistics(case, way):
    blocks, neighborhoods = case
    index = torch.zeros(1, 1, dtype=torch.long)
    one = replace(neighborhoods, neighbors=index, centers=index[0], offsets=torch.zeros(1, 1, 3, dtype=torch.float64))
    with pytest.raises(ValueError, match="more than 1 value per channel|1 row in training"):
        way(one, blocks.train())
