"""Recompute the running statistics of norms after training, from one pass over the training rows."""

from collections.abc import Iterator, Sequence, Sized
from contextlib import contextmanager
from typing import Any, cast

import torch
from accelerate.utils import send_to_device
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from hf_any3d.modeling.encoders.frozen_encoder import FROZEN
from hf_any3d.training.processes import joining_norms
from hf_any3d.tuners.guided_adapter.method import CellNorm

Norm = nn.modules.batchnorm._BatchNorm | CellNorm


@torch.no_grad()
def refresh_norm_statistics(trainer: Trainer) -> int:
    """Recompute the running statistics of a model's batch norms on its training rows, with its final weights.

    Running statistics start at zero and one and lag behind the weights: after a hundred steps a trained model can fail
    in eval mode. This runs one pass over the training rows in train mode.

    Norms that the pass does not use keep their statistics: those of a frozen encoder, of a point transformer with
    adapters, of inactive adapters, and originals of modules that PEFT trains as copies.

    The trainer's seed shuffles the rows. Returns the number of recomputed norms.
    """
    model = trainer.model
    rows = trainer.train_dataset
    assert model is not None and isinstance(rows, Sized)
    norms = []
    for module in model.modules():
        has_statistics = isinstance(module, Norm) and getattr(module, "track_running_stats", True)
        # vars, not getattr: adapters forward unknown attributes to the wrapped layer.
        if has_statistics and FROZEN not in vars(module):
            norms.append(module)
    if not norms:
        return 0
    processes = trainer.args.world_size if getattr(trainer.args, "join_batches", False) else 1
    # Of several processes, each takes its part of every batch.
    size = min(trainer.args.train_batch_size, len(rows) // processes) * processes
    generator = torch.Generator().manual_seed(trainer.args.seed)
    dataset = cast(Dataset, rows)
    collate = trainer.data_collator
    batches = DataLoader(
        dataset, batch_size=size, shuffle=True, drop_last=True, collate_fn=collate, generator=generator
    )
    if processes > 1:
        assert batches.batch_sampler is not None
        # All processes draw the same order, as their generators have one seed, and take every n-th row of a batch.
        rank = trainer.args.process_index
        shares = (batch[rank::processes] for batch in batches.batch_sampler)
        batches = DataLoader(dataset, batch_sampler=cast(Any, shares), collate_fn=collate, generator=generator)
    was_training = model.training
    model.train()
    try:
        # No backward pass: only the norms' buffers change.
        with joining_norms(model, processes > 1), _averaging_over_batches(norms) as measured:
            for batch in batches:
                model(**send_to_device(batch, trainer.args.device))
    finally:
        model.train(was_training)
    return len(measured)


@contextmanager
def _averaging_over_batches(norms: Sequence[Norm]) -> Iterator[set[nn.Module]]:
    """Let norms compute plain means over batches; norms that get no batch keep their statistics.

    Yields the set of norms that got a batch, complete after the block.
    """
    measured: set[nn.Module] = set()
    # Norms that no batch reaches get their statistics back.
    kept = {norm: ([buffer.clone() for buffer in norm.buffers()], norm.momentum) for norm in norms}
    hooks = []
    for norm in norms:
        if isinstance(norm, CellNorm):
            norm.running_mean.zero_()
            norm.running_var.fill_(1)
            hooks.append(norm.register_forward_pre_hook(_AverageBatches(measured)))
        else:
            norm.reset_running_stats()
            norm.momentum = None  # plain mean over batches; fused kernels do not bypass such a norm
    try:
        yield measured
        measured.update(n for n in norms if not isinstance(n, CellNorm) and n.num_batches_tracked)
    except BaseException:
        measured.clear()  # an incomplete pass changes nothing
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (buffers, momentum) in kept.items():
            if momentum is not None:
                norm.momentum = momentum
            for buffer, before in zip(norm.buffers(), buffers, strict=True):
                if norm not in measured:
                    buffer.copy_(before)


class _AverageBatches:
    """Set the momentum of a `CellNorm` so that its statistics are plain means over batches."""

    def __init__(self, measured: set[nn.Module]):
        self.measured = measured
        self.batches = 0

    def __call__(self, norm: CellNorm, inputs: tuple) -> None:
        if norm.training:
            self.batches += 1
            # Weights 1, 1/2, 1/3, … of the newest batch make the running value the plain mean.
            norm.momentum = 1 / self.batches
            self.measured.add(norm)
