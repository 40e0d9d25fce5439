"""Running statistics of batch norms, measured anew once the weights stand still."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_any3d.modeling.any2point.guided_adapter import CellNorm
from hf_any3d.modeling.encoders.frozen_encoder import FROZEN


@torch.no_grad()
def refresh_norm_statistics(trainer: Trainer) -> int:
    """Replace the running statistics of a model's batch norms by those of its training rows under its final weights.

    Running statistics begin at zero and one and follow the weights late: after a hundred steps a model that learned
    well can answer nonsense in eval mode. One pass over the training rows in train mode mends that.

    Norms that the pass does not measure keep their statistics: those of a frozen encoder, of a pretrained point
    transformer below adapters, of adapters that are not active, and originals that a trained copy stands in for.

    Args:
        trainer: After `train()`. What is shuffled follows from its seed.

    Returns:
        How many norms were measured.
    """
    model = trainer.model
    # The encoder's own norms are known by what is in the module itself: adapters answer for their base layer too.
    norms = [module for module in model.modules() if _keeps_statistics(module) and FROZEN not in vars(module)]
    if not norms:
        return 0
    size = min(trainer.args.train_batch_size, len(trainer.train_dataset))
    batches = DataLoader(
        trainer.train_dataset,
        batch_size=size,
        shuffle=True,
        drop_last=True,
        collate_fn=trainer.data_collator,
        generator=torch.Generator().manual_seed(trainer.args.seed),
    )
    was_training = model.training
    model.train()
    try:
        with _averaging_over_batches(norms) as measured:
            for batch in batches:
                model(**{name: values.to(trainer.args.device) for name, values in batch.items()})
    finally:
        model.train(was_training)
    return len(measured)


def _keeps_statistics(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return module.track_running_stats
    return isinstance(module, CellNorm)


@contextmanager
def _averaging_over_batches(norms: list[nn.Module]) -> Iterator[set[nn.Module]]:
    """Let norms keep the plain mean over the batches that they see; those that see none stay as they are.

    Gives the norms that have measured something, all of them once the block is left.
    """
    measured: set[nn.Module] = set()
    kept = {norm: ([buffer.clone() for buffer in norm.buffers()], norm.momentum) for norm in norms}
    hooks = []
    for norm in norms:
        norm.running_mean.zero_()
        norm.running_var.fill_(1)
        if isinstance(norm, CellNorm):
            hooks.append(norm.register_forward_pre_hook(_WeighBatches(measured)))
        else:
            norm.num_batches_tracked.zero_()
            norm.momentum = None  # the plain mean over batches; no fused path passes such a norm by
    try:
        yield measured
        measured.update(n for n in norms if not isinstance(n, CellNorm) and n.num_batches_tracked > 0)
    except BaseException:
        measured.clear()  # half a pass measures nothing
        raise
    finally:
        for hook in hooks:
            hook.remove()
        for norm, (buffers, momentum) in kept.items():
            norm.momentum = momentum
            for buffer, before in zip(norm.buffers(), buffers, strict=True):
                if norm not in measured:
                    buffer.copy_(before)


class _WeighBatches:
    """Gives each batch that a `CellNorm` sees the weight that makes its statistics the plain mean."""

    def __init__(self, measured: set[nn.Module]):
        self.measured, self.batches = measured, 0

    def __call__(self, norm: CellNorm, inputs: tuple) -> None:
        if norm.training:
            self.batches += 1
            norm.momentum = 1 / self.batches
            self.measured.add(norm)
