"""Parts of the point transformer against their formulas: gated layers, propagation to points, heads for points."""

import pytest
import torch
from torch import nn

from hf_any3d.modeling.point_encoders.point_transformer import (
    DropPath,
    PatchEncoder,
    PointBlock,
)
from tests.modeling.point_transformer.test_blocks import blocks, config, tokens


def test_what_runs_beside_or_in_place_of_the_second_half():
    block, places = PointBlock(config(), 4, drop_path_rate=0.5).eval(), tokens(1)
    middle = tokens() + places + block.attention(block.norm1(tokens() + places))[0]
    whole = middle + block.mlp(block.norm2(middle))
    torch.testing.assert_close(block(tokens(), places), whole)
    torch.testing.assert_close(block(tokens(), places, beside_mlp=lambda rows: 3 * rows), whole + 3 * middle)
    torch.testing.assert_close(block(tokens(), places, second_half=lambda rows: 3 * rows), 3 * middle)


def test_both_branches_are_dropped_and_rescaled_with_the_seed():
    block = PointBlock(config(), 4, drop_path_rate=0.5).train()
    torch.manual_seed(2)
    found = block(tokens())
    torch.manual_seed(2)
    first = block.attention(block.norm1(tokens()))[0] * torch.empty(2, 1, 1).bernoulli_(0.5) / 0.5
    middle = tokens() + first
    second = block.mlp(block.norm2(middle)) * torch.empty(2, 1, 1).bernoulli_(0.5) / 0.5
    torch.testing.assert_close(found, middle + second)
    rows = torch.ones(3)
    assert DropPath(0.0).train()(rows) is rows


class Extending(nn.Module):
    """Stands for an adapted block that appends tokens, which go on to blocks of its kind alone."""

    takes_geometry = True

    def __init__(self, takes_added: bool, extra: int = 0):
        super().__init__()
        self.takes_added_tokens, self.extra_tokens = takes_added, extra

    def forward(self, hidden_states, positions=None, geometry=None):
        self.seen = hidden_states.shape[1], None if positions is None else positions, geometry
        return torch.cat([hidden_states, hidden_states[:, :1] + 5], dim=1)


def test_tokens_that_adapters_add_are_kept_apart():
    stack, added = blocks(num_hidden_layers=3), {}
    first, last = Extending(True), Extending(True, extra=1)
    stack.layers[0], stack.layers[2] = first, last
    places = tokens(1)
    output, chosen = stack(tokens(), places, outputs_of=[2, 1], geometry="cells", added=added)
    between = stack.layers[1](tokens(), places)
    torch.testing.assert_close(output, between)
    torch.testing.assert_close(chosen[0], between)
    torch.testing.assert_close(chosen[1], between)
    assert sorted(added) == [0, 2] and torch.equal(added[0], tokens()[:, :1] + 5)
    assert first.seen[0] == 7 and torch.equal(first.seen[1], places) and first.seen[2] == "cells"
    assert torch.equal(last.seen[1][:, :7], places) and not last.seen[1][:, 7:].any() and last.seen[1].shape[1] == 8
    # Two of the kind after each other.
    stack.layers[1] = second = Extending(True)
    stack(tokens(), None, added=(added := {}))
    assert second.seen[0] == 8 and second.seen[1] is None and last.seen[0] == 9
    assert [added[number].shape[1] for number in range(3)] == [1, 2, 3]
    stack.layers[1] = second = Extending(False)
    stack(tokens())
    assert second.seen[0] == 7


@pytest.mark.parametrize("training", [True, False])
def test_adapters_of_the_joined_layer_are_called_on_the_concatenation(training):
    torch.manual_seed(0)
    encoder = PatchEncoder(3, 24, (8, 12, 16)).train(training)
    patches = torch.randn(2, 5, 6, 3)
    plain = encoder.point_features(patches)
    pooled = encoder.pool(plain)
    seen = []
    encoder.join.register_forward_hook(lambda module, args, output: seen.append(args[0]))
    found = encoder.point_features(patches)
    assert found.shape == (2, 5, 6, 16) and pooled.shape == (2, 5, 24) and seen[0].shape == (60, 24)
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-5)
    own = seen[0][:, 12:].view(2, 5, 6, 12)
    assert torch.equal(seen[0][:, :12].view(2, 5, 6, 12), own.amax(dim=2, keepdim=True).expand_as(own))
    torch.testing.assert_close(pooled, encoder.out(plain).amax(dim=2))
    wide = PatchEncoder(3, 24, (8, 12, 16), pooled_width=10)
    torch.testing.assert_close(wide.pool(plain), wide.project(wide.out(plain).amax(dim=2)))
