"""Training in several processes: what `PointTrainer` adds to accelerate.

- Norms and contrastive losses see the batches of all processes, so that a run does not depend on their number.
- The last batch of an epoch is split evenly, where accelerate fills it up with rows from the start.
- DDP neither averages nor sends what is frozen; instead it is checked once that all processes have the same.
- Each process draws its own noise, such as dropout and masks.
- A checkpoint is resumed only with as many rows per step as before.
- Launchers that could not start killed processes again are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from accelerate.utils import set_seed
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_any3d.modeling.kernels.joined_batches import JoinedBatchNorm, joined_norm, summed_over_processes
from hf_any3d.tuners.guided_adapter.method import CellNorm


class JoinedCellNorm(CellNorm):
    """`CellNorm` whose batch statistics are those of all processes; see `joined_batches`."""

    def normalize(
        self, rows: torch.Tensor, occupied: torch.Tensor, count: torch.Tensor, total: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the normalized rows, mean and variance of all batches, and the number of their rows."""
        # In one message: each one costs the time of a round between the processes.
        count, total = summed_over_processes(torch.stack([count, total]))
        table = rows.transpose(0, 1).flatten(1, 2)  # (views, batch * rows, hidden)
        inside = occupied.transpose(0, 1).flatten(1)
        normed, mean, variance = joined_norm(table, inside, self.weight, self.bias, count, total, self.eps)
        return normed.unflatten(1, (len(rows), -1)).transpose(0, 1), mean, variance, total


@contextmanager
def joining_norms(model: nn.Module, join: bool = True) -> Iterator[None]:
    """Let the batch norms of a model compute their statistics over all processes.

    Fused operations, which see one process, are replaced by plain ones meanwhile.
    """
    before: dict[nn.Module, type[nn.Module]] = {}
    for module in model.modules() if join else ():
        if isinstance(module, _BatchNorm) and not isinstance(module, nn.SyncBatchNorm | JoinedBatchNorm):
            # Only the class changes: parameters, buffers, hooks and optimizer states stay those of the same module.
            before[module] = type(module)
            module.__class__ = JoinedBatchNorm
        elif type(module) is CellNorm:
            before[module] = CellNorm
            module.__class__ = JoinedCellNorm
    try:
        yield
    finally:
        for module, kind in before.items():
            module.__class__ = kind


@torch.no_grad()
def keep_out_of_ddp(model: nn.Module) -> list[str]:
    """Let DDP neither register nor send what all processes compute or load alike, and check that it is equal in them.

    These are frozen parameters, and all buffers, such as tables of positions; running statistics, however, are sent
    unless they are computed over all processes. Returns the names of these parameters and buffers.
    """
    frozen = [name for name, weight in model.named_parameters(remove_duplicate=False) if not weight.requires_grad]
    # Running statistics of trained norms that are not joined differ between processes; DDP sends those of the first.
    sent = set()
    for path, module in model.named_modules():
        is_joined = isinstance(module, (JoinedBatchNorm, JoinedCellNorm))
        is_trained = any(weight.requires_grad for weight in module.parameters(recurse=False))
        if isinstance(module, (_BatchNorm, CellNorm)) and not is_joined and is_trained:
            sent.update(f"{path}.{name}" for name, _ in module.named_buffers(recurse=False))
    constant = [name for name, _ in model.named_buffers(remove_duplicate=False) if name not in sent]
    names = [*frozen, *constant]
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(model, names)
    if not names:
        return []
    state = {
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    # One number for each tensor is enough to notice another file or seed, and quick to send. NaN would not equal
    # itself.
    sums = torch.stack([state[name].detach().sum(dtype=torch.float32).nan_to_num() for name in names])
    first = sums.clone()
    distributed.broadcast(first, src=0)
    differs = (sums != first).float()
    distributed.all_reduce(differs, op=distributed.ReduceOp.MAX)
    wrong = differs.nonzero().flatten().tolist()
    if wrong:
        raise ValueError(f"{names[wrong[0]]} differs between the processes; expected equal frozen weights")
    return names


class EvenlySplit(BatchSamplerShard):
    """Batches of one process; in the last ones of an epoch, the processes together have each row once.

    Their sizes differ by one at most. Only if there are fewer rows than processes, some are repeated.
    """

    def __iter__(self) -> Iterator[list[int]]:
        """Yield the rows of each batch of this process."""
        assert self.batch_size is not None
        number = self.process_index
        first: list[int] = []
        step: list[int] = []  # the rows of all processes
        for batch in self.batch_sampler:
            step = [*step, *batch]
            first = first or step
            if len(step) == self.batch_size * self.num_processes:
                yield step[number * self.batch_size :][: self.batch_size]
                step = []
        if not step or self.drop_last:
            return
        while len(step) < self.num_processes:
            step = [*step, *first[: self.num_processes - len(step)]]
        size, larger = divmod(len(step), self.num_processes)
        start = number * size + min(number, larger)
        yield step[start : start + size + (number < larger)]


def split_evenly(loader: Any) -> None:
    """Let the processes share the last batch of a loader of accelerate, where each would get a full one."""
    sampler = loader.batch_sampler
    if type(sampler) is BatchSamplerShard and sampler.batch_size is not None and not sampler.split_batches:
        # Loaders take no other sampler once they are made, and accelerate has no setting for this.
        sampler.__class__ = EvenlySplit


class OwnNoise(TrainerCallback):
    """Seed the random numbers of each process differently during training.

    Trainer seeds all alike, so that the n-th clouds of all processes would have the same dropout and masks. The order
    of the rows has a generator of its own, which must be the same everywhere.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Seed by process and step; a resumed process then restores its own state, if it has one."""
        if args.world_size > 1:
            # A prime, so that seeds of other steps and processes, which are added to it, rarely meet.
            set_seed((args.seed + 7919 * state.global_step) % 2**31, device_specific=True)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        """Seed all processes alike again."""
        if args.world_size > 1:
            set_seed(args.seed)
