"""Arguments, data, models and linear probe of the two stages of ACT's pretraining: autoencoder, then distillation."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict, NamedSplit
from torch import nn
from transformers import (
    AutoModelForPreTraining,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderConfig, ActForPreTraining
from hf_any3d.modeling.act.codebook import gumbel_temperature, kl_weight
from hf_any3d.modeling.encoders import encoder_settings
from hf_any3d.modeling.layers.modes import evaluation_mode
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training import splits as training_splits
from hf_any3d.training.arguments import DataArguments, PointTrainingArguments, argument, json_mapping
from hf_any3d.training.protocol import select_on_test
from hf_any3d.training.rows import ProcessedDataset, class_names, evaluation_rows, training_transform
from hf_any3d.training.trainer import PointTrainer
from hf_any3d.utils.progress import progress_bar

ACCURACY = "probe_accuracy"


@dataclass
class LinearProbe:
    """Linear support vector machine on the features of a model.

    Features are standardized by mean and deviation of the training clouds. Neither the model nor torch's random state
    is changed, so probing does not affect training.

    Args:
        splits: Clouds with a ClassLabel: `train` to fit on, others to evaluate.
        processor: Processor with a seed.
        batch_size: Clouds per batch.
        cost: C of the support vector machine.
    """

    splits: DatasetDict
    processor: PointCloudProcessor
    batch_size: int = 32
    cost: float = 0.01

    def __post_init__(self):
        import sklearn  # noqa: F401 its absence is told before the training

        # Clouds without classes are an error before the training, too.
        for split, rows in self.splits.items():
            class_names(rows, f"the linear probe's split {split!r}")

    def accuracies(self, model: nn.Module, quiet: bool = True) -> dict[str, float]:
        """Compute the accuracy with `model.probe_features` `(batch, features)` on each split except for `train`."""
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import LinearSVC

        # Features of different models have different scales, and the cost of a linear SVM depends on them.
        probe = make_pipeline(StandardScaler(), LinearSVC(C=self.cost, random_state=0, max_iter=10_000))
        labels = {str(split): np.asarray(rows["label"]) for split, rows in self.splits.items()}
        features = {str(split): self._features(model, rows, split, quiet) for split, rows in self.splits.items()}
        # Training clouds alone are fitted.
        probe.fit(features["train"], labels["train"])
        return {split: float(probe.score(features[split], labels[split])) for split in features if split != "train"}

    @torch.no_grad()
    def _features(self, model: nn.Module, rows: Dataset, split: str | NamedSplit, quiet: bool) -> np.ndarray:
        device = next(model.parameters()).device
        # The processor's seed makes these rows the same in each call.
        prepared = evaluation_rows(rows, self.processor)
        starts = progress_bar(
            range(0, len(prepared), self.batch_size), hidden=quiet, desc=f"features of {split}", leave=False
        )
        pieces = []
        # So that a run gives the same result however often the probe is evaluated.
        with torch.random.fork_rng(), evaluation_mode(model):
            for start in starts:
                batch = prepared.__getitems__(list(range(start, min(start + self.batch_size, len(prepared)))))
                points = torch.from_numpy(np.stack([row["points"] for row in batch])).to(device)
                features = model.probe_features(points)  # pyright: ignore[reportCallIssue] a method
                # In float32, as numpy has no bfloat16.
                pieces.append(features.float().cpu().numpy())
        return np.concatenate(pieces)


class ProbeCallback(TrainerCallback):
    """Log the accuracy of a linear probe every few epochs, as `eval_probe_accuracy`."""

    def __init__(self, trainer: Trainer, probe: LinearProbe, every: int):
        # During training the test split is not looked at.
        kept = DatasetDict({name: probe.splits[name] for name in ("train", "validation")})
        self.trainer = trainer
        self.probe = replace(probe, splits=kept)
        self.every = every

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, model: nn.Module, **kwargs: Any
    ) -> None:
        """Evaluate the probe every few epochs."""
        # At the end of an epoch `state.epoch` can be 2.9999 as well as 3.
        if state.is_world_process_zero and round(state.epoch) % self.every == 0:
            self.trainer.log({f"eval_{ACCURACY}": self.probe.accuracies(model)["validation"]})


def evaluate_pretraining(
    trainer: PointTrainer, splits: Mapping[str, Any], probe: LinearProbe | None
) -> tuple[dict[str, dict[str, float]], dict[str, dict[str, float]]]:
    """Evaluate the trainer's model on splits, and print the results.

    Returns:
        `loss` and `probe_accuracy` of each split, where available; and no scores of classes.
    """
    metrics: dict[str, dict[str, float]] = {}
    # The loss is that of pretraining, which needs no labels.
    for split, rows in splits.items():
        metrics[split] = {"loss": float(trainer.evaluate(rows, metric_key_prefix=split)[f"{split}_loss"])}
    # The probe may have splits of another dataset.
    for split, accuracy in (probe.accuracies(trainer.model, quiet=False) if probe else {}).items():
        metrics.setdefault(split, {})[ACCURACY] = accuracy
    # Once all figures of a split are there, so that they are printed together.
    for split, figures in metrics.items():
        trainer.log_metrics(split, {f"{split}_{name}": value for name, value in figures.items()})
    return metrics, {}


NO_TEACHER = "none"


@dataclass
class PretrainingDataArguments(DataArguments):
    """The dataset to pretrain on; labels are not used for training."""

    validation_fraction: float = argument(
        0.1, help="Share of the training split to hold out for evaluation, if there is no validation split."
    )
    select_on_test: bool = argument(False, help="Select the checkpoint on the test split, as the original code does.")
    processor_config: dict | str | None = argument(
        None, help="JSON object with additional processor settings, such as sampling."
    )

    def __post_init__(self):
        super().__post_init__()
        self.processor_config = json_mapping(self.processor_config, "processor_config")

    def judged_splits(self) -> tuple[str, ...]:
        """Return the names of splits to evaluate at the end."""
        return ("test",) if self.select_on_test else ("validation", "test")


@dataclass
class PretrainingArguments(PointTrainingArguments):
    """Training arguments, with defaults for pretraining."""

    # The clouds are the targets.
    label_names: list[str] | None = field(default_factory=lambda: ["points"])
    num_train_epochs: float = field(default=300)
    weight_decay_on: str = field(default="matrices")


class UnlabeledRows(ProcessedDataset):
    """Rows `{"points": (num_points, channels)}` without labels."""

    label_columns = ()


def load_splits(data: PretrainingDataArguments) -> tuple[DatasetDict, str]:
    """Load the splits of the arguments; see `splits.load_splits` and `select_on_test`."""
    splits, origin = training_splits.load_splits(data, needs_labels=False)
    return select_on_test(splits) if data.select_on_test else (splits, origin)


def pretraining_rows(
    dataset: Dataset, processor: PointCloudProcessor, augment: Sequence[str], seed: int
) -> UnlabeledRows:
    """Return training rows: other points of larger clouds in each epoch, and augmentation; see `training_rows`."""
    return UnlabeledRows(dataset, processor, training_transform(processor, augment), seed)


@dataclass
class TeacherArguments:
    """The frozen encoder that teaches, and the config of the autoencoder around it."""

    teacher: str = argument(
        "sentence-transformers/all-MiniLM-L6-v2",
        help="Directory or Hub name of a text, vision or audio encoder; none for a plain autoencoder.",
    )
    tower: str | None = argument(None, help="Which encoder of a multimodal checkpoint: text, vision or audio.")
    teacher_revision: str | None = argument(None, help="Branch, tag or commit of the teacher.")
    teacher_layers: int | None = argument(None, help="Use only the first layers of the teacher.")
    random_teacher: bool = argument(
        False, help="Initialize the teacher randomly; its weights are saved with the model."
    )
    attn_implementation: str | None = argument(
        None, help="Attention implementation: sdpa, eager, flash_attention_2, …"
    )
    model_config: dict | str | None = argument(
        None, help="JSON object with settings of ActAutoencoderConfig, such as num_codes."
    )

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        # Without a teacher its settings would have no effect.
        if self.teacher == NO_TEACHER and (self.random_teacher or self.tower or self.teacher_layers):
            raise ValueError(
                "--random_teacher, --tower and --teacher_layers need a teacher; leave them out with --teacher none"
            )


@dataclass
class AutoencoderTrainingArguments(PretrainingArguments):
    """Training arguments, with defaults and schedules for the autoencoder."""

    metric_for_best_model: str | None = field(default="chamfer_l1")
    greater_is_better: bool | None = field(default=False)
    learning_rate: float = field(default=5e-4)
    weight_decay: float = field(default=5e-4)
    temperature_start: float = argument(1.0, help="Initial temperature of the Gumbel softmax.")
    temperature_end: float = argument(0.0625, help="Final temperature.")
    temperature_steps: int = argument(100_000, help="Optimizer steps until the final temperature.")
    kl_weight_end: float = argument(0.1, help="Final weight of the KL term; initially 0.")
    kl_weight_delay: int = argument(10_000, help="Optimizer steps before the KL weight starts to increase.")
    kl_weight_steps: int = argument(100_000, help="Optimizer steps over which the KL weight increases.")
    f_score_threshold: float = argument(
        0.01, help="Distance within which a reconstructed point counts as correct, in data units."
    )
    drop_zero_sums: bool = argument(
        False, help="Ignore points whose coordinates sum to 0 in evaluation, as the original code does."
    )
    pictured_clouds: int = argument(
        6, help="Number of point clouds to show with their reconstructions in an HTML page."
    )

    def schedules(self) -> dict[str, Callable[[int], float]]:
        """Return temperature and weight of the KL term by optimizer step, under the autoencoder's argument names."""
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
        """Return what a report lists about the schedules."""
        return {
            "temperature": f"{self.temperature_start:g} to {self.temperature_end:g} in {self.temperature_steps} steps",
            "kl_weight": f"0 to {self.kl_weight_end:g} in {self.kl_weight_steps} steps after {self.kl_weight_delay}",
        }


def build_autoencoder(arguments: TeacherArguments, **config: Any) -> ActAutoencoder:
    """Build an untrained autoencoder around a teacher, with further settings of its config."""
    assert isinstance(arguments.model_config, dict)
    # Settings of --model_config win over those that follow from the arguments.
    config |= arguments.model_config
    if arguments.teacher == NO_TEACHER:
        return ActAutoencoder(ActAutoencoderConfig(**config))
    if arguments.random_teacher:
        encoder = encoder_settings(
            arguments.teacher, arguments.tower, arguments.teacher_revision, arguments.teacher_layers
        )
        config |= {"encoder_config": encoder["encoder_config"], "encoder_tower": arguments.tower}
        return ActAutoencoder(ActAutoencoderConfig(**config, attn_implementation=arguments.attn_implementation))  # pyright: ignore[reportCallIssue] not a field
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
    """The autoencoder that teaches, and the config of the student; or the pretraining that is continued."""

    autoencoder: str | None = argument(None, help="Directory or Hub name of a trained autoencoder; it stays frozen.")
    model_name_or_path: str | None = argument(
        None,
        help="Directory or Hub name of a pretrained student to continue pretraining with its own objective, such "
        "as a converted Point-MAE, Point-BERT, ReCon or PointGPT; instead of --autoencoder.",
    )
    student: str | None = argument(
        None,
        help="Directory or Hub name of an encoder to start from: a point transformer such as Point-MAE, ReCon or "
        "PointGPT, a text-aligned encoder or a voxel encoder; by default an untrained ACT student.",
    )
    mask_ratio: float | None = argument(None, help="Share of masked patches.")
    mask_type: str | None = argument(None, help="Masking strategy: random (single patches) or block (a region).")
    distillation_loss: str | None = argument(
        None, help="Distillation loss: cosine, l2, smooth_l1, contrastive or barlow."
    )
    model_config: dict | str | None = argument(None, help="JSON object with additional settings of ActConfig.")

    def __post_init__(self):
        self.model_config = json_mapping(self.model_config, "model_config")
        if (self.autoencoder is None) == (self.model_name_or_path is None):
            raise ValueError("give either --autoencoder or --model_name_or_path")
        if self.student is not None and self.autoencoder is None:
            raise ValueError(
                f"--student {self.student} cannot be combined with --model_name_or_path; leave out one of them"
            )
        # Short options win over the same settings in --model_config.
        for name in ("mask_ratio", "mask_type", "distillation_loss"):
            if getattr(self, name) is not None:
                self.model_config[name] = getattr(self, name)


def build_student(arguments: StudentArguments) -> PreTrainedModel:
    """Build a student around a trained autoencoder, or open one that was pretrained before."""
    assert isinstance(arguments.model_config, dict)
    if arguments.autoencoder is not None:
        return ActForPreTraining.from_autoencoder_pretrained(
            arguments.autoencoder, arguments.student, **arguments.model_config
        )
    model = AutoModelForPreTraining.from_pretrained(arguments.model_name_or_path, **arguments.model_config)
    if not hasattr(model, "probe_features"):
        raise ValueError(
            f"--model_name_or_path {arguments.model_name_or_path}: a {type(model).__name__}; expected a model of the "
            "pretraining of ACT, Point-MAE, Point-BERT, ReCon or PointGPT"
        )
    return model


@dataclass
class ProbeArguments:
    """Evaluation of frozen features during pretraining and at its end."""

    probe_every: int = argument(0, help="Evaluate the features with a linear SVM every this many epochs; 0 for never.")
    probe_dataset: str | None = argument(
        None, help="Labeled dataset for the linear SVM; by default the pretraining dataset."
    )
    probe_data_dir: str | None = argument(None, help="Directory with its files; by default --data_dir.")
    probe_dataset_options: dict | str | None = argument(
        None, help="JSON object with additional options of that dataset."
    )
    probe_cost: float = argument(0.01, help="Regularization parameter C of the SVM.")

    def __post_init__(self):
        self.probe_dataset_options = json_mapping(self.probe_dataset_options, "probe_dataset_options")


@dataclass
class DistillationTrainingArguments(PretrainingArguments):
    """Training arguments, with defaults for distillation."""

    # The loss on masked patches does not measure the quality of the features.
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
    """Build the linear probe, or return None if `probe_every` is 0."""
    if not arguments.probe_every:
        return None
    # Features may be judged on other clouds, as those of pretraining need no labels.
    if arguments.probe_dataset is not None:
        probe_data = DataArguments(
            dataset_name=arguments.probe_dataset,
            data_dir=arguments.probe_data_dir or data.data_dir,
            dataset_options=arguments.probe_dataset_options,
            # The probe needs a validation split, also where pretraining has none.
            validation_fraction=data.validation_fraction or DataArguments.validation_fraction,
            validation_seed=data.validation_seed,
            group_column=data.group_column,
        )
        splits, _ = training_splits.load_splits(probe_data)
    # The splits that the probe fits, or is judged on.
    kept = DatasetDict({name: splits[name] for name in ("train", "validation", "test") if name in splits})
    kept = training_splits.judged_splits(kept, "the linear probe")
    if "validation" not in kept:
        raise ValueError("--probe_every needs a validation split; add --validation_fraction or --probe_dataset")
    return LinearProbe(kept, processor, batch_size, arguments.probe_cost)
