"""Training in several processes: what `PointTrainer` adds to accelerate.

- Norms and contrastive losses see the batches of all processes, so that a run does not depend on their number.
- DDP neither averages nor sends what is frozen; instead it is checked once that all processes have the same.
- Each process draws its own noise, such as dropout and masks.
- A checkpoint is resumed only with as many rows per step as before.
- Launchers that could not start killed processes again are refused.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate.utils import set_seed
from torch import distributed, nn
from torch.nn.modules.batchnorm import _BatchNorm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_any3d.modeling.kernels.joined_batches import JoinedBatchNorm
from hf_any3d.tuners.guided_adapter.module import CellNorm, JoinedCellNorm


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
    sent = {
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, (_BatchNorm, CellNorm)) and not isinstance(module, (JoinedBatchNorm, JoinedCellNorm))
        if any(weight.requires_grad for weight in module.parameters(recurse=False))
        for name, _ in module.named_buffers(recurse=False)
    }
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
