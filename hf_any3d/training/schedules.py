"""Schedules of learning rates and of model arguments, as in released programs."""

import itertools
import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedModel, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from hf_any3d.modeling.config_checks import check_numbers


@dataclass(frozen=True)
class EpochCosine:
    """Linear warm-up and cosine by epochs: all steps of an epoch have one learning rate, unless it changes by steps.

    The cosine starts at epoch 0, during the warm-up, so the rate after the warm-up is below its peak, and the last
    epoch is a little above the floor, all unlike `cosine_with_min_lr` of transformers.

    Source: the schedule of Any2Point, ACT and Point-BERT, which is timm's `CosineLRScheduler` stepped once an epoch.
    """

    epochs: float  # until the cosine reaches its floor
    warmup_epochs: float = 10
    warmup_lr: float = 1e-6  # at the start of the warm-up
    min_lr: float = 1e-6  # the floor
    # Further epochs with the rate of the first one. Programs that set the rate after each epoch, counted from 0, have
    # equal rates in epochs 0 and 1.
    repeat_first: int = 0
    by_steps: bool = False  # as in 3DETR's program; the warm-up then ends at its peak

    def __post_init__(self):
        check_numbers(0, math.inf, above=True, below=True, epochs=self.epochs)
        for name in ("warmup_epochs", "warmup_lr", "min_lr", "repeat_first"):
            check_numbers(0, math.inf, below=True, **{name: getattr(self, name)})

    def rate(self, epoch: float, peak: float) -> float:
        """Return the learning rate of an epoch, counted from 0, or of a fraction of it, for a peak rate."""
        clock = max(0, epoch - self.repeat_first)
        if clock < self.warmup_epochs or (self.by_steps and clock == self.warmup_epochs > 0):
            return self.warmup_lr + clock * (peak - self.warmup_lr) / self.warmup_epochs
        # Beyond its end a cosine would rise again.
        clock = min(clock, self.epochs)
        return self.min_lr + 0.5 * (peak - self.min_lr) * (1 + math.cos(math.pi * clock / self.epochs))

    def scheduler(self, optimizer: Optimizer, steps_per_epoch: int) -> LambdaLR:
        """Build the scheduler of an optimizer."""
        epoch = operator.truediv if self.by_steps else operator.floordiv
        return _build_scheduler(optimizer, lambda step, peak: self.rate(epoch(step, steps_per_epoch), peak))


@dataclass(frozen=True)
class StepCosine:
    """Linear warm-up and cosine by steps; the cosine starts at step 0, during the warm-up.

    So the rate drops a little below its peak right after the warm-up. The warm-up counts the steps of an epoch: if it
    is longer than an epoch, it starts again with each epoch until it is over.

    Source: the schedule of MiniGPT-3D and BLIP-2's programs.
    """

    epochs: int
    steps_per_epoch: int
    warmup_steps: int = 0
    warmup_lr: float = 1e-6
    min_lr: float = 1e-6

    def __post_init__(self):
        check_numbers(1, math.inf, below=True, epochs=self.epochs, steps_per_epoch=self.steps_per_epoch)
        for name in ("warmup_steps", "warmup_lr", "min_lr"):
            check_numbers(0, math.inf, below=True, **{name: getattr(self, name)})

    def rate(self, step: int, peak: float) -> float:
        """Return the learning rate of a step, counted from 0 over the complete run, for a peak rate."""
        if step < self.warmup_steps:
            # As in the released program: a warm-up that is longer than an epoch starts again with the next one.
            in_epoch = step % self.steps_per_epoch
            return min(peak, self.warmup_lr + (peak - self.warmup_lr) * in_epoch / self.warmup_steps)
        steps = self.epochs * self.steps_per_epoch
        clock = min(step, steps)
        return (peak - self.min_lr) * 0.5 * (1 + math.cos(math.pi * clock / steps)) + self.min_lr

    def scheduler(self, optimizer: Optimizer) -> LambdaLR:
        """Build the scheduler of an optimizer, whose groups have the peak rates."""
        return _build_scheduler(optimizer, self.rate)


def _build_scheduler(optimizer: Optimizer, rate: Callable[[int, float], float]) -> LambdaLR:
    # An optimizer that another scheduler has changed keeps its peaks under another name.
    peaks = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
    # LambdaLR multiplies each group's own rate; groups with another peak have another function.
    return LambdaLR(optimizer, [lambda step, peak=peak: rate(step, peak) / peak for peak in peaks])


class HeadFirstCallback(TrainerCallback):
    """Train the head alone for the first epochs, so that a new one does not disturb weights that are pretrained."""

    def __init__(self, epochs: int):
        self.epochs = epochs
        self._frozen: list[nn.Parameter] = []

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Freeze all but the head, or let what was frozen learn again; also in a run that is resumed."""
        assert isinstance(model, PreTrainedModel)
        if int(state.epoch + 1e-6) < self.epochs:
            self._frozen += [weight for weight in model.base_model.parameters() if weight.requires_grad]
            for weight in self._frozen:
                weight.requires_grad_(False)
        else:
            self._thaw()

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Let what was frozen learn again, if the run ended before."""
        self._thaw()

    def _thaw(self) -> None:
        for weight in self._frozen:
            weight.requires_grad_(True)
        self._frozen = []


class ScheduledArguments(TrainerCallback):
    """Pass further keyword arguments to a model in training, each a function of the optimizer step.

    In eval mode nothing is passed, so the model uses its defaults. A resumed run continues with the right values.
    """

    def __init__(self, schedules: Mapping[str, Callable[[int], float]]):
        self.schedules = dict(schedules)
        self.values: dict[str, float] = {}
        self._hook = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Start to pass the arguments."""
        # Trainer passes the columns of a batch to the model and nothing else.
        self._hook = model.register_forward_pre_hook(self._add, with_kwargs=True)

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compute the values of this step."""
        self.values = {name: schedule(state.global_step) for name, schedule in self.schedules.items()}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Log the values with the training loss."""
        if logs is not None and "loss" in logs:
            logs.update(self.values)
            # The state's copy was made before this call.
            if state.log_history:
                state.log_history[-1].update(self.values)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop passing the arguments."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def _add(self, module: nn.Module, inputs: tuple, arguments: dict[str, Any]) -> tuple[tuple, dict[str, Any]]:
        return inputs, {**self.values, **arguments} if module.training else arguments


class FewTokensFirst(TrainerCallback):
    """Train with few tokens at first, then with more.

    Most of a step's time is proportional to the tokens. With the tokenizer "patch" the first ones are spread over the
    cloud like all of them, and each has the neighbors that it always has. Evaluation and the saved model have all.

    Example:
        ```python
        trainer.add_callback(FewTokensFirst({16: 0.7, 32: 0.2}))  # all of them for the last tenth of the steps
        trainer.train()
        ```

    Args:
        shares: Share of all steps by number of tokens of a cloud, in the order of the training; together at most 1.
            The rest of the steps has `config.num_tokens`.
    """

    def __init__(self, shares: Mapping[int, float]):
        for tokens, share in shares.items():
            check_numbers(1, math.inf, below=True, tokens=tokens)
            check_numbers(0, 1, above=True, **{f"share of {tokens} tokens": share})
        # 0.7 and 0.3 are rounded, and so is their sum.
        check_numbers(0, 1, **{"sum of the shares": round(sum(shares.values()), 9)})
        self.shares = dict(shares)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Refuse a model without such a tokenizer, and steps that are captured with the tokens of the first."""
        if getattr(args, "cuda_graphs", False):
            raise ValueError("few_tokens: --cuda_graphs repeats the first batch, with its tokens; leave one out")
        all_tokens = [tokenizer.config.num_tokens for tokenizer in _patch_tokenizers(model)]
        if not all_tokens:
            raise ValueError(f'few_tokens: {type(model).__name__} has no tokenizer "patch"')
        for tokens in self.shares:
            if tokens > min(all_tokens):
                raise ValueError(f"few_tokens: tokens={tokens}; expected at most num_tokens={min(all_tokens)}")

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Set the tokens of the step, also in a run that is resumed."""
        _set_first_tokens(model, self.tokens_at(state.global_step / state.max_steps))

    def tokens_at(self, progress: float) -> int | None:
        """Return the tokens of a step when this share of all steps is done; None for all."""
        for tokens, end in zip(self.shares, itertools.accumulate(self.shares.values()), strict=True):
            # Sums of shares are rounded.
            if progress < end - 1e-9:
                return tokens
        return None

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Give a model that is trained further all of its tokens."""
        _set_first_tokens(model, None)


def _set_first_tokens(model: nn.Module, tokens: int | None) -> None:
    for tokenizer in _patch_tokenizers(model):
        tokenizer.first_tokens = tokens


def _patch_tokenizers(model: nn.Module) -> list[Any]:
    # By what they can do: the import of all that Any2Point needs would delay commands that train nothing of the kind.
    return [module for module in model.modules() if hasattr(type(module), "first_tokens")]
