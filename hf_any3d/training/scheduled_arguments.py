"""Arguments of a model that change with the step, such as a temperature."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn
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
