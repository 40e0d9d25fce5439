"""The stock Trainer with an optimisation that its arguments cannot tell."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import ceil
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer

from hf_any3d.training.settings import PointTrainingArguments
from hf_any3d.training.weight_decay import decaying_parameters


class PointTrainer(Trainer):
    """A Trainer that knows `epoch_cosine`, `weight_decay_on` and `two_steps_per_batch` of `PointTrainingArguments`.

    It also judges all rows: the stock Trainer leaves the rows of an incomplete last batch out of evaluation too when
    `dataloader_drop_last` is set for training. And its evaluations give the plain loss of the model, where the stock
    Trainer smooths labels in evaluation as in training: losses of runs with and without smoothing, and of
    `hf-any3d evaluate`, then mean the same.
    """

    args: PointTrainingArguments

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Names of the parameters that decay; the stock Trainer's rule, but by what parameters are, not by names."""
        if self.args.weight_decay_on == "matrices":
            return decaying_parameters(model, self.args.no_weight_decay)
        by_name = set(super().get_decay_parameter_names(model))
        return [name for name in decaying_parameters(model, class_tokens=False) if name in by_name]

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Forward and backward; with `two_steps_per_batch` also a step of its own, before gradients are clipped."""
        loss = super().training_step(model, inputs, *args, **kwargs)
        if self.args.two_steps_per_batch and self.accelerator.sync_gradients:
            # The one that follows behind the clipping takes the same gradient.
            self.optimizer.step()
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        """Loss, logits and labels of a batch to judge by; the loss without label smoothing."""
        smoother, self.label_smoother = self.label_smoother, None
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.label_smoother = smoother

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the learning rate."""
        schedule = self.args.epoch_schedule
        if self.lr_scheduler is not None or schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        steps = ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
        self.lr_scheduler = schedule.scheduler(optimizer or self.optimizer, max(1, steps))
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def get_eval_dataloader(self, eval_dataset: str | Dataset | None = None) -> DataLoader:
        """Batches to choose by, with the incomplete last one."""
        with self._keeping_all_rows():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Batches to judge by, with the incomplete last one."""
        with self._keeping_all_rows():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _keeping_all_rows(self) -> Iterator[None]:
        asked = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            yield
        finally:
            self.args.dataloader_drop_last = asked
