"""The arguments that the two stages of pretraining share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from datasets import Dataset, DatasetDict

from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.arguments import json_mapping
from hf_any3d.training.protocol import FROM_DATA
from hf_any3d.training.report import TEST_CHOOSES
from hf_any3d.training.rows import ProcessedDataset, training_transform
from hf_any3d.training.settings import DataArguments, PointTrainingArguments


@dataclass
class PretrainingDataArguments(DataArguments):
    """Which clouds it learns from; classes, where there are any, only tell categories apart."""

    validation_fraction: float = field(
        default=0.1, metadata={"help": "Share of the training split to judge by, where there is no validation split."}
    )
    select_on_test: bool = field(
        default=False, metadata={"help": "Choose the weights by the test split, as published programs do."}
    )
    processor_config: dict | str | None = field(
        default=None, metadata={"help": "JSON object with further settings of the processor, such as sampling."}
    )

    def __post_init__(self):
        super().__post_init__()
        self.processor_config = json_mapping(self.processor_config, "processor_config")
        if own := sorted(set(self.processor_config) & set(FROM_DATA)):
            raise ValueError(f"--processor_config has {own[0]!r}; expected it as --{own[0]}")

    def judged_splits(self) -> tuple[str, ...]:
        """Splits to judge on at the end, if they are there."""
        return ("test",) if self.select_on_test else ("validation", "test")


@dataclass
class PretrainingArguments(PointTrainingArguments):
    """Trainer's own arguments, with defaults for pretraining."""

    # Clouds themselves are what is learned.
    label_names: list[str] | None = field(default_factory=lambda: ["points"])
    num_train_epochs: float = field(default=300)
    weight_decay_on: str = field(default="matrices")


class UnlabelledRows(ProcessedDataset):
    """Rows `{"points": (num_points, channels)}` and nothing else."""

    label_columns = ()


def build_processor(data: PretrainingDataArguments) -> PointCloudProcessor:
    """The processor that is saved with the model."""
    return PointCloudProcessor(**{name: getattr(data, name) for name in FROM_DATA}, **data.processor_config)


def load_splits(data: PretrainingDataArguments) -> tuple[DatasetDict, str]:
    """Load what the arguments name; see `program.load_splits`.

    Raises:
        ValueError: A test split that is to choose and is not there, or that is not alone in this.
    """
    splits, origin = program.load_splits(data)
    if data.select_on_test:
        if "validation" in splits or "test" not in splits:
            raise ValueError(
                f"--select_on_test with the splits {', '.join(splits)}; expected 'test', which is not trained on, and "
                "no 'validation' (--validation_fraction 0)"
            )
        splits, origin = DatasetDict(**splits, validation=splits["test"]), TEST_CHOOSES
    return splits, origin


def pretraining_rows(
    dataset: Dataset, processor: PointCloudProcessor, augment: Sequence[str], seed: int
) -> UnlabelledRows:
    """Rows to train on: other points of larger clouds in each epoch, and augmentation; see `training_rows`."""
    return UnlabelledRows(dataset, processor, training_transform(processor, augment), seed)
