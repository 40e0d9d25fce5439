"""The steps that the training programs share, between their arguments and what they leave behind."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import datasets
import transformers
from datasets import DatasetDict, concatenate_datasets
from huggingface_hub import ModelCard
from peft import get_peft_model
from torch import nn
from transformers import Trainer, set_seed

from hf_any3d.atomic_files import claim, release_claims, remove_temporaries
from hf_any3d.data import load_point_dataset, validation_split
from hf_any3d.messages import one_line
from hf_any3d.model_card import Subject, build_model_card
from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.model_card.subject import hub_name
from hf_any3d.modeling.any2point import Any2PointPreTrainedModel
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training.adapters import build_peft_config, drop_attention
from hf_any3d.training.checkpoints import checkpoint_to_resume
from hf_any3d.training.report import report_run
from hf_any3d.training.rows import EpochCallback, ProcessedDataset
from hf_any3d.training.settings import AdapterArguments, DataArguments, ModelArguments, PointTrainingArguments
from hf_any3d.training.trainer import PointTrainer

logger = logging.getLogger(__name__)

# What launchers say the number of processes in: torchrun, and the MPI ones that accelerate knows.
_PROCESSES = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
_LAUNCHER = "python -m torch.distributed.run --nproc_per_node N PROGRAM"


def run_program(main: Callable[[], Any]) -> None:
    """Run a training program from the command line.

    What is wrong with arguments, files or the disk ends as one line on stderr and exit code 1; with
    ANY3D_TRACEBACK=1 as a traceback.
    """
    try:
        main()
    except (ValueError, OSError, ImportError) as error:
        if os.environ.get("ANY3D_TRACEBACK", "") not in ("", "0"):
            traceback.print_exc()
        sys.exit(f"error: {one_line(error)}")
    finally:
        release_claims()


def check_processes(processes: int, environment: Mapping[str, str] | None = None) -> None:
    """Refuse to run as fewer or more processes than a launcher was asked for.

    Args:
        processes: How many there are, as the training arguments see them.
        environment: Where launchers leave their wishes; `os.environ` by default.

    Raises:
        ValueError: Another number was asked for.
    """
    environment = os.environ if environment is None else environment
    asked = next((environment[name] for name in _PROCESSES if environment.get(name, "").isdigit()), None)
    if asked is not None and int(asked) != processes:
        raise ValueError(
            f"the environment asks for {asked} processes, and this run has {processes}; start it by {_LAUNCHER}, or "
            f"unset {' and '.join(name for name in _PROCESSES if name in environment)}"
        )
    # `accelerate launch` without a GPU starts a single process whatever --num_processes says. Of the wish it leaves
    # the address where the processes were to meet.
    by_accelerate = any(name.startswith("ACCELERATE_") for name in environment)
    if asked is None and processes == 1 and by_accelerate and "MASTER_ADDR" in environment:
        raise ValueError(
            "accelerate launch was asked for several processes and has started a single one, as it does on CPUs; "
            f"start it by {_LAUNCHER}, or unset MASTER_ADDR if one process is meant"
        )


def begin(arguments: PointTrainingArguments, logger: logging.Logger) -> str | None:
    """Set up logging and the seed, and say how many processes there are.

    Args:
        arguments: The run's.
        logger: The program's own; talks on the main process only.

    Returns:
        The checkpoint to go on from, or None.

    Raises:
        ValueError: The launcher was asked for another number of processes.
        FileNotFoundError: A checkpoint was asked for that is not there, or the output directory is a link that leads
            nowhere.
        BlockingIOError: Another run writes to the output directory.
    """
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO if arguments.should_log else logging.WARNING)
    if not arguments.should_log:
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    check_processes(arguments.world_size)
    plural = "process" if arguments.world_size == 1 else "processes"
    logger.info("Training with %d %s on %s", arguments.world_size, plural, arguments.device)
    if arguments.process_index == 0:
        claim_output(Path(arguments.output_dir))
    checkpoint = checkpoint_to_resume(arguments.output_dir, arguments.resume_from_checkpoint)
    if checkpoint is not None:
        logger.info("Going on from %s; another --output_dir begins anew.", checkpoint)
    set_seed(arguments.seed)
    return checkpoint


def claim_output(folder: Path) -> None:
    """Keep other runs out of an output directory, and remove what a killed one was writing there.

    Raises:
        FileNotFoundError: A symbolic link that leads nowhere.
        BlockingIOError: Another run writes there.
    """
    if folder.is_symlink():
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: a symbolic link to {os.readlink(folder)}, which is no directory")
        logger.warning("%s is a symbolic link; the run is written to %s", folder, folder.resolve())
    # Files with an underscore first are not pushed to the hub.
    claim(folder / "_lock", folder)
    remove_temporaries(folder)


def load_splits(arguments: DataArguments) -> tuple[DatasetDict, str]:
    """Load what a program's arguments name, with a part of the training rows to choose by.

    Returns:
        Splits `train`, `validation` (unless it is neither there nor wanted) and perhaps `test`, and where the one to
        choose by comes from, in words.

    Raises:
        ValueError: No training split, or one that is to be trained on is not there.
    """
    if arguments.train_file is not None:
        files = {"train": arguments.train_file, "validation": arguments.validation_file, "test": arguments.test_file}
        files = {split: file for split, file in files.items() if file is not None}
        splits = load_point_dataset("parquet", data_files=files, **arguments.dataset_options)
    else:
        splits = load_point_dataset(arguments.dataset_name, data_dir=arguments.data_dir, **arguments.dataset_options)
    if "train" not in splits:
        raise ValueError(f"{arguments.dataset_name}: no split 'train'; there are {', '.join(splits)}")
    origin = "the dataset's own split" if "validation" in splits else "none"
    if "validation" not in splits and arguments.validation_fraction > 0:
        columns = splits["train"].column_names
        group_column = arguments.group_column or ("group" if "group" in columns else None)
        splits = validation_split(
            splits,
            arguments.validation_fraction,
            arguments.validation_seed,
            group_column=group_column,
            stratify="label" in columns,
        )
        origin = f"{arguments.validation_fraction:g} of the training split, seed {arguments.validation_seed}"
        origin += f", whole groups of {group_column!r}" if group_column else ""
    if missing := [name for name in arguments.train_splits if name not in splits]:
        raise ValueError(f"--train_splits names {missing[0]!r}; there are {', '.join(splits)}")
    if len(arguments.train_splits) > 1:
        together = concatenate_datasets([splits[name] for name in arguments.train_splits])
        rest = {name: rows for name, rows in splits.items() if name not in arguments.train_splits}
        splits = DatasetDict(train=together, **rest)
        origin = origin if "validation" in splits else "none"
    for split, most in (
        ("train", arguments.max_train_samples),
        ("validation", arguments.max_eval_samples),
        ("test", arguments.max_eval_samples),
    ):
        if most is not None and split in splits:
            splits[split] = splits[split].select(range(min(most, len(splits[split]))))
    return splits, origin


def build_adapted_model(
    model_class: type[Any2PointPreTrainedModel],
    arguments: ModelArguments,
    adapter: AdapterArguments,
    labels: list[str],
    **config: Any,
) -> nn.Module:
    """The frozen encoder with tokenizer, head and adapter around it.

    Args:
        model_class: Says which head.
        arguments: Say which encoder.
        adapter: Says which adapter.
        labels: Names of the classes.
        **config: Further settings of the config; those of `arguments` win.
    """
    model = model_class.from_encoder_pretrained(
        arguments.encoder_name_or_path,
        tower=arguments.tower,
        revision=arguments.encoder_revision,
        num_layers=arguments.num_layers,
        attn_implementation=arguments.attn_implementation,
        id2label=dict(enumerate(labels)),
        label2id={name: number for number, name in enumerate(labels)},
        **{**config, **arguments.model_config},
    )
    if arguments.encoder_attention_dropout:
        drop_attention(model, arguments.encoder_attention_dropout)
    peft = (adapter.peft or "guided_adapter").lower()
    if peft == "full":
        model.unfreeze_encoder()
    if peft in ("none", "full"):
        return model
    return get_peft_model(model, build_peft_config(peft, model, adapter.peft_config))


def data_facts(data: DataArguments, splits: DatasetDict, validation: str) -> dict[str, Any]:
    """What a report tells about the data: among others where the clouds of each split come from."""
    files = {"train": data.train_file, "validation": data.validation_file, "test": data.test_file}
    files = {split: file for split, file in files.items() if file is not None}
    on_hub = not files and "/" in data.dataset_name and hub_name(data.dataset_name) is not None
    # Loaders of anybody's files are no datasets.
    is_named = not files and not os.path.exists(data.dataset_name) and data.dataset_name not in ("folder", "parquet")
    name = data.train_file or (data.dataset_name if is_named else data.data_dir or data.dataset_name)
    return {
        "name": name if is_named else Path(name).name,
        "files": files,
        "options": data.dataset_options,
        "rows": {split: len(rows) for split, rows in splits.items()},
        **({"trained on": data.train_splits} if len(data.train_splits) > 1 else {}),
        "validation": validation,
        "points": data.num_points,
        "features": data.features,
        "augmentation": data.augment,
        "on_hub": on_hub,
        "hub_type": data.dataset_name if is_named else "custom",
    }


def build_trainer(
    model: nn.Module,
    arguments: PointTrainingArguments,
    train_rows: ProcessedDataset,
    validation_rows: ProcessedDataset | None,
    processor: PointCloudProcessor,
    **settings: Any,
) -> Trainer:
    """A Trainer that tells its training rows the epoch; without validation rows it neither judges nor chooses.

    Args:
        model: What is trained.
        arguments: The run's; changed where there are no validation rows.
        train_rows: Rows to train on.
        validation_rows: Rows to choose the weights by.
        processor: Stored with the model.
        **settings: Further arguments of Trainer, such as `data_collator` and `compute_metrics`.
    """
    if validation_rows is None:
        arguments.eval_strategy, arguments.load_best_model_at_end = "no", False
    return PointTrainer(
        model,
        arguments,
        train_dataset=train_rows,
        eval_dataset=validation_rows,
        processing_class=processor,
        callbacks=[EpochCallback(train_rows)],
        **settings,
    )


def leave_behind(
    trainer: Trainer,
    stopwatch: Stopwatch,
    scores: tuple[Mapping[str, Mapping[str, float]], Mapping[str, Mapping[str, float]]],
    *,
    data: Mapping[str, Any],
    parameters: tuple[int, int],
    num_points: int,
    checkpoint: str | None,
    **facts: Any,
) -> tuple[RunReport, str]:
    """Write model, card and metrics.json, and push them where that is wanted.

    Args:
        trainer: Has trained.
        stopwatch: Has run since the program began.
        scores: For each split its metrics, and for each split the scores of its classes.
        data: See `data_facts`.
        parameters: See `count_parameters`; counted before training.
        num_points: Points of a cloud that the model sees.
        checkpoint: Where the run went on from, if anywhere.
        **facts: `encoder`, `start` and `schedules`, see `report_run`.

    Returns:
        The report, and the name that others will open the model by: a repository, or the output directory.
    """
    metrics, class_scores = scores
    report = report_run(
        trainer,
        data=dict(data),
        parameters=parameters,
        seconds=stopwatch.stop(),
        metrics=metrics,
        class_accuracy=class_scores,
        resumed_from=checkpoint,
        **facts,
    )
    name = trainer.hub_model_id if trainer.args.push_to_hub else trainer.args.output_dir

    def card() -> ModelCard:
        subject = Subject.from_model(trainer.accelerator.unwrap_model(trainer.model), report, num_points)
        return build_model_card(subject, name, license=trainer.args.license)

    trainer.build_model_card = card  # built when it is written, see `write_trainer_card`
    # metrics.json comes behind the rest: it tells that the run is complete.
    if trainer.args.push_to_hub:
        trainer.report = report
        trainer.push_to_hub()
    else:
        trainer.save_model()
        trainer.create_model_card()
        if trainer.is_world_process_zero():
            report.save(Path(trainer.args.output_dir) / "metrics.json")
    release_claims()
    return report, name
