"""Batches that several processes have parts of, against one process with all of it."""

import copy

import pytest
import torch
from torch import nn

from hf_any3d.modeling.kernels import joined_batches as module
from hf_any3d.modeling.kernels.joined_batches import (
    JoinedBatchNorm,
    gather_rows,
    is_joined,
    joined_batches,
    joined_norm,
    summed_over_processes,
)
from hf_any3d.modeling.kernels.normed_ensemble import BatchNorm, cell_norm
from tests.modeling.kernels.processes import Processes

CHANNELS = 3


@pytest.fixture
def processes(monkeypatch):
    made = Processes(3)
    monkeypatch.setattr(module, "distributed", made)
    return made


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_batches_are_joined_within_the_context_only():
    assert is_joined() is False
    with joined_batches():
        assert is_joined() is True
        with joined_batches(False):
            assert is_joined() is False
        assert is_joined() is True
    assert is_joined() is False
    with pytest.raises(KeyError), joined_batches():
        raise KeyError
    assert is_joined() is False


def test_sums_over_processes_leave_the_summands_alone(processes):
    own = [randn(2, 2, seed=rank).requires_grad_() for rank in range(3)]
    before = [values.detach().clone() for values in own]
    for total, values, old in zip(
        processes.run(lambda rank: summed_over_processes(own[rank])), own, before, strict=True
    ):
        torch.testing.assert_close(total, sum(before))
        assert not total.requires_grad and torch.equal(values, old)


@pytest.mark.parametrize("laid_out", ["in rows", "in columns"])
def test_rows_of_all_processes_are_in_the_order_of_their_ranks(processes, laid_out):
    own = [randn(2, 4, seed=rank) if laid_out == "in rows" else randn(4, 2, seed=rank).T for rank in range(3)]
    weights = [randn(6, 4, seed=9 + rank) for rank in range(3)]

    def work(rank):
        rows = own[rank].detach().requires_grad_()
        gathered = gather_rows(rows)
        (gradient,) = torch.autograd.grad((gathered * weights[rank]).sum(), rows)
        (equal,) = torch.autograd.grad(gather_rows(rows).sum(), rows)
        return gathered.detach(), gradient, equal

    for rank, (gathered, gradient, equal) in enumerate(processes.run(work)):
        assert torch.equal(gathered, torch.cat(own))
        # Each process has a loss of its own from all rows.
        torch.testing.assert_close(gradient, sum(weights)[2 * rank : 2 * rank + 2])
        assert torch.equal(equal, torch.full((2, 4), 3.0, dtype=torch.float64))


SIZES = (5, 1, 4)


def norms_of(affine: str, momentum: float | None) -> tuple[JoinedBatchNorm, nn.BatchNorm1d]:
    """A norm of several processes and torch's own with the same numbers, all unlike new ones."""
    joined = JoinedBatchNorm(CHANNELS, eps=0.1, momentum=momentum, affine=affine != "neither").double()
    own = nn.BatchNorm1d(CHANNELS, eps=0.1, momentum=momentum).double()
    with torch.no_grad():
        own.running_mean.copy_(randn(CHANNELS, seed=1))
        own.running_var.copy_(randn(CHANNELS, seed=2).square())
        own.weight.copy_(torch.ones(CHANNELS) if affine == "neither" else randn(CHANNELS, seed=3))
        own.bias.copy_(randn(CHANNELS, seed=4) if affine == "both" else torch.zeros(CHANNELS))
    joined.load_state_dict({name: value for name, value in own.state_dict().items() if name in joined.state_dict()})
    if affine == "gain":
        joined.bias = None
    return joined, own


@pytest.mark.parametrize("shape", [(), (2,)], ids=["rows", "maps"])
@pytest.mark.parametrize(("affine", "momentum"), [("both", 0.3), ("both", None), ("gain", 0.3), ("neither", None)])
def test_norm_is_that_of_the_whole_batch(processes, affine, momentum, shape):
    joined, own = norms_of(affine, momentum)
    batches = [randn(sum(SIZES), CHANNELS, *shape, seed=10 + step) * 2 + 3 for step in range(2)]
    weight = randn(sum(SIZES), CHANNELS, *shape, seed=20)

    def work(rank):
        norm, found = copy.deepcopy(joined), []
        for batch in batches:
            rows = batch.split(SIZES)[rank].clone().requires_grad_()
            out = norm(rows)
            parameters = [each for each in (norm.weight, norm.bias) if each is not None]
            gradients = torch.autograd.grad((out * weight.split(SIZES)[rank]).sum(), [rows, *parameters])
            found.append((out.detach(), *gradients))
        return found, list(norm.buffers()), norm.eval()(batches[0]).detach()

    results = processes.run(work)
    for step, batch in enumerate(batches):
        rows = batch.clone().requires_grad_()
        out = own(rows)
        expected = torch.autograd.grad((out * weight).sum(), [rows, own.weight, own.bias])
        for number, whole in enumerate((out.detach(), expected[0])):
            torch.testing.assert_close(torch.cat([one[0][step][number] for one in results]), whole)
        count = {"both": 2, "gain": 1, "neither": 0}[affine]
        for number in range(count):  # each process has the share of its own rows
            torch.testing.assert_close(sum(one[0][step][2 + number] for one in results), expected[1 + number])
    for _, buffers, evaluated in results:
        torch.testing.assert_close(buffers, list(own.buffers()), rtol=1e-6, atol=1e-7)
        torch.testing.assert_close(evaluated, own.eval()(batches[0]).detach(), rtol=1e-6, atol=1e-7)


def test_norm_without_running_statistics_and_in_half_precision(processes):
    norm = JoinedBatchNorm(CHANNELS, track_running_stats=False)
    rows = randn(sum(SIZES), CHANNELS).bfloat16()
    found = processes.run(lambda rank: norm(rows.split(SIZES)[rank]))
    expected = nn.functional.batch_norm(rows.float(), None, None, training=True).bfloat16()
    assert norm.running_mean is None
    assert all(part.dtype == torch.bfloat16 for part in found)
    torch.testing.assert_close(torch.cat(found), expected)


def test_a_single_row_of_all_processes_keeps_statistics_finite(monkeypatch):
    alone = Processes(1)
    monkeypatch.setattr(module, "distributed", alone)
    norm = JoinedBatchNorm(2, momentum=0.5)
    (found,) = alone.run(lambda rank: norm(torch.tensor([[4.0, 6.0]])))
    assert found.tolist() == [[0.0, 0.0]]
    assert norm.running_mean.tolist() == [2.0, 3.0] and norm.running_var.tolist() == [0.5, 0.5]


@pytest.mark.parametrize("shared", [False, True], ids=["a gain for each view", "one for all"])
def test_views_of_some_rows_are_normalized_as_in_one_process(processes, shared):
    views, rows = 2, 6
    table = randn(views, 3 * rows, CHANNELS) + 2
    occupied = (randn(views, 3 * rows, seed=1) > -0.3).double()
    weight, bias = (randn(views, CHANNELS, seed=seed) for seed in (2, 3))
    if shared:
        weight, bias = weight[0], bias[0]
    gradient = randn(views, 3 * rows, CHANNELS, seed=4) * occupied.unsqueeze(-1)
    count = occupied.sum(dim=1, keepdim=True)
    total = count + torch.tensor([[2.0], [0.0]])  # rows of zeros count in the first view

    def work(rank):
        own = slice(rank * rows, (rank + 1) * rows)
        tensors = [one.clone().requires_grad_() for one in (table[:, own], weight, bias)]
        normed, mean, variance = joined_norm(tensors[0], occupied[:, own], *tensors[1:], count, total, 0.2)
        assert not mean.requires_grad and not variance.requires_grad
        return normed.detach(), mean, variance, *torch.autograd.grad((normed * gradient[:, own]).sum(), tensors)

    results = processes.run(work)
    tensors = [one.clone().requires_grad_() for one in (table, weight, bias)]
    by_view = [one.expand(views, -1) for one in tensors[1:]]
    norm = BatchNorm(occupied[None], *by_view, count, total, 0.2)
    normed, mean, variance = cell_norm(tensors[0][None], norm, gelu=False)
    expected = torch.autograd.grad((normed[0] * gradient).sum(), tensors)
    is_row = occupied.bool()
    torch.testing.assert_close(torch.cat([one[0] for one in results], dim=1)[is_row], normed.detach()[0][is_row])
    torch.testing.assert_close(torch.cat([one[3] for one in results], dim=1), expected[0])
    for one in results:
        torch.testing.assert_close(one[1:3], (mean, variance))
    for number in (1, 2):
        torch.testing.assert_close(sum(one[3 + number] for one in results), expected[number])


def test_all_rows_count_if_none_is_left_out(processes):
    count = torch.full((1, 1), 12.0, dtype=torch.float64)
    rows, weight, bias = randn(1, 12, 2), randn(1, 2, seed=1), randn(1, 2, seed=2)
    parts = processes.run(lambda rank: joined_norm(rows.split(4, dim=1)[rank], None, weight, bias, count, count, 0.1))
    expected = nn.functional.batch_norm(rows[0], None, None, weight[0], bias[0], training=True, eps=0.1)
    torch.testing.assert_close(torch.cat([normed for normed, _, _ in parts], dim=1)[0], expected)
