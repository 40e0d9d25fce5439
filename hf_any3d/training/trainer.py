"""The trainer of all programs: stock Trainer plus optimizer settings of released programs and complete checkpoints."""

import copy
import inspect
import json
import logging
import os
import re
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, replace
from math import ceil
from pathlib import Path
from typing import Any, cast

import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from safetensors import SafetensorError
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, SaveStrategy, TrainOutput, rotate_checkpoints

from hf_any3d.data import PointCloudCollator
from hf_any3d.model_card import write_trainer_card
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.kernels.joined_batches import joined_batches
from hf_any3d.modeling.layers.forward_contract import PointTokensMixin
from hf_any3d.modeling.layers.heads import ClassToken
from hf_any3d.modeling.pretrained_parts.mixin import LibraryModelMixin
from hf_any3d.training.arguments import PointTrainingArguments
from hf_any3d.training.checkpoints import (
    STATE,
    check_run,
    checkpoint_to_resume,
    find_problem,
    list_files,
    remove_incomplete,
)
from hf_any3d.training.faster_steps import CapturedSteps, compile_layers
from hf_any3d.training.processes import OwnNoise, joining_norms, keep_out_of_ddp, split_evenly
from hf_any3d.training.rows import StreamedRows
from hf_any3d.training.schedules import FewTokensFirst
from hf_any3d.utils.atomic_files import folder_inside, write_text

logger = logging.getLogger(__name__)
# Files that `_save` writes.
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


class PointTrainer(Trainer):
    """Trainer with `epoch_cosine`, `weight_decay_on`, `learning_rate_factors` and others of `PointTrainingArguments`.

    Evaluation differs from the stock Trainer in two points. It includes the incomplete last batch even if training
    drops it (`dataloader_drop_last`). And its loss has no label smoothing, so losses of runs with and without
    smoothing, and of `hf-any3d evaluate`, can be compared.

    In several processes it gives what one process with all clouds of a step would, except for random numbers such as
    dropout: see `hf_any3d.training.processes`.

    With the `TrainingArguments` of transformers, further settings have the defaults of `PointTrainingArguments`.

    It may be killed while saving: it resumes only from complete checkpoints, see `checkpoint_to_resume`, and the model
    in the output directory is either complete or cannot be loaded.
    """

    args: PointTrainingArguments
    model: nn.Module
    optimizer: torch.optim.Optimizer
    # Read by model cards, which describe the loss.
    judges_by_plain_loss = True
    report: RunReport | None = None
    """Report to write as metrics.json after the model, which marks it as complete."""
    build_model_card: Callable[[], ModelCard] | None = None
    """Builds the card instead of `write_trainer_card`, when it is written."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.add_callback(OwnNoise())
        if self.label_smoother is not None and self.compute_loss_func is not None:
            raise ValueError(
                f"--label_smoothing_factor {self.args.label_smoothing_factor} with a loss function of its own, which "
                "has no smoothing; expected 0"
            )
        if self._setting("index_in_workers"):
            core = self._bare_model
            if "point_index" not in inspect.signature(core.forward).parameters:
                raise ValueError(f"--index_in_workers: {type(core).__name__} takes no point_index; leave it out")
            # The collator computes for each batch what the model would compute from its points.
            collator = cast(PointCloudCollator, self.data_collator)
            self.data_collator = replace(collator, indexer=core.point_indexer)
        if shares := self._setting("few_tokens"):
            self.add_callback(FewTokensFirst(shares))
        self._compiles = self._setting("compile_layers")
        if self._compiles:
            compile_layers(self._bare_model)
        self._captured: CapturedSteps | None = None

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card of the model and its run, unless the model is of another library; see Trainer."""
        if isinstance(self._bare_model, LibraryModelMixin):
            write_trainer_card(self, *args, **kwargs)
        else:
            super().create_model_card(*args, **kwargs)

    def _setting(self, name: str) -> Any:
        """Return a field of PointTrainingArguments; its default where the arguments are transformers' own."""
        if hasattr(self.args, name):
            return getattr(self.args, name)
        default = PointTrainingArguments.__dataclass_fields__[name]
        return default.default if default.default is not MISSING else default.default_factory()  # type: ignore[misc]

    @property
    def rows_per_step(self) -> int | list[int]:
        """Rows of an optimizer step in all processes; one number for each kind of batches."""
        return self.args.train_batch_size * self.args.gradient_accumulation_steps * self.args.world_size

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train, if requested from a complete checkpoint; see Trainer."""
        if resume_from_checkpoint not in (None, False):
            resume_from_checkpoint = checkpoint_to_resume(self.args.output_dir, resume_from_checkpoint)
            if resume_from_checkpoint is not None:
                model = self.accelerator.unwrap_model(self.model)
                check_run(Path(resume_from_checkpoint), model, self.rows_per_step)
        with joining_norms(self.model, self._joins_batches):
            trained = super().train(resume_from_checkpoint, *args, **kwargs)
        if self.args.should_save:
            # A run that was killed while it removed old checkpoints may have left some.
            remove_incomplete(Path(self.args.output_dir))
            rotate_checkpoints(
                self.args.output_dir, self.args.save_total_limit, self.state.best_model_checkpoint, use_mtime=True
            )
        return trained

    @property
    def _bare_model(self) -> Any:
        model = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        return model.get_base_model() if isinstance(model, PeftModel) else model

    @property
    def _joins_batches(self) -> bool:
        return self._setting("join_batches") and self.args.world_size > 1

    def _wrap_model(self, model: nn.Module, training: bool = True, *args: Any, **kwargs: Any) -> nn.Module:
        is_ddp = self.args.world_size > 1 and not (self.is_fsdp_enabled or self.is_deepspeed_enabled)
        if training and (is_ddp or self.is_fsdp_enabled or self.is_deepspeed_enabled):
            if any(getattr(module, "updates_itself", False) for module in model.modules()):  # a codebook
                raise ValueError("code_ema_decay or code_restart_share in several processes, whose codes would differ")
        # Frozen weights are most of the model here; DDP would send them at the start.
        if training and model is self.model and is_ddp:
            keep_out_of_ddp(model)
        return super()._wrap_model(model, training, *args, **kwargs)

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        # The resumed state has the path that the best checkpoint had then.
        trained = super()._init_training_state(*args, **kwargs)
        state = self.state
        if state.best_global_step:
            # In the folder of this run, which may have been moved since.
            best = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.best_global_step}"
            places = [best]
            if state.best_model_checkpoint is not None:
                places.append(Path(state.best_model_checkpoint))
            complete = [str(path) for path in places if path.is_dir() and find_problem(path) is None]
            state.best_model_checkpoint = complete[0] if complete else None
            if not complete:
                logger.warning("%s does not exist any more; the best weights are selected among later ones", best)
                state.best_metric = state.best_global_step = None
        return trained

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        """Return whether the weights are the best so far; of equal ones, those with the lower loss.

        With few validation clouds equal accuracies are the rule, and the first of them would be the least trained.
        """
        before = self.state.best_metric
        state = self.state
        is_better = super()._determine_best_metric(metrics, trial)
        name = self.args.metric_for_best_model
        if is_better or name is None or state.best_global_step is None:
            return is_better
        value = metrics[name if name.startswith("eval_") else f"eval_{name}"]
        loss = metrics.get("eval_loss")
        losses = [log.get("eval_loss") for log in state.log_history if log["step"] == state.best_global_step]
        if value != before or loss is None or not any(loss < other for other in losses if other is not None):
            return False
        # As Trainer does for a better metric, of which this one is none.
        if self.args.save_strategy != SaveStrategy.NO:
            state.best_global_step = state.global_step
        return True

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if self.args.should_save:
            remove_incomplete(Path(self._get_output_dir(trial)), self.state.global_step)
        self.accelerator.wait_for_everyone()
        with _describing_failures(Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"):
            super()._save_checkpoint(model, trial)
        if self.args.should_save:
            _leave_out_places(
                Path(self._get_output_dir(trial), f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}", STATE)
            )

    def save_state(self) -> None:
        """Save the state as Trainer does, without the folder of the run."""
        super().save_state()
        if self.args.should_save:
            _leave_out_places(Path(self.args.output_dir, STATE))

    def _save_rng_state(self, output_dir: str) -> None:
        # All processes have saved everything but the trainer's state, which one of them writes next.
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            list_files(Path(output_dir), self.state.global_step, self.rows_per_step)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        folder = Path(self.args.output_dir if output_dir is None else output_dir)
        # Checkpoints are saved by the same method, and a report is written only with the result.
        is_result = folder.resolve() == Path(self.args.output_dir).resolve() and self.args.should_save
        with _describing_failures(folder):
            if not is_result:
                super()._save(output_dir, state_dict)
                # Other processes come here too, perhaps before the first one has made the folder.
                if self.args.should_save:
                    _save_arguments(self.args, folder)
                return
            with replacing_model(folder) as new:
                super()._save(str(new), state_dict)
                _save_arguments(self.args, new)
                if self.report is not None:
                    self.report.save(new / "metrics.json")

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of parameters with weight decay, by the type of their modules, not only by their names."""
        if self._setting("weight_decay_on") == "all":
            return [name for name, _ in model.named_parameters()]
        if self._setting("weight_decay_on") == "matrices":
            return decaying_parameters(
                model, self._setting("no_weight_decay"), always=self._setting("always_weight_decay")
            )
        # A parameter decays only if both rules say so, Trainer's and that of this package.
        by_name = set(super().get_decay_parameter_names(model))
        return [name for name in decaying_parameters(model, class_tokens=False) if name in by_name]

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | int | None:
        # Trainer counts labels alone, and averages losses without any by batches, of which the last may be smaller.
        model = self._bare_model
        if isinstance(model, PointTokensMixin):
            batch_samples = [
                batch
                if isinstance(batch.get("labels"), torch.Tensor)
                else {"labels": torch.zeros(len(batch[model.main_input_name]))}
                for batch in batch_samples
            ]
        return super()._get_num_items_in_batch(batch_samples, device)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss of a batch; see Trainer."""
        if model.training and self.label_smoother is not None and "labels" not in inputs:
            name = type(self.accelerator.unwrap_model(self.model)).__name__
            smoothing = self.args.label_smoothing_factor
            raise ValueError(f"--label_smoothing_factor {smoothing}: {name} is trained without labels; expected 0")
        # Capturing is for steps of training alone, which need no outputs.
        if model.training and not return_outputs and self._setting("cuda_graphs"):
            if self._captured is None:
                self._captured = CapturedSteps(model, self._bare_model)
            return self._captured.loss(inputs | self._loss_arguments(**kwargs))
        return super().compute_loss(model, inputs, return_outputs, **kwargs)

    def _loss_arguments(self, num_items_in_batch: torch.Tensor | int | None = None) -> dict[str, Any]:
        """Return what Trainer passes to models beside the batch."""
        if num_items_in_batch is None or not self.model_accepts_loss_kwargs:
            return {}
        return {"num_items_in_batch": torch.as_tensor(num_items_in_batch, device=self.args.device)}

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run forward and backward; with `two_steps_per_batch` also step, before gradients are clipped."""
        start = time.perf_counter()
        with joined_batches(self._joins_batches):
            loss = super().training_step(model, inputs, *args, **kwargs)
        if self._compiles:
            self._compiles = False
            logger.info("The first step took %.0f s, in which layers were compiled", time.perf_counter() - start)
        if self._setting("two_steps_per_batch") and self.accelerator.sync_gradients:
            # The regular step, after clipping, uses the same gradient.
            self.optimizer.step()
        return loss

    def prediction_step(self, *args: Any, **kwargs: Any) -> tuple[Any, Any, Any]:
        """Return loss, logits and labels of an evaluation batch, the loss without label smoothing."""
        smoother = self.label_smoother
        self.label_smoother = None
        try:
            return super().prediction_step(*args, **kwargs)
        finally:
            self.label_smoother = smoother

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Create the optimizer, with groups of their own for parameters with another learning rate."""
        # An optimizer that was passed to Trainer wins over the arguments.
        is_given = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if self._setting("learning_rate_factors") and not is_given:
            scale_learning_rates(
                optimizer, self.model if model is None else model, self._setting("learning_rate_factors")
            )
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Create the schedule of the learning rate."""
        # A scheduler that was passed to Trainer wins over the arguments.
        schedule = getattr(self.args, "epoch_schedule", None)
        if self.lr_scheduler is None and schedule is not None:
            # The last step of an epoch may have fewer batches, and counts as one.
            steps = ceil(len(self.get_train_dataloader()) / self.args.gradient_accumulation_steps)
            self.lr_scheduler = schedule.scheduler(optimizer or self.optimizer, max(1, steps))
            self._created_lr_scheduler = True
        return super().create_scheduler(num_training_steps, optimizer)

    def get_train_dataloader(self) -> DataLoader:
        """Return training batches; of streamed rows each process reads its own part."""
        args = self.args
        rows = self.train_dataset
        if args.world_size == 1 or not isinstance(rows, StreamedRows):
            return super().get_train_dataloader()
        return DataLoader(
            # Trainer would let one process read the stream and send parts of it, or let each read everything.
            rows.of_process(args.process_index, args.world_size),
            batch_size=args.train_batch_size,
            collate_fn=self.data_collator,
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
        )

    def _get_dataloader(self, *args: Any, is_training: bool = False, **kwargs: Any) -> DataLoader:
        # Trainer has one setting for all loaders; a dropped batch of an evaluation would change metrics.
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = drop_last and is_training
        try:
            loader = super()._get_dataloader(*args, is_training=is_training, **kwargs)
        finally:
            self.args.dataloader_drop_last = drop_last
        # Metrics are gathered from batches of equal size, without the rows that fill them up.
        if is_training:
            split_evenly(loader)
        return loader


def decaying_parameters(
    model: nn.Module, spared: Sequence[str] = (), class_tokens: bool = True, always: Sequence[str] = ()
) -> list[str]:
    """Return the names of parameters with weight decay: matrices and learned tokens, not biases, norms and vectors.

    Biases and norms of several views that are stored as one matrix count as biases and norms. Regular expressions name
    further, spared parameters, and those that `always` decay. Class tokens and their positions decay in the released
    programs.

    Source: released Any2Point, ACT and Point-BERT programs (weight decay 0 for one-dimensional parameters, biases, and
    tokens by name).
    """
    _check_patterns(model, "no_weight_decay", spared)
    _check_patterns(model, "always_weight_decay", always)
    names = []
    for path, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower()
        for name, parameter in module.named_parameters(recurse=False):
            # Class tokens are vectors here but (1, 1, hidden) in the released programs, where they decay.
            is_vector = parameter.dim() < 2 and not (class_tokens and isinstance(module, ClassToken))
            if not (is_vector or is_norm or "bias" in name or "norm" in name):
                names.append(f"{path}.{name}" if path else name)
    names = [name for name in names if not _matches(spared, name)]
    return names + [name for name, _ in model.named_parameters() if _matches(always, name) and name not in names]


def scale_learning_rates(optimizer: torch.optim.Optimizer, model: nn.Module, factors: Mapping[str, float]) -> None:
    """Move parameters of an optimizer that has not stepped yet into groups whose learning rate has another factor.

    Args:
        optimizer: The optimizer; in a new group, all but the rate is as in the one that the parameters come from.
        model: The model whose parameters it has.
        factors: Factors by regular expressions of names; the first that matches counts.

    Raises:
        ValueError: A regular expression matches no parameter of the model.
    """
    _check_patterns(model, "learning_rate_factors", factors)
    factor_of = {}
    for name, parameter in model.named_parameters():
        if pattern := next((pattern for pattern in factors if re.search(pattern, name)), None):
            factor_of[parameter] = factors[pattern]
    for group in list(optimizer.param_groups):
        moved = defaultdict(list)
        for parameter in group["params"]:
            moved[factor_of.get(parameter)].append(parameter)
        # It stays without parameters too: what Trainer logs is the rate of the first group.
        group["params"] = moved.pop(None, [])
        for factor, parameters in moved.items():
            optimizer.add_param_group({**group, "params": parameters, "lr": factor * group["lr"]})


def _check_patterns(model: nn.Module, option: str, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        if not any(re.search(pattern, name) for name, _ in model.named_parameters()):
            raise ValueError(f"{option} {pattern!r} matches no parameter of {type(model).__name__}")


def _matches(patterns: Iterable[str], name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns)


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return trained parameters as groups for a torch optimizer: with weight decay, and without.

    Class tokens, norms, gates, scales and biases have none.
    """
    names = set(decaying_parameters(model, class_tokens=False))
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    decaying = [parameter for name, parameter in trained.items() if name in names]
    others = [parameter for name, parameter in trained.items() if name not in names]
    return [{"params": decaying, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


@contextmanager
def replacing_model(folder: Path) -> Iterator[Path]:
    """Yield an empty folder to save a model in, whose files replace the model in `folder` at the end.

    Until then, and after an error such as a full disk, an earlier model stays. The card that is there is copied, for
    those that keep what people have written.
    """
    folder = folder.absolute()
    # In the folder, on the same disk; of its name, which cards and repositories are called by.
    with folder_inside(folder) as inside:
        new = inside / folder.name
        new.mkdir()
        if (folder / "README.md").is_file():
            shutil.copyfile(folder / "README.md", new / "README.md")
        yield new
        # No mixture of two models can be loaded: the report, with which a model counts as complete, is the first file
        # to go, and the last one to come.
        for pattern in _MODEL_FILES:
            for path in folder.glob(pattern):
                path.unlink()
        files = [path for path in sorted(new.rglob("*")) if path.is_file()]
        for path in sorted(files, key=lambda path: path.name == _MODEL_FILES[0]):
            target = folder / path.relative_to(new)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


def _save_arguments(arguments: Any, folder: Path) -> None:
    """Save the arguments of a training as Trainer does; of paths on this machine, their last part."""
    saved = copy.copy(arguments)
    for name, value in vars(saved).items():
        if isinstance(value, str) and os.path.isabs(value):
            setattr(saved, name, os.path.basename(os.path.normpath(value)))
    torch.save(saved, folder / TRAINING_ARGS_NAME)


def _leave_out_places(file: Path) -> None:
    """Name the best checkpoint in a stored state by its folder; a resumed run finds it in its own."""
    state = json.loads(file.read_text(encoding="utf-8"))
    if state.get("best_model_checkpoint"):
        state["best_model_checkpoint"] = os.path.basename(state["best_model_checkpoint"])
        write_text(file, json.dumps(state, indent=2, sort_keys=True) + "\n")


@contextmanager
def _describing_failures(folder: Path) -> Iterator[None]:
    """Convert errors of saving, such as a full disk, to an OSError that names the folder."""
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        # torch raises RuntimeError without the reason.
        is_torch_error = any(word in str(error) for word in ("PytorchStreamWriter", "inline_container", "iostream"))
        if isinstance(error, RuntimeError) and not is_torch_error or str(error).startswith(f"{folder}: "):
            raise
        reason = str(error).splitlines()[0]
        if isinstance(error, OSError) and error.errno:
            reason = os.strerror(error.errno)
        elif is_torch_error:
            reason = f"is the disk full? {reason}"
        raise OSError(
            f"{folder}: could not be saved ({reason}); with enough disk space, the run can be resumed from its last "
            "complete checkpoint"
        ) from error
