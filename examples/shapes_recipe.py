"""The recipe for the embedded shapes: one place for what the quickstart and the learning benchmark share.

Every setting was chosen on validation parts of the training split; see benchmarks/results/learning.md.
"""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from peft import PeftModel, get_peft_model
from pointnet import PointNet
from torch import nn
from transformers import Trainer, TrainingArguments, set_seed
from transformers.modeling_outputs import SequenceClassifierOutput

from hf_any3d.data import AugmentedDataset, PointCloudCollator, build_transform
from hf_any3d.evaluation.classification import compute_classification_metrics
from hf_any3d.modeling.any2point import Any2PointForPointCloudClassification
from hf_any3d.tuners import GuidedAdapterConfig

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"

MODEL: dict[str, Any] = {
    "num_layers": 2,
    "tokenizer": "patch",
    "num_tokens": 32,
    "tokenizer_neighbors": 32,
    "tokenizer_width": 96,
    "token_scale": 1.5,
    "line_cells": 8.0,
    "pooling": ["max", "mean", "cls"],
    "head_widths": [256],
    "head_dropout": 0.3,
}
"""For `from_encoder_pretrained`."""

ADAPTER: dict[str, Any] = {"gate": 0.2, "voxel_size": 0.5}
"""For `GuidedAdapterConfig`."""

AUGMENTATION: dict[str, dict] = {
    "shuffle": {},
    "scale": {"low": 0.67, "high": 1.5, "per_axis": True},
    "shift": {"limit": 0.1},
    "jitter": {},
}
"""For `build_transform`."""

TRAINING: dict[str, Any] = {
    "num_train_epochs": 30,
    "per_device_train_batch_size": 16,
    "per_device_eval_batch_size": 32,
    "learning_rate": 2e-3,
    "weight_decay": 0.05,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 0.1,
    "max_grad_norm": 5.0,
    "dataloader_drop_last": True,
}
"""For `TrainingArguments`, the same for every model that is trained."""

LABEL_SMOOTHING = 0.1


def build_model(seed: int, names: list[str]) -> PeftModel:
    """The frozen pretrained encoder with an untrained tokenizer, guided adapters and head around it.

    Args:
        seed: governs everything that starts at random.
        names: names of the classes, in the order of their numbers.
    """
    return add_adapter(build_wrapper(seed, names), seed)


def build_wrapper(
    seed: int, names: list[str], encoder: str | os.PathLike | None = None, **changes: Any
) -> Any2PointForPointCloudClassification:
    """`build_model` before it gets its adapters.

    Args:
        seed: see `build_model`.
        names: see `build_model`.
        encoder: hub name or directory of another encoder than `ENCODER`.
        **changes: settings of `MODEL` to change, or others of `Any2PointConfig`.
    """
    set_seed(seed)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: i for i, name in enumerate(names)}}
    return Any2PointForPointCloudClassification.from_encoder_pretrained(
        encoder or ENCODER, **labels, **{**MODEL, **changes}
    )


def add_adapter(model: Any2PointForPointCloudClassification, seed: int, **changes: Any) -> PeftModel:
    """Put the recipe's guided adapters, with some settings changed, into a wrapped encoder."""
    set_seed(seed)
    return get_peft_model(model, GuidedAdapterConfig(**{**ADAPTER, **changes}))


def build_pointnet(seed: int, num_labels: int) -> PointNet:
    """The baseline without any encoder."""
    set_seed(seed)
    return PointNet(num_labels)


def training_arguments(output_dir: str | os.PathLike, seed: int, **changes: Any) -> TrainingArguments:
    """Arguments of a run by the recipe; nothing is saved or reported on the way.

    Args:
        output_dir: where `Trainer` may write.
        seed: order of the rows, augmentation, dropout.
        **changes: settings to change, by their names in `TrainingArguments`.
    """
    quiet = {
        "save_strategy": "no",
        "dataloader_pin_memory": torch.cuda.is_available(),
        "logging_strategy": "epoch",
        "report_to": "none",
        "remove_unused_columns": False,
    }
    settings = {**TRAINING, **quiet, "label_names": ["labels"], **changes}
    return TrainingArguments(output_dir=os.fspath(output_dir), seed=seed, **settings)


def build_trainer(model: nn.Module, arguments: TrainingArguments, train: Dataset, **settings: Any) -> Trainer:
    """A stock `Trainer` that augments the training rows and measures accuracy and mean class accuracy.

    Args:
        model: any point cloud classifier.
        arguments: see `training_arguments`.
        train: training rows with `points` and `label`.
        **settings: further arguments of `Trainer`, such as `eval_dataset` (see `plain_rows`) or `callbacks`.
    """
    return Trainer(
        model,
        arguments,
        train_dataset=AugmentedDataset(train, build_transform(AUGMENTATION)),
        data_collator=PointCloudCollator(),
        compute_metrics=compute_classification_metrics,
        compute_loss_func=smoothed_loss,
        **settings,
    )


def smoothed_loss(
    outputs: SequenceClassifierOutput, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Cross-entropy with label smoothing; `Trainer`'s own smoothing asks for a model with a config.

    Args:
        outputs: what a classifier returns.
        labels: `(batch,)` class numbers.
        num_items_in_batch: rows of the whole optimisation step, where it consists of several batches.
    """
    total = nn.functional.cross_entropy(outputs.logits, labels, label_smoothing=LABEL_SMOOTHING, reduction="sum")
    return total / (len(labels) if num_items_in_batch is None else num_items_in_batch)


def evaluate(trainer: Trainer, dataset: Dataset) -> dict[str, float]:
    """Accuracy, mean class accuracy and loss on all rows of a split.

    Training leaves an incomplete last batch out, and `Trainer` would do the same here: rows would go unmeasured.
    """
    trainer.args.dataloader_drop_last = False
    return trainer.predict(plain_rows(dataset), metric_key_prefix="eval").metrics


def plain_rows(dataset: Dataset) -> Dataset:
    """Rows for evaluation: points and label as they are."""
    return dataset.select_columns(["points", "label"]).with_format("numpy")


def trained_parameters(model: nn.Module) -> int:
    """How many numbers training changes."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def few_shapes(dataset: DatasetDict, shots: int, seed: int) -> DatasetDict:
    """Keep at most `shots` training rows of each class, drawn by `seed`; other splits stay."""
    labels = np.asarray(dataset["train"]["label"])
    order = np.random.default_rng(seed).permutation(len(labels))
    kept = [order[labels[order] == label][:shots] for label in np.unique(labels)]
    return DatasetDict({**dataset, "train": dataset["train"].select(np.sort(np.concatenate(kept)))})


def use_threads(threads: int | None) -> None:
    """Let torch use so many threads; None leaves the choice to torch."""
    if threads is not None:
        torch.set_num_threads(threads)
