"""The arguments that the two stages of pretraining share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from datasets import ClassLabel, Dataset, DatasetDict

from hf_any3d.model_card.run_report import TEST_CHOOSES
from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig
from hf_any3d.modeling.act.codebook import gumbel_temperature, kl_weight
from hf_any3d.modeling.encoders import encoder_settings
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments, json_mapping
from hf_any3d.training.linear_probe import LinearProbe
from hf_any3d.training.protocol import FROM_DATA
from hf_any3d.training.rows import ProcessedDataset, training_transform


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


NO_TEACHER = "none"


@dataclass
class TeacherArguments:
    """Which frozen encoder teaches, and what stands around it."""

    teacher: str = field(
        default="sentence-transformers/all-MiniLM-L6-v2",
        metadata={"help": "Hub name or directory of a text, vision or audio encoder; none for a plain autoencoder."},
    )
    tower: str | None = field(
        default=None, metadata={"help": "Encoder of a composite checkpoint: text, vision or audio."}
    )
    teacher_revision: str | None = field(default=None, metadata={"help": "Branch, tag or commit of the teacher."})
    teacher_layers: int | None = field(default=None, metadata={"help": "Use the teacher's first layers only."})
    random_teacher: bool = field(
        default=False, metadata={"help": "Draw the teacher's weights at random; they are stored with the model."}
    )
    attn_implementation: str | None = field(default=None, metadata={"help": "sdpa, eager, flash_attention_2, …"})
    model_config: dict | str | None = field(
        default=None, metadata={"help": "JSON object with settings of ActAutoencoderConfig, such as num_codes."}
    )

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        if self.teacher == NO_TEACHER and (self.random_teacher or self.tower or self.teacher_layers):
            raise ValueError("--teacher none leaves no place for --random_teacher, --tower and --teacher_layers")


@dataclass
class AutoencoderTrainingArguments(PretrainingArguments):
    """Trainer's own arguments, with defaults and schedules for the autoencoder."""

    metric_for_best_model: str | None = field(default="chamfer_l1")
    greater_is_better: bool | None = field(default=False)
    learning_rate: float = field(default=5e-4)
    weight_decay: float = field(default=5e-4)
    temperature_start: float = field(default=1.0, metadata={"help": "Temperature of the Gumbel softmax at first."})
    temperature_end: float = field(default=0.0625, metadata={"help": "Temperature at last."})
    temperature_steps: int = field(default=100_000, metadata={"help": "Optimiser steps from first to last."})
    kl_weight_end: float = field(default=0.1, metadata={"help": "Weight of the KL term at last; 0 at first."})
    kl_weight_delay: int = field(default=10_000, metadata={"help": "Optimiser steps before the weight grows."})
    kl_weight_steps: int = field(default=100_000, metadata={"help": "Optimiser steps in which it grows."})
    f_score_threshold: float = field(
        default=0.01, metadata={"help": "How near a rebuilt point is to count as right, in units of the clouds."}
    )
    drop_zero_sums: bool = field(
        default=False,
        metadata={"help": "Leave points whose coordinates sum to 0 out of evaluation, as the released program does."},
    )

    pictured_clouds: int = field(
        default=6,
        metadata={"help": "So many clouds are shown in a page, beside what was rebuilt of them; 0: none."},
    )

    def schedules(self) -> dict[str, Callable[[int], float]]:
        """Temperature and weight of the KL term by optimiser step, as the autoencoder calls them."""
        return {
            "temperature": partial(
                gumbel_temperature,
                steps=self.temperature_steps,
                start=self.temperature_start,
                end=self.temperature_end,
            ),
            "kl_weight": partial(
                kl_weight, delay=self.kl_weight_delay, steps=self.kl_weight_steps, end=self.kl_weight_end
            ),
        }

    def schedule_facts(self) -> dict[str, Any]:
        """What a report tells of the schedules."""
        return {
            "temperature": f"{self.temperature_start:g} to {self.temperature_end:g} in {self.temperature_steps} steps",
            "kl_weight": f"0 to {self.kl_weight_end:g} in {self.kl_weight_steps} steps behind {self.kl_weight_delay}",
        }


def build_autoencoder(arguments: TeacherArguments, **config: Any) -> ActAutoencoder:
    """An untrained autoencoder around the teacher that the arguments name.

    Args:
        arguments: Say which teacher.
        **config: Further settings of `ActAutoencoderConfig`; those of `arguments` win.
    """
    config |= arguments.model_config
    if arguments.teacher == NO_TEACHER:
        return ActAutoencoder(ActAutoencoderConfig(**config))
    if arguments.random_teacher:
        settings = encoder_settings(
            arguments.teacher, arguments.tower, arguments.teacher_revision, arguments.teacher_layers
        )
        # The shape of the named encoder, but none of its weights.
        return ActAutoencoder(
            ActAutoencoderConfig(
                encoder_config=settings["encoder_config"],
                encoder_tower=arguments.tower,
                attn_implementation=arguments.attn_implementation,
                **config,
            )
        )
    return ActAutoencoder.from_teacher_pretrained(
        arguments.teacher,
        tower=arguments.tower,
        revision=arguments.teacher_revision,
        num_layers=arguments.teacher_layers,
        attn_implementation=arguments.attn_implementation,
        **config,
    )


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
