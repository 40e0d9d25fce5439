"""The steps that the training programs share: setup, data, trainer, report, and saving the result."""

import logging
import math
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar, cast

import datasets
import transformers
from datasets import DatasetDict
from huggingface_hub import ModelCard
from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, PreTrainedModel, set_seed

from hf_any3d.data.normals import NEIGHBORS
from hf_any3d.evaluation.classification import Judgment
from hf_any3d.evaluation.scan_scores import recorded_scans, save_scan_scores
from hf_any3d.model_card import Subject, build_model_card
from hf_any3d.model_card.run_report import (
    RunReport,
    Stopwatch,
    best_step,
    count_parameters,
    peak_memory,
    training_facts,
)
from hf_any3d.model_card.subject import adapter_facts, hub_name
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.registry import OF_YOUR_FILES
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments
from hf_any3d.training.checkpoints import checkpoint_to_resume
from hf_any3d.training.requests import Request
from hf_any3d.training.rows import EpochCallback
from hf_any3d.training.schedules import HeadFirstCallback
from hf_any3d.training.splits import divide, load_rows, with_estimated_normals
from hf_any3d.training.trainer import PointTrainer
from hf_any3d.utils.atomic_files import LOCK, claim, release_claims, remove_temporaries
from hf_any3d.utils.messages import error_lines, shown_path
from hf_any3d.visualization.run_results import write_run_results

logger = logging.getLogger(__name__)

# Environment variables with the number of processes: of torchrun, and of the MPI launchers that accelerate supports.
_PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_Trainer = TypeVar("_Trainer", bound=PointTrainer)
_LAUNCHER = "python -m torch.distributed.run --nproc_per_node N PROGRAM"


def run_program(main: Callable[[], Any]) -> None:
    """Run a training program from the command line.

    Errors of arguments, files or the disk are printed as one line on stderr, with their notes below, and exit code 1;
    with HF_ANY3D_TRACEBACK=1 as a traceback.
    """
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        # These errors describe wrong input; a stack trace would hide their message.
        if os.environ.get("HF_ANY3D_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        sys.exit("error: " + "\n".join(error_lines(error)))
    finally:
        release_claims()


def start_run(arguments: PointTrainingArguments, logger: logging.Logger) -> str | None:
    """Set up logging on the main process, output directory and seed; return the checkpoint to resume from, if any."""
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO if arguments.should_log else logging.WARNING)
    # Only the main process prints, so that lines and bars appear once.
    if not arguments.should_log:
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    processes = arguments.world_size
    requested = next((os.environ[name] for name in _PROCESSES if os.environ.get(name, "").isdigit()), None)
    # Without a GPU, `accelerate launch` ignores --num_processes and starts a single process; it still sets the address
    # at which the processes would meet.
    by_accelerate = any(name.startswith("ACCELERATE_") for name in os.environ)
    if requested is None and processes == 1 and by_accelerate and "MASTER_ADDR" in os.environ:
        requested = "several"
    if requested not in (None, str(processes)):
        names = [name for name in (*_PROCESSES, "MASTER_ADDR") if name in os.environ]
        raise ValueError(
            f"the environment requests {requested} processes, but this run has {processes}; start it with "
            f"{_LAUNCHER}, or unset {' and '.join(names)}"
        )
    plural = "process" if processes == 1 else "processes"
    logger.info("Training with %d %s on %s", processes, plural, arguments.device)
    # All processes share the directory, and only one of them can lock it.
    if arguments.process_index == 0:
        claim_output(Path(arguments.output_dir))
    # Once the directory is locked, no other run changes its checkpoints.
    checkpoint = checkpoint_to_resume(arguments.output_dir, arguments.resume_from_checkpoint)
    if checkpoint is not None:
        logger.info("Resuming from %s; use another --output_dir to start again.", checkpoint)
    set_seed(arguments.seed)
    return checkpoint


def claim_output(folder: Path) -> None:
    """Lock an output directory, so that no other run writes there, and remove temporary files of a killed run."""
    if folder.is_symlink():
        logger.warning("%s is a symbolic link; the run is written to %s", folder, folder.resolve())
    # Files that start with an underscore are not pushed to the hub.
    claim(folder / LOCK, folder)
    remove_temporaries(folder)


def data_facts(data: DataArguments, splits: DatasetDict, validation: str) -> dict[str, Any]:
    """Return what a report lists about the data, such as the source of each split."""
    files = data.files
    on_hub = not files and "/" in data.dataset_name and hub_name(data.dataset_name) is not None
    # Loaders of local files are not named datasets.
    is_named = not files and not os.path.exists(data.dataset_name) and data.dataset_name not in OF_YOUR_FILES
    # A card is public: it names files, not the directories of this machine.
    name = data.train_file or (data.dataset_name if is_named else data.data_dir or data.dataset_name)
    estimates = data.estimate_normals
    return {
        "name": name if is_named else Path(name).name,
        "files": files,
        "options": data.dataset_options,
        "rows": {split: len(rows) for split, rows in splits.items()},
        **({"trained on": data.train_splits} if len(data.train_splits) > 1 else {}),
        "validation": validation,
        "points": data.num_points,
        "features": data.features,
        **({"normals": f"estimated from {NEIGHBORS} neighbors where a cloud has none"} if estimates else {}),
        "augmentation": data.augment,
        "on_hub": on_hub,
        "hub_type": data.dataset_name if is_named else "custom",
    }


def build_trainer(
    model: nn.Module,
    arguments: PointTrainingArguments,
    train_rows: Any,
    validation_rows: Any,
    processor: PointCloudProcessor,
    trainer_class: type[_Trainer] = PointTrainer,
    **trainer_arguments: Any,
) -> _Trainer:
    """Build a trainer that sets the epoch of its training rows and stores the processor with the model.

    Without validation rows, on which weights are selected, evaluation is switched off and the last weights are kept.
    `trainer_arguments` are further arguments of Trainer, such as `data_collator` and `compute_metrics`.
    """
    if validation_rows is None:
        # Nothing to evaluate, and so nothing to select the weights by.
        arguments.eval_strategy = "no"
        arguments.load_best_model_at_end = False
    if arguments.dataloader_drop_last and 0 < len(train_rows) < arguments.train_batch_size * arguments.world_size:
        # All rows are one incomplete batch, without which there would be no step.
        arguments.dataloader_drop_last = False
        arguments.per_device_train_batch_size = math.ceil(len(train_rows) / arguments.world_size)
    if arguments.head_epochs and (not isinstance(model, PreTrainedModel) or arguments.world_size > 1):
        raise ValueError(f"--head_epochs {arguments.head_epochs} is not for an adapter or several processes")
    first = [HeadFirstCallback(arguments.head_epochs)] if arguments.head_epochs else []
    return trainer_class(
        model,
        arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=processor,
        callbacks=[EpochCallback(train_rows), *first],
        **trainer_arguments,
    )


class TrainingTask(Request, ABC):
    """Request of a training with the steps in which it is unlike others; `train` runs it."""

    model: Any
    data: DataArguments
    training: PointTrainingArguments
    points_are_labeled: ClassVar[bool] = False
    usage: ClassVar[str]
    """Command that runs a saved model, {} for its name."""

    def divide(self, rows: DatasetDict) -> tuple[DatasetDict, str]:
        """Return the splits to train and evaluate on, and where the validation split comes from."""
        return divide(rows, self.data)

    @abstractmethod
    def build(self, splits: DatasetDict) -> tuple[nn.Module, Any]:
        """Build model and processor."""

    @abstractmethod
    def build_trainer(self, model: Any, splits: DatasetDict, processor: Any) -> PointTrainer:
        """Build the trainer, by `build_trainer`."""

    def fit(self, trainer: PointTrainer, checkpoint: str | None) -> None:
        """Train the model."""
        trainer.train(resume_from_checkpoint=checkpoint)

    @abstractmethod
    def evaluate(self, trainer: Any, splits: DatasetDict, processor: Any) -> Judgment:
        """Return metrics, and scores of classes, of the splits that are not trained on."""

    def data_facts(self) -> dict[str, Any]:
        """Return what the report lists about the data beside `data_facts`."""
        return {}

    def start(self) -> dict[str, Any]:
        """Return what the report lists about the start of the training."""
        return self.model.start()


def train(task: TrainingTask, rows: DatasetDict | None = None) -> RunReport:
    """Train and evaluate a model; write model, card and metrics.json, and push them if requested.

    `rows` are the data if they are loaded, see `load_rows`.
    """
    stopwatch = Stopwatch()
    arguments = task.training
    checkpoint = start_run(arguments, logger)
    # The first process fills the cache, from which the others read.
    with arguments.main_process_first(desc="loading the data"):
        splits, origin = task.divide(load_rows(task.data, task.points_are_labeled) if rows is None else rows)
    model, processor = task.build(splits)
    with arguments.main_process_first(desc="estimating normals"):
        splits = with_estimated_normals(splits, processor)
    # Before training, as loading the best adapter freezes some of them.
    parameters = count_parameters(model)
    trainer = task.build_trainer(model, splits, processor)
    with stopwatch.part("training"):
        task.fit(trainer, checkpoint)
    with stopwatch.part("evaluation"):
        scores = task.evaluate(trainer, splits, processor)
    if trainer.is_world_process_zero():
        save_scan_scores(arguments.output_dir, recorded_scans(trainer, splits))
    report, name = save_and_push(
        trainer,
        stopwatch,
        scores,
        data=data_facts(task.data, splits, origin) | task.data_facts(),
        parameters=parameters,
        num_points=task.data.num_points,
        checkpoint=checkpoint,
        start=task.start(),
    )
    if rows is None:  # otherwise the model is a part of another one, in a folder that is soon gone
        logger.info("Model, card and metrics.json: %s. Try: %s", name, task.usage.format(name))
    return report


def figures(report: RunReport) -> list[str]:
    """Return the metrics of each split as a line of text."""
    lines = []
    for split, metrics in report.metrics.items():
        # Counts and texts among the metrics are left out.
        values = "   ".join(f"{key} {value:.4f}" for key, value in metrics.items() if isinstance(value, float))
        count = report.data["rows"].get(split)
        lines.append(f"{split:<12} {values}" + (f"   on {count} clouds" if count is not None else ""))
    return lines


def save_and_push(
    trainer: PointTrainer,
    stopwatch: Stopwatch,
    scores: Judgment,
    *,
    data: Mapping[str, Any],
    parameters: tuple[int, int],
    num_points: int,
    checkpoint: str | None,
    encoder: dict[str, Any] | None = None,
    start: dict[str, Any] | None = None,
    schedules: dict[str, Any] | None = None,
) -> tuple[RunReport, str]:
    """Save model, card, page of results and metrics.json, and push them with `push_to_hub`.

    The fields of the report are the metrics and scores of classes, facts about the data, which have a `name`, the
    parameters by `count_parameters` before training (loading the best adapter freezes some), and facts about the
    encoder, by default those of the config, the start and the schedules.

    Returns:
        The report, and the name to load the model by: a repository, or the output directory.
    """
    metrics, class_scores = scores
    model = trainer.model
    arguments = trainer.args
    # Facts are those of the model in a PeftModel.
    inner = cast(PreTrainedModel, model.get_base_model() if isinstance(model, PeftModel) else model)
    report = RunReport(
        data=dict(data),
        encoder=encoder_facts(inner.config) if encoder is None else encoder,
        adapter=adapter_facts(model),
        trained_parameters=parameters[0],
        total_parameters=parameters[1],
        seconds=stopwatch.stop(),
        peak_memory=peak_memory(),
        metrics=metrics,
        class_accuracy=class_scores,
        selection=best_step(trainer),
        start=start or {},
        training={
            **training_facts(trainer),
            "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
            "processes": arguments.world_size,
            **(
                {"warmup_steps": arguments.get_warmup_steps(trainer.state.max_steps)}
                if arguments.epoch_cosine is None
                else {"lr_scheduler": "epoch_cosine", "epoch_cosine": arguments.epoch_cosine}
            ),
            "weight_decay_on": arguments.weight_decay_on,
            "no_weight_decay": arguments.no_weight_decay,
            **({"always_weight_decay": arguments.always_weight_decay} if arguments.always_weight_decay else {}),
            **({"learning_rate_factors": arguments.learning_rate_factors} if arguments.learning_rate_factors else {}),
            **({"few_tokens": arguments.few_tokens} if arguments.few_tokens else {}),
            "max_grad_norm": arguments.max_grad_norm,
            **({"two_steps_per_batch": True} if arguments.two_steps_per_batch else {}),
            "device": arguments.device.type,
            "resumed_from": checkpoint,
            **(schedules or {}),
        },
    )
    # Only the main process knows the repository.
    name = trainer.hub_model_id if arguments.push_to_hub and trainer.hub_model_id else arguments.output_dir

    def card() -> ModelCard:
        subject = Subject.from_model(trainer.accelerator.unwrap_model(trainer.model), report, num_points)
        return build_model_card(subject, name, license=arguments.license)

    # One process writes the page for all.
    if trainer.is_world_process_zero():
        write_run_results(
            arguments.output_dir,
            title=shown_path(name),
            history=trainer.state.log_history,
            metrics=metrics,
            class_scores=class_scores,
            confusions=getattr(trainer, "confusions", {}),
        )
    trainer.build_model_card = card  # built when it is written, see `write_trainer_card`
    # metrics.json is written last: it marks the run as complete.
    if trainer.args.push_to_hub:
        # Trainer pushes inside its own call, which saves the model first; the report then follows the model in
        # `_save`.
        trainer.report = report
        trainer.push_to_hub()
    else:
        trainer.save_model()
        trainer.create_model_card()
        if trainer.is_world_process_zero():
            report.save(Path(trainer.args.output_dir) / "metrics.json")
    release_claims()
    return report, name


def encoder_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """Return name, type, tower, layers, revision and checksum of an encoder, or of the one that it was trained from.

    Empty for a model without a frozen encoder.
    """
    if getattr(config, "encoder_config", None) is None:
        return {}
    facts = {
        # The encoder's weights are stored with the model if they were trained, and then no name is in the config.
        "name": getattr(config, "encoder_name_or_path", None) or config.encoder_trained_from,
        "model_type": config.encoder_config.model_type,
        "tower": getattr(config, "encoder_tower", None),
        "layers": config.encoder_config.num_hidden_layers,
        "revision": getattr(config, "encoder_revision", None),
        "checksum": getattr(config, "encoder_checksum", None),
    }
    weights = getattr(config, "encoder_weights", "pretrained")
    return facts if weights == "pretrained" else {**facts, "weights": weights}
