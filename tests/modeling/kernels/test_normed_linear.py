"""Batch norm, ReLU and a linear layer on sums of many rows and few, against the two layers."""

import copy
import importlib

import pytest
import torch
from torch import nn

from hf_any3d.modeling.kernels import normed_linear
from tests.errors import raises

# The attribute of the package is the operation itself.
module = importlib.import_module("hf_any3d.modeling.kernels.normed_linear")
CHANNELS, OUT = 4, 3


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def layers(momentum: float | None = 0.3, dtype: torch.dtype = torch.float64) -> tuple[nn.BatchNorm1d, nn.Linear]:
    """Layers whose numbers are all unlike those of new ones."""
    norm, linear = nn.BatchNorm1d(CHANNELS, eps=0.2, momentum=momentum), nn.Linear(CHANNELS, OUT)
    with torch.no_grad():
        for number, tensor in enumerate([*norm.parameters(), *linear.parameters(), norm.running_mean]):
            tensor.copy_(randn(*tensor.shape, seed=number + 1))
        norm.running_var.copy_(randn(CHANNELS, seed=7).square() + 0.5)
        norm.num_batches_tracked.fill_(3)
    return norm.to(dtype), linear.to(dtype)


def results(how, rows: torch.Tensor, few: torch.Tensor | None, norm: nn.BatchNorm1d, linear: nn.Linear) -> list:
    """The output, all gradients and the norm's buffers after a call."""
    norm, linear = copy.deepcopy(norm), copy.deepcopy(linear)
    leaves = [one.clone().requires_grad_() for one in (rows, few) if one is not None]
    out = how(*leaves, *[None] * (few is None), norm, linear)
    weight = torch.arange(out.numel()).sin().view_as(out).to(out.dtype)
    parameters = [*norm.parameters(), *linear.parameters()]
    return [out.detach(), *torch.autograd.grad((out * weight).sum(), [*leaves, *parameters]), *norm.buffers()]


@pytest.mark.parametrize("few", [None, 1, 5])
@pytest.mark.parametrize("part", [1, 41, 1 << 18], ids=["a row at a time", "two rows", "whole"])
@pytest.mark.parametrize(("training", "momentum"), [(True, 0.3), (True, None), (False, 0.3)])
def test_fused_layers_equal_the_modules(few, part, training, momentum, monkeypatch):
    monkeypatch.setattr(module, "_PART_CPU", part)
    norm, linear = layers(momentum)
    norm.train(training)
    rows = randn(7, CHANNELS) * 3 + 2
    some = None if few is None else randn(few, CHANNELS, seed=20) - 1
    found = results(normed_linear.fused, rows, some, norm, linear)
    expected = results(normed_linear.plain, rows, some, norm, linear)
    assert found[0].shape == (7, few or 1, OUT)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_the_mean_over_batches_counts_all_of_them():
    norm, linear = layers(momentum=None)
    rows = randn(6, CHANNELS)
    before = norm.running_mean.clone()
    normed_linear.fused(rows, None, norm, linear)
    torch.testing.assert_close(norm.running_mean, before + (rows.mean(dim=0) - before) / 4, rtol=1e-6, atol=1e-6)
    assert norm.num_batches_tracked == 4


def test_a_single_sum_keeps_running_statistics_finite():
    norm, linear = layers()
    normed_linear.fused(randn(1, CHANNELS), None, norm, linear)
    # Its variance is 0, also without bias.
    torch.testing.assert_close(norm.running_var, layers()[0].running_var * 0.7, rtol=1e-6, atol=1e-6)


def test_parts_have_as_many_sums_as_fit(monkeypatch):
    monkeypatch.setattr(module, "_PART_CPU", 41)
    parts = list(module._parts(randn(5, CHANNELS), randn(5, CHANNELS)))
    assert parts == [slice(0, 2), slice(2, 4), slice(4, 6)]


def test_half_precision_of_the_rows_is_that_of_the_product(monkeypatch):
    # Sums over hundreds of parts would stop growing in bfloat16.
    monkeypatch.setattr(module, "_PART_CPU", 1)
    norm, linear = layers(dtype=torch.float32)
    rows, few = randn(600, CHANNELS, dtype=torch.float32), randn(5, CHANNELS, seed=20, dtype=torch.float32)
    found = results(normed_linear.fused, rows.bfloat16(), few.bfloat16(), norm, linear)
    expected = results(normed_linear.fused, rows.bfloat16().float(), few.bfloat16().float(), norm, linear)
    half, full = torch.bfloat16, torch.float32
    # Gradients are those of the given tensors; statistics stay in full precision.
    assert [one.dtype for one in found[:-1]] == [half, half, half, full, full, full, full, full, full]
    for one, other in zip(found, expected, strict=True):
        assert (one.float() - other.float()).norm() <= 0.03 * other.float().norm()


def test_rounded_layers_have_rounded_gradients():
    norm, linear = layers(dtype=torch.bfloat16)
    rows = randn(40, CHANNELS, dtype=torch.float32)
    found = results(normed_linear.fused, rows.bfloat16(), None, norm, linear)
    assert {one.dtype for one in found[:-1]} == {torch.bfloat16}


def test_only_what_enters_is_kept_for_the_backward_pass():
    norm, linear = layers()
    rows, few = randn(30, CHANNELS).requires_grad_(), randn(5, CHANNELS, seed=20).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(kept.append, lambda nothing: nothing):
        normed_linear.fused(rows, few, norm, linear)
    assert max(one.numel() for one in kept) == rows.numel()
    assert sum(one.numel() for one in kept) < 2 * rows.numel()


def test_layers_that_are_replaced_or_watched_are_called():
    norm, linear = layers()
    rows = randn(7, CHANNELS)
    assert normed_linear.uses_fused(rows, None, norm, linear)
    for number in (0, 1):
        pair = layers()
        pair[number].register_forward_hook(lambda *args: None)
        assert not normed_linear.uses_fused(rows, None, *pair)


def test_gradients_of_gradients_are_refused():
    norm, linear = layers()
    rows = randn(7, CHANNELS).requires_grad_()
    (gradient,) = torch.autograd.grad(
        normed_linear.fused(rows, None, norm, linear).square().sum(), rows, create_graph=True
    )
    with raises(RuntimeError, naming="once_differentiable"):
        gradient.sum().backward()
