"""The quickstart's recipe before it was searched (`recipe.py`), with which all other studies train and did train.

Named as in `examples/quickstart.py`, whose functions these are with other settings.
"""

from __future__ import annotations

import os
from typing import Any

from datasets import Dataset
from peft import PeftModel
from torch import nn
from transformers import Trainer, TrainingArguments

from examples import quickstart
from hf_any3d import Any2PointForPointCloudClassification

ENCODER = "sentence-transformers/all-MiniLM-L6-v2"
MODEL: dict[str, Any] = {
    "num_layers": 2,
    "num_tokens": 32,
    "tokenizer_neighbors": 32,
    "tokenizer": "patch",
    "tokenizer_width": 96,
    "tokenizer_weights": "random",
    "token_scale": 1.5,
    "line_cells": 8.0,
    "pooling": ["max", "mean", "cls"],
    "head_widths": [256],
    "head_dropout": 0.3,
}
ADAPTER: dict[str, Any] = {"gate": 0.2, "voxel_size": 0.5}
AUGMENTATION = ["shuffle", "scale:low=0.67,high=1.5,per_axis=true", "shift:limit=0.1", "jitter"]
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
LABEL_SMOOTHING = 0.1


def build_model(seed: int, names: list[str]) -> PeftModel:
    """Build the model with its adapters; see `quickstart.build_model`."""
    return add_adapter(build_wrapper(seed, names), seed)


def build_wrapper(
    seed: int, names: list[str], encoder: str | os.PathLike | None = None, **changes: Any
) -> Any2PointForPointCloudClassification:
    """Build the model without its adapters; see `quickstart.build_wrapper`."""
    return quickstart.build_wrapper(seed, names, encoder or ENCODER, **{**MODEL, **changes})


def add_adapter(model: Any2PointForPointCloudClassification, seed: int, **changes: Any) -> PeftModel:
    """Add guided adapters; see `quickstart.add_adapter`."""
    return quickstart.add_adapter(model, seed, **{**ADAPTER, **changes})


def training_arguments(output_dir: str | os.PathLike, seed: int, **changes: Any) -> TrainingArguments:
    """Build the arguments of a run; see `quickstart.training_arguments`."""
    return quickstart.training_arguments(output_dir, seed, **{**TRAINING, **changes})


def build_trainer(model: nn.Module, arguments: TrainingArguments, train: Dataset) -> Trainer:
    """Build a trainer that augments the training rows; see `quickstart.build_trainer`."""
    return quickstart.build_trainer(model, arguments, train, AUGMENTATION)
