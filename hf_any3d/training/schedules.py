"""Learning rates by epoch or by step, as the released programs of the field set them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ScheduledArguments(TrainerCallback):
    """Hands a model further keyword arguments in training, each a function of the steps taken so far.

    A Trainer passes on what the batch holds and nothing else. In eval mode the model gets no further argument, and so
    its own defaults. Since a resumed run knows its step, it goes on with the values that it would have had.

    Args:
        schedules: For each argument of the model's `forward`, its value after so many optimiser steps.
    """

    def __init__(self, schedules: Mapping[str, Callable[[int], float]]):
        self.schedules = dict(schedules)
        self.values: dict[str, float] = {}
        self._hook = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Begin to pass the arguments on."""
        self._hook = model.register_forward_pre_hook(self._add, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Take the values of this step."""
        self.values = {name: schedule(state.global_step) for name, schedule in self.schedules.items()}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Write the values into the log beside the training loss."""
        if logs is not None and "loss" in logs:
            logs.update(self.values)
            # The state's copy was made before this call.
            if state.log_history:
                state.log_history[-1].update(self.values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Leave the model as it was."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _add(self, module: nn.Module, inputs: tuple, arguments: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return inputs, {**self.values, **arguments} if module.training else arguments


@dataclass(frozen=True)
class EpochCosine:
    """A linear warm-up and a cosine over whole epochs; all steps of an epoch have one learning rate.

    The cosine's clock runs during the warm-up, so behind it the rate does not start from its peak, and the last epoch
    ends a little above the floor. `cosine_with_min_lr` of transformers differs in all of that: it changes with each
    step, warms up from zero and begins its cosine behind the warm-up.

    Args:
        epochs: Epochs until the cosine reaches its floor.
        warmup_epochs: Epochs of warm-up.
        warmup_lr: Learning rate that the warm-up starts from.
        min_lr: The cosine's floor.
        repeat_first: Further epochs with the rate of the first one, before the clock starts. Programs that count
            epochs from 0 and set the rate behind each of them train epochs 0 and 1 alike.

    Source: the schedule of Any2Point, ACT and Point-BERT, which is timm's `CosineLRScheduler` stepped once an epoch.
    """

    epochs: float
    warmup_epochs: float = 10
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6
    repeat_first: int = 0

    def __post_init__(self):
        if not self.epochs > 0:
            raise ValueError(f"epochs is {self.epochs!r}; expected more than 0")
        for name in ("warmup_epochs", "warmup_lr", "min_lr", "repeat_first"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or more")

    def rate(self, epoch: int, peak: float) -> float:
        """Learning rate of an epoch, counted from 0, when the cosine starts from `peak`."""
        clock = max(0, epoch - self.repeat_first)
        if clock < self.warmup_epochs:
            return self.warmup_lr + clock * (peak - self.warmup_lr) / self.warmup_epochs
        clock = min(clock, self.epochs)
        return self.min_lr + 0.5 * (peak - self.min_lr) * (1 + math.cos(math.pi * clock / self.epochs))

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        """The schedule for an optimiser that takes `steps_per_epoch` steps in an epoch.

        Raises:
            ValueError: Fewer than one step, or a peak that is not positive.
        """
        if steps_per_epoch < 1:
            raise ValueError(f"steps_per_epoch is {steps_per_epoch}; expected at least 1")
        return _by_factor(optimizer, lambda step, peak: self.rate(step // steps_per_epoch, peak))


@dataclass(frozen=True)
class StepCosine:
    """A linear warm-up and a cosine over all steps of a run, whose clock runs during the warm-up.

    So behind the warm-up the rate drops a little below its peak at once. The warm-up counts the steps of an epoch: one
    that is longer than an epoch starts anew with each epoch until it is over.

    Args:
        epochs: Epochs of the run.
        steps_per_epoch: Steps of an epoch.
        warmup_steps: Steps of the run that belong to the warm-up.
        warmup_lr: Learning rate that the warm-up starts from.
        min_lr: The cosine's floor.

    Source: the schedule of MiniGPT-3D and BLIP-2's programs.
    """

    epochs: int
    steps_per_epoch: int
    warmup_steps: int = 0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6

    def __post_init__(self):
        for name in ("epochs", "steps_per_epoch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected at least 1")
        for name in ("warmup_steps", "warmup_lr", "min_lr"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)!r}; expected 0 or more")

    def rate(self, step: int, peak: float) -> float:
        """Learning rate of a step, counted from 0 over the whole run, when the cosine starts from `peak`."""
        if step < self.warmup_steps:
            in_epoch = step % self.steps_per_epoch
            return min(peak, self.warmup_lr + (peak - self.warmup_lr) * in_epoch / self.warmup_steps)
        steps = self.epochs * self.steps_per_epoch
        clock = min(step, steps)
        return (peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * clock / steps)) + self.min_lr

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """The schedule for an optimiser whose groups hold their peaks; `step()` is called once a step.

        Raises:
            ValueError: A peak that is not positive.
        """
        return _by_factor(optimizer, self.rate)


def _by_factor(optimizer: Optimizer, rate: Callable[[int, float], float]) -> LambdaLR:
    peaks = [group["lr"] for group in optimizer.param_groups]
    if min(peaks) <= 0:
        raise ValueError(f"learning_rate is {min(peaks)}; expected more than 0")
    return LambdaLR(optimizer, [lambda step, peak=peak: rate(step, peak) / peak for peak in peaks])
