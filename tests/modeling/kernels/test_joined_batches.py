"""Batches that several processes have parts of, against one process with all of it."""

import copy

import pytest
import torch
from torch import nn

from hf_any3d.modeling.kernels import joined_batches as module
from hf_any3d.modeling.kernels.joined_batches import JoinedBatchNorm, gather_rows
from tests.modeling.kernels.processes import Processes

CHANNELS = 3


@pytest.fixture
def processes(monkeypatch):
    made = Processes(3)
    monkeypatch.setattr(module, "distributed", made)
    return made


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("laid_out", ["in rows", "in columns"])
@pytest.mark.parametrize("counts", [(2, 2, 2), (1, 3, 2)])
def test_rows_of_all_processes_are_in_the_order_of_their_ranks(processes, laid_out, counts):
    own = []
    for rank, count in enumerate(counts):
        own.append(randn(count, 4, seed=rank) if laid_out == "in rows" else randn(4, count, seed=rank).T)
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
        first = sum(counts[:rank])
        torch.testing.assert_close(gradient, sum(weights)[first : first + counts[rank]])
        assert torch.equal(equal, torch.full((counts[rank], 4), 3.0, dtype=torch.float64))


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
