"""The stock Trainer with optimisations that its arguments cannot tell, and checkpoints that are whole."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from math import ceil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader, Dataset
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints

from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.layers.heads import ClassToken
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.checkpoints import checkpoint_to_resume, list_files, make_room, why_incomplete

# Vectors here, (1, 1, hidden) in the released programs, whose rule spares vectors.
_TOKENS = (ClassToken,)


def decaying_parameters(model: nn.Module, spared: Sequence[str] = (), class_tokens: bool = True) -> list[str]:
    """Names of the parameters that decay: matrices and learned tokens, but neither biases nor norms nor vectors.

    Biases and norms of several views that are stored as one matrix count as what they are.

    Args:
        model: Any model, adapted or not.
        spared: Regular expressions; parameters in whose name one of them is found do not decay either.
        class_tokens: Whether class tokens and their positions decay, as in the released programs.

    Raises:
        ValueError: A regular expression that fits no parameter.

    Source: released Any2Point, ACT and Point-BERT programs (weight decay 0 for one-dimensional parameters, biases, and
    tokens by name).
    """
    for pattern in spared:
        if not any(re.search(pattern, name) for name, _ in model.named_parameters()):
            raise ValueError(f"no_weight_decay {pattern!r} fits no parameter of {type(model).__name__}")
    names = _weights(model, _TOKENS if class_tokens else ())
    return [name for name in names if not any(re.search(pattern, name) for pattern in spared)]


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Parameters that train, as an optimizer of torch takes them: those that decay and those that do not.

    Class tokens, norms, gates, scales and biases do not.

    Args:
        model: Any model, adapted or not.
        weight_decay: Of the first group; the second has 0.
    """
    decaying = set(decaying_parameters(model, class_tokens=False))
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups[name not in decaying].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def _weights(model: nn.Module, tokens: tuple[type[nn.Module], ...]) -> Iterator[str]:
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            is_vector = parameter.dim() < 2 and not isinstance(module, tokens)
            if not (is_vector or is_norm or "bias" in name or "norm" in name):
                yield f"{path}.{name}" if path else name


logger = logging.getLogger(__name__)

_MODEL_FILES = (
    "metrics.json",
    "*.safetensors",
    "*.safetensors.index.json",
    "pytorch_model*.bin*",
    "adapter_model.bin",
    "config.json",
    "adapter_config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "tokenizer_config.json",
)


def remove_model(folder: Path) -> None:
    """Remove the model of an earlier run, so that no mixture of two can be opened while another is written."""
    for pattern in _MODEL_FILES:
        for path in folder.glob(pattern):
            path.unlink()


@contextmanager
def naming_what_is_not_saved(folder: Path) -> Iterator[None]:
    """Turn what the many writers of a save raise on a full disk into an OSError that names the folder."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # Its files raise RuntimeError, and say no more of the reason.
        is_of_torch = any(word in str(error) for word in ("PytorchStreamWriter", "inline_container", "iostream"))
        if isinstance(error, RuntimeError) and not is_of_torch or str(error).startswith(f"{folder}: "):
            raise
        reason = str(error).splitlines()[0]
        if isinstance(error, OSError) and error.errno:
            reason = os.strerror(error.errno)
        elif is_of_torch:
            reason = f"is the disk full? {reason}"
        raise OSError(
            f"{folder}: could not be saved ({reason}); once there is room, the run goes on from its last complete "
            "checkpoint"
        ) from error


class PointTrainer(Trainer):
    """A Trainer that knows `epoch_cosine`, `weight_decay_on` and `two_steps_per_batch` of `PointTrainingArguments`.

    It also judges all rows: the stock Trainer leaves the rows of an incomplete last batch out of evaluation too when
    `dataloader_drop_last` is set for training. Its evaluations give the plain loss of the model, where the stock
    Trainer smooths labels in evaluation as in training: losses of runs with and without smoothing, and of
    `hf-any3d evaluate`, then mean the same. And it may be killed while it saves: it goes on from complete checkpoints
    alone, see `checkpoint_to_resume`, and what it leaves in the output directory is whole or does not open.
    """

    args: PointTrainingArguments
    # For model cards, which say what a loss is.
    judges_by_plain_loss = True
    report: RunReport | None = None
    """What to write as metrics.json behind the model, which tells that all of it is there."""

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, from a complete checkpoint where one is asked for; see Trainer."""
        if resume_from_checkpoint not in (None, False):
            resume_from_checkpoint = checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint)
        trained = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.args.should_save:
            # A run that was killed while it removed old checkpoints, and had nothing more to save, has some left.
            make_room(Path(self.args.output_dir))
            rotate_checkpoints(
                self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        return trained

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        # A resumed state names the best checkpoint by the path that it had then.
        trained = super()._init_training_state(*args, **kwargs)
        state = self.state
        if state.best_global_step:
            own = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            known = [own, *([] if state.best_model_checkpoint is None else [Path(state.best_model_checkpoint)])]
            sound = [str(path) for path in known if path.is_dir() and why_incomplete(path) is None]
            state.best_model_checkpoint = sound[0] if sound else None
            if not sound:
                logger.warning("%s: is gone; the best weights are chosen among those from here on", own)
                state.best_metric = state.best_global_step = None
        return trained

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            make_room(Path(self._get_output_dir(trial)), self.state.global_step)
        self.accelerator.wait_for_everyone()
        with naming_what_is_not_saved(
            Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        ):
            super()._save_checkpoint(model, trial)

    def _save_rng_state(self, output_dir: str) -> None:
        # The last of what all processes save; the trainer's state is written behind it, by one of them.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            list_files(Path(output_dir), self.state.global_step)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        is_result = folder.resolve() == Path(self.args.output_dir).resolve() and self.args.should_save
        if is_result:
            remove_model(folder)
        with naming_what_is_not_saved(folder):
            super()._save(output_dir, state_dict)
            if is_result and self.report is not None:
                self.report.save(folder / "metrics.json")

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
