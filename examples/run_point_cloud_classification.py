"""Trains a classifier of point clouds on a frozen pretrained encoder.

With arguments, or with a JSON or YAML file of them as the only one:

    python examples/run_point_cloud_classification.py --output_dir out/shapes --peft guided_adapter \
        --encoder_name_or_path sentence-transformers/all-MiniLM-L6-v2 --augment scale shift --num_train_epochs 40
    python examples/run_point_cloud_classification.py recipe.yaml
    python -m torch.distributed.run --nproc_per_node 2 examples/run_point_cloud_classification.py recipe.yaml

It leaves the model, a model card filled from the run and metrics.json in the output directory. A validation split
chooses the weights; the test split is looked at once, at the end.
"""

import logging
import sys
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import transformers
from datasets import ClassLabel, Dataset, DatasetDict
from peft import get_peft_model
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed

from hf_any3d import Any2PointForPointCloudClassification, PointCloudProcessor
from hf_any3d.data import PointCloudCollator, load_point_dataset, validation_split
from hf_any3d.training.adapters import build_peft_config
from hf_any3d.training.arguments import json_mapping, parse_arguments
from hf_any3d.training.checkpoints import checkpoint_to_resume
from hf_any3d.training.judging import judge_splits
from hf_any3d.training.metrics import compute_classification_metrics
from hf_any3d.training.model_card import build_model_card, keep_model_card
from hf_any3d.training.report import RunReport, Stopwatch, count_parameters
from hf_any3d.training.rows import EpochCallback, evaluation_rows, training_rows
from hf_any3d.training.trainer_report import config_of, report_run

logger = logging.getLogger(__name__)


@dataclass
class ModelArguments:
    """What is trained around which encoder."""

    encoder_name_or_path: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Hub name or directory of a pretrained text, vision or audio encoder; it stays frozen."},
    )
    tower: str | None = field(
        default=None, metadata={"help": "Encoder of a composite checkpoint: text, vision or audio."}
    )
    encoder_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the encoder."})
    num_layers: int | None = field(default=None, metadata={"help": "Use the encoder's first layers only."})
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, …"})
    num_tokens: int | None = field(default=None, metadata={"help": "Tokens that a cloud becomes."})
    tokenizer_neighbors: int | None = field(default=None, metadata={"help": "Points in a neighbourhood."})
    model_config: dict | str | None = field(
        default=None, metadata={"help": "JSON object with any further settings of the model's config."}
    )

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        for name in ("num_tokens", "tokenizer_neighbors"):
            if getattr(self, name) is not None:
                self.model_config[name] = getattr(self, name)


@dataclass
class DataArguments:
    """What it is trained on."""

    dataset_name: str = field(
        default="shapes",
        metadata={"help": "Name in the catalogue (shapes, folder, parquet, …) or of a hub repository (owner/name)."},
    )
    data_dir: str | None = field(default=None, metadata={"help": "Where the files of the dataset lie."})
    dataset_options: dict | str | None = field(
        default=None, metadata={"help": "JSON object with further options of the dataset, such as a variant."}
    )
    train_file: str | None = field(default=None, metadata={"help": "Parquet file, instead of a dataset's name."})
    validation_file: str | None = field(default=None, metadata={"help": "Parquet file that chooses the weights."})
    test_file: str | None = field(default=None, metadata={"help": "Parquet file that only reports."})
    validation_fraction: float = field(
        default=0.2,
        metadata={"help": "Share of the training split to choose the weights by, where there is no validation split."},
    )
    validation_seed: int = field(
        default=0, metadata={"help": "Draws that share; apart from --seed, so that runs choose by the same clouds."}
    )
    group_column: str | None = field(
        default=None,
        metadata={"help": "Rows with equal values stay together; by default the column 'group', if any."},
    )
    num_points: int = field(default=1024, metadata={"help": "Points of a cloud that the model sees."})
    features: list[str] = field(
        default_factory=lambda: ["xyz"], metadata={"help": "Channels of a point: xyz, then any of rgb and normals."}
    )
    up_axis: str = field(default="y", metadata={"help": "The axis that points up; rotations turn about it."})
    augment: list[str] = field(
        default_factory=list,
        metadata={"help": "Transforms of training clouds in order, such as: scale rotate:axis=z,limit=0.5 jitter."},
    )
    max_train_samples: int | None = field(default=None, metadata={"help": "Train on the first so many rows."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Judge on the first so many rows."})

    def __post_init__(self):
        self.dataset_options = json_mapping(self.dataset_options, "dataset_options")
        if self.train_file is None and (self.validation_file or self.test_file):
            raise ValueError("--validation_file and --test_file need --train_file")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"--validation_fraction {self.validation_fraction}; expected at least 0 and less than 1")


@dataclass
class AdapterArguments:
    """Which PEFT method adapts the encoder."""

    peft: str = field(
        default="guided_adapter",
        metadata={"help": "PEFT method: guided_adapter, lora, ia3, …; none trains tokenizer and head alone."},
    )
    peft_config: dict | str | None = field(default=None, metadata={"help": "JSON object with settings of the method."})

    def __post_init__(self):
        self.peft_config = json_mapping(self.peft_config, "peft_config")


@dataclass
class PointTrainingArguments(TrainingArguments):
    """Trainer's own arguments, with defaults for point clouds."""

    label_names: list[str] | None = field(default_factory=lambda: ["labels"])
    remove_unused_columns: bool = field(default=False)
    eval_strategy: str = field(default="epoch")
    save_strategy: str = field(default="epoch")
    save_total_limit: int | None = field(default=2)
    load_best_model_at_end: bool = field(default=True)
    metric_for_best_model: str | None = field(default="accuracy")
    logging_steps: float = field(default=20)
    ddp_find_unused_parameters: bool | None = field(default=False)
    per_device_train_batch_size: int = field(default=16)
    per_device_eval_batch_size: int = field(default=32)
    learning_rate: float = field(default=1e-3)
    weight_decay: float = field(default=0.05)
    warmup_steps: float = field(default=0.05)
    lr_scheduler_type: str = field(default="cosine")
    num_train_epochs: float = field(default=40)


def load_splits(arguments: DataArguments) -> tuple[DatasetDict, str]:
    """Splits to train, choose and report on, and where the one to choose by comes from."""
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
            splits, arguments.validation_fraction, arguments.validation_seed, group_column=group_column
        )
        origin = f"{arguments.validation_fraction:g} of the training split, seed {arguments.validation_seed}"
        origin += f", whole groups of {group_column!r}" if group_column else ""
    for split, most in (
        ("train", arguments.max_train_samples),
        ("validation", arguments.max_eval_samples),
        ("test", arguments.max_eval_samples),
    ):
        if most is not None and split in splits:
            splits[split] = splits[split].select(range(min(most, len(splits[split]))))
    return splits, origin


def class_names(rows: Dataset) -> list[str]:
    """Names of the classes to learn.

    Raises:
        ValueError: Rows without classes.
    """
    label = rows.features.get("label")
    if not isinstance(label, ClassLabel):
        raise ValueError(f"the training split has label {label}; expected a ClassLabel, text or whole numbers from 0")
    return label.names


def build_model(
    arguments: ModelArguments, adapter: AdapterArguments, classes: list[str], in_channels: int
) -> nn.Module:
    """The frozen encoder with tokenizer, head and adapter around it."""
    model = Any2PointForPointCloudClassification.from_encoder_pretrained(
        arguments.encoder_name_or_path,
        tower=arguments.tower,
        revision=arguments.encoder_revision,
        num_layers=arguments.num_layers,
        attn_implementation=arguments.attn_implementation,
        id2label=dict(enumerate(classes)),
        label2id={name: number for number, name in enumerate(classes)},
        **{"in_channels": in_channels, **arguments.model_config},
    )
    if adapter.peft.lower() == "none":
        return model
    return get_peft_model(model, build_peft_config(adapter.peft, model, adapter.peft_config))


def build_trainer(
    model: nn.Module,
    arguments: PointTrainingArguments,
    data: DataArguments,
    splits: DatasetDict,
    processor: PointCloudProcessor,
) -> Trainer:
    """A stock Trainer; without a validation split it neither evaluates nor chooses."""
    if "validation" not in splits:
        arguments.eval_strategy, arguments.load_best_model_at_end = "no", False
    train_rows = training_rows(splits["train"], processor, data.augment, seed=arguments.seed)
    return Trainer(
        model,
        arguments,
        train_dataset=train_rows,
        eval_dataset=evaluation_rows(splits["validation"], processor) if "validation" in splits else None,
        processing_class=processor,
        data_collator=PointCloudCollator(),
        compute_metrics=compute_classification_metrics,
        callbacks=[EpochCallback(train_rows)],
    )


def main(argv: list[str] | None = None) -> RunReport:
    """Train, judge, write model, card and metrics.json, and push them where that is wanted."""
    stopwatch = Stopwatch()
    kinds = (ModelArguments, DataArguments, AdapterArguments, PointTrainingArguments)
    model_arguments, data, adapter, arguments = parse_arguments(kinds, sys.argv[1:] if argv is None else argv)
    logging.basicConfig(format="%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    logger.setLevel(logging.INFO if arguments.should_log else logging.WARNING)
    if not arguments.should_log:
        transformers.logging.disable_progress_bar()
        datasets.disable_progress_bars()
    checkpoint = checkpoint_to_resume(arguments.output_dir, arguments.resume_from_checkpoint)
    if checkpoint is not None:
        logger.info("Going on from %s; another --output_dir begins anew.", checkpoint)
    set_seed(arguments.seed)

    with arguments.main_process_first(desc="loading the data"):
        splits, origin = load_splits(data)
    classes = class_names(splits["train"])
    processor = PointCloudProcessor(num_points=data.num_points, features=data.features, up_axis=data.up_axis)
    model = build_model(model_arguments, adapter, classes, in_channels=3 * len(data.features))
    parameters = count_parameters(model)
    trainer = build_trainer(model, arguments, data, splits, processor)
    with stopwatch.part("training"):
        trainer.train(resume_from_checkpoint=checkpoint)
    with stopwatch.part("evaluation"):
        judged = {s: evaluation_rows(splits[s], processor) for s in ("validation", "test") if s in splits}
        metrics, class_accuracy = judge_splits(trainer, judged, classes)

    report = report_run(
        trainer,
        data={
            "name": data.train_file or data.dataset_name,
            "options": data.dataset_options,
            "rows": {split: len(rows) for split, rows in splits.items()},
            "validation": origin,
            "points": data.num_points,
            "features": data.features,
            "augmentation": data.augment,
            "on_hub": data.train_file is None and "/" in data.dataset_name,
        },
        parameters=parameters,
        seconds=stopwatch.stop(),
        metrics=metrics,
        class_accuracy=class_accuracy,
        resumed_from=checkpoint,
    )
    name = trainer.hub_model_id if arguments.push_to_hub else arguments.output_dir
    keep_model_card(trainer, build_model_card(report, config_of(model), name, num_points=data.num_points))
    if trainer.is_world_process_zero():
        report.save(Path(arguments.output_dir) / "metrics.json")
    if arguments.push_to_hub:
        trainer.push_to_hub()
    else:
        trainer.save_model()
        trainer.create_model_card()
    logger.info("Model, card and metrics.json: %s. Try: hf-any3d predict FILE --model %s", name, name)
    return report


if __name__ == "__main__":
    main()
