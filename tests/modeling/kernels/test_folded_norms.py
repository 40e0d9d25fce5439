"""Which layers may be fused, and norms that become part of the weights before them."""

from dataclasses import replace

import torch
from torch import nn

from hf_any3d.modeling.any2point.point_tokenizer import ResidualBlock
from hf_any3d.modeling.kernels.neighborhoods import Neighborhoods, offset_frequencies
from hf_any3d.modeling.kernels.pooled_blocks import blocks_are_plain

WIDTH, HIDDEN, K = 12, 5, 4


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def randomized(layers: nn.Module) -> nn.Module:
    """Weights and statistics of norms that are unlike those of new ones."""
    with torch.no_grad():
        for number, tensor in enumerate(layers.state_dict().values()):
            if tensor.is_floating_point():
                tensor.copy_(randn(*tensor.shape, seed=number).abs() + 0.2)
    return layers


def stage(blocks: int = 2, dtype: torch.dtype = torch.float32) -> tuple[nn.ModuleList, Neighborhoods]:
    """Blocks in evaluation, and neighborhoods of five of nine points."""
    made = randomized(nn.ModuleList(ResidualBlock(WIDTH, HIDDEN) for _ in range(blocks))).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    neighborhoods = Neighborhoods(
        randn(9, WIDTH // 2).to(dtype),
        torch.randint(9, (5, K), generator=generator),
        torch.randint(9, (5,), generator=generator),
        randn(5, K, 3, seed=2).to(dtype),
        offset_frequencies(WIDTH, 1000.0, 1.0),
    )
    return made.to(dtype), neighborhoods


def test_stages_are_fused_in_evaluation_without_gradients():
    blocks, neighborhoods = stage()
    assert blocks_are_plain(neighborhoods, blocks) is True
    for number in range(2):
        for name in ("reduce", "reduce_norm", "expand", "expand_norm"):
            trained = stage()[0]
            getattr(trained[number], name).requires_grad_(True)
            assert not blocks_are_plain(neighborhoods, trained)
            with torch.no_grad():
                assert blocks_are_plain(neighborhoods, trained)
            watched = stage()[0]
            getattr(watched[number], name).register_forward_hook(lambda *args: None)
            assert not blocks_are_plain(neighborhoods, watched)
            if name.endswith("norm"):
                without = stage()[0]
                getattr(without[number], name).track_running_stats = False
                assert not blocks_are_plain(neighborhoods, without)
                mixed = stage()[0]
                getattr(mixed[number], name).train()
                assert not blocks_are_plain(neighborhoods, mixed)
    for name in ("features", "offsets"):
        moved = replace(neighborhoods, **{name: getattr(neighborhoods, name).clone().requires_grad_()})
        assert not blocks_are_plain(moved, blocks)
        with torch.no_grad():
            assert blocks_are_plain(moved, blocks)
