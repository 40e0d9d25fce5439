"""The arguments of ACT's second stage, and the clouds that its probe learns from."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from datasets import ClassLabel, DatasetDict

from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.arguments import json_mapping
from hf_any3d.training.linear_probe import LinearProbe
from hf_any3d.training.pretraining_settings import PretrainingArguments, PretrainingDataArguments
from hf_any3d.training.settings import DataArguments


@dataclass
class StudentArguments:
    """Which autoencoder teaches, and what learns from it."""

    autoencoder: str = field(metadata={"help": "Directory or hub name of a trained autoencoder; it stays frozen."})
    mask_ratio: float | None = field(default=None, metadata={"help": "Share of the patches that is hidden."})
    mask_type: str | None = field(default=None, metadata={"help": "random hides single patches, block a region."})
    distillation_loss: str | None = field(
        default=None, metadata={"help": "cosine, l2, smooth_l1, contrastive or barlow."}
    )
    model_config: dict | str | None = field(
        default=None, metadata={"help": "JSON object with any further settings of ActConfig."}
    )

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        for name in ("mask_ratio", "mask_type", "distillation_loss"):
            if getattr(self, name) is not None:
                self.model_config[name] = getattr(self, name)


@dataclass
class ProbeArguments:
    """How frozen features are probed during pretraining and at its end."""

    probe_every: int = field(
        default=0, metadata={"help": "Epochs between two looks of a linear SVM at the features; 0 for none."}
    )
    probe_dataset: str | None = field(
        default=None, metadata={"help": "Labelled dataset for it; what is pretrained on when left out."}
    )
    probe_data_dir: str | None = field(default=None, metadata={"help": "Where its files lie; --data_dir if left out."})
    probe_dataset_options: dict | str | None = field(
        default=None, metadata={"help": "JSON object with further options of that dataset."}
    )
    probe_cost: float = field(default=0.01, metadata={"help": "C of the SVM."})

    def __post_init__(self):
        self.probe_dataset_options = json_mapping(self.probe_dataset_options, "probe_dataset_options")
        if self.probe_every < 0:
            raise ValueError(f"--probe_every {self.probe_every}; expected 0 or more")


@dataclass
class DistillationTrainingArguments(PretrainingArguments):
    """Trainer's own arguments, with defaults for distillation."""

    # How well hidden patches are guessed says little about what the features are good for.
    load_best_model_at_end: bool = field(default=False)
    metric_for_best_model: str | None = field(default="loss")
    learning_rate: float = field(default=1e-3)


def build_probe(
    arguments: ProbeArguments,
    data: PretrainingDataArguments,
    splits: DatasetDict,
    processor: PointCloudProcessor,
    batch_size: int,
) -> LinearProbe | None:
    """The probe that the arguments ask for, or None.

    Args:
        arguments: The probe's.
        data: What is pretrained on.
        splits: Its splits.
        processor: Brings clouds to form.
        batch_size: Clouds that go through the model together.

    Raises:
        ValueError: Clouds without classes, or none to judge by.
    """
    if not arguments.probe_every:
        return None
    if arguments.probe_dataset is not None:
        settings: dict[str, Any] = {
            "dataset_name": arguments.probe_dataset,
            "data_dir": arguments.probe_data_dir or data.data_dir,
            "dataset_options": arguments.probe_dataset_options,
            "validation_fraction": data.validation_fraction or DataArguments.validation_fraction,
        }
        splits, _ = program.load_splits(
            replace(DataArguments(**settings), validation_seed=data.validation_seed, group_column=data.group_column)
        )
    kept = {name: splits[name] for name in ("train", "validation", "test") if name in splits}
    if "validation" not in kept:
        raise ValueError("--probe_every without a validation split; expected --validation_fraction or --probe_dataset")
    labelled = {name: rows for name, rows in kept.items() if isinstance(rows.features.get("label"), ClassLabel)}
    if set(kept) != set(labelled):
        raise ValueError("--probe_every on clouds without classes; expected --probe_dataset with some")
    return LinearProbe(DatasetDict(labelled), processor, batch_size, arguments.probe_cost)
