"""The folding decoder against plain modules on every point."""

import copy

import pytest
import torch

from hf_any3d.modeling.act.modeling_act_autoencoder import FoldingDecoder


def plain(decoder, tokens):
    """Compute the same with one row for every fine point, as in the paper."""
    batch, groups, width = tokens.shape
    coarse = decoder.coarse(tokens).view(batch * groups, -1, 3)
    points = coarse.shape[1] * 4
    a, b = torch.tensor([-0.05, 0.05, -0.05, 0.05]), torch.tensor([-0.05, -0.05, 0.05, 0.05])
    corners = torch.stack([a, b], dim=-1).repeat(batch * groups, points // 4, 1)
    around = coarse.repeat_interleave(4, dim=1)
    rows = [tokens.reshape(batch * groups, 1, width).expand(-1, points, -1), corners, around]
    rows = decoder.lift_norm(decoder.lift(torch.cat(rows, dim=-1).flatten(0, 1))).relu()
    rows = decoder.out(decoder.widen_norm(decoder.widen(rows)).relu()).view_as(around)
    return coarse.view(batch, groups, -1, 3), (rows + around).view(batch, groups, -1, 3)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_points_gradients_and_statistics_match_plain_modules(training):
    torch.manual_seed(0)
    decoder = FoldingDecoder(12, 16, 20, 24).train(training)
    for parameter in decoder.parameters():
        parameter.data.add_(0.2 * torch.randn_like(parameter))
    other = copy.deepcopy(decoder)
    tokens = torch.randn(3, 5, 12, requires_grad=True)
    ours, expected = decoder(tokens), plain(other, tokens)
    for made, wanted in zip(ours, expected, strict=True):
        torch.testing.assert_close(made, wanted, rtol=1e-4, atol=1e-5)
    for (name, buffer), wanted in zip(decoder.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(buffer, wanted, rtol=1e-4, atol=1e-5, msg=name)
    weights = torch.randn_like(ours[1])
    names = ["tokens", *(name for name, _ in decoder.named_parameters())]
    gradients = torch.autograd.grad((ours[1] * weights).sum(), [tokens, *decoder.parameters()])
    others = torch.autograd.grad((expected[1] * weights).sum(), [tokens, *other.parameters()])
    for name, gradient, wanted in zip(names, gradients, others, strict=True):
        if training and name in ("lift.bias", "widen.bias"):
            continue  # canceled by a norm
        torch.testing.assert_close(gradient, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item(), msg=name)
