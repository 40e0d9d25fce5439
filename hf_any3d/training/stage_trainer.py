"""The stock Trainer on conversations of several kinds, counted in steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset
from transformers.trainer_utils import seed_worker

from hf_any3d.modeling.minigpt3d import held_names
from hf_any3d.training.mixed_batches import MixedBatches
from hf_any3d.training.stage_settings import StageTrainingArguments
from hf_any3d.training.trainer import PointTrainer


class StageTrainer(PointTrainer):
    """A Trainer whose batches `MixedBatches` draws, and that knows `step_cosine`.

    Args:
        *args: As Trainer has them; the training dataset is made of `kinds`.
        kinds: Rows of each kind of conversations.
        batch_sizes: Rows of a batch of each kind, on each device.
        ratios: How often each kind is drawn, in relation to the others.
        **kwargs: As Trainer has them.
    """

    args: StageTrainingArguments

    def __init__(self, *args, kinds: Sequence[Dataset], batch_sizes: Sequence[int], ratios: Sequence[float], **kwargs):
        super().__init__(*args, train_dataset=ConcatDataset(kinds), **kwargs)
        self.kinds, self.batch_sizes, self.ratios = list(kinds), list(batch_sizes), list(ratios)
        self.batches()  # says at once what cannot be drawn

    def batches(self) -> MixedBatches:
        """The batches of the whole run on this process."""
        return MixedBatches(
            [len(rows) for rows in self.kinds],
            self.batch_sizes,
            self.ratios,
            self.args.max_steps * self.args.gradient_accumulation_steps,
            self.args.seed if self.args.data_seed is None else self.args.data_seed,
            self.args.process_index,
            self.args.world_size,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Batches of the whole run; not parted among processes once more, since each draws its own rows."""
        return DataLoader(
            self.train_dataset,
            batch_sampler=self.batches(),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            worker_init_fn=partial(
                seed_worker, num_workers=self.args.dataloader_num_workers, rank=self.args.process_index
            ),
        )

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        # A checkpoint lacks what the public parts hold, of which the stock Trainer warns; and it warns only where a
        # checkpoint lacks anything else.
        lacking = set(load_result.missing_keys) - held_names(self.model)
        if wrong := sorted(lacking.union(load_result.unexpected_keys)):
            raise ValueError(f"the checkpoint does not fit the model: {', '.join(wrong[:8])}")

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """The schedule of the learning rate."""
        schedule = self.args.step_schedule
        if self.lr_scheduler is not None or schedule is None:
            return super().create_scheduler(num_training_steps, optimizer)
        self.lr_scheduler = schedule.scheduler(optimizer or self.optimizer)
        self._created_lr_scheduler = True
        return self.lr_scheduler
