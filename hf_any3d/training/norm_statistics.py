"""Running statistics of batch norms, measured anew once the weights stand still."""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer

from hf_any3d.modeling.encoders.frozen_encoder import FROZEN


@torch.no_grad()
def refresh_norm_statistics(trainer: Trainer) -> int:
    """Replace the running statistics of a model's batch norms by those of its training rows under its final weights.

    Running statistics begin at zero and one and follow the weights late: after a hundred steps a model that learned
    well can answer nonsense in eval mode. One pass over the training rows in train mode mends that.

    Args:
        trainer: After `train()`. What is shuffled follows from its seed.

    Returns:
        How many norms were measured; those of the frozen encoder stay as they are.
    """
    model = trainer.model
    # The encoder's own norms are known by what is in the module itself: adapters answer for their base layer too.
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm)
        and module.track_running_stats
        and FROZEN not in vars(module)
    ]
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
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain mean over batches
    was_training = model.training
    model.train()
    for batch in batches:
        model(**{name: values.to(trainer.args.device) for name, values in batch.items()})
    model.train(was_training)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return len(norms)
