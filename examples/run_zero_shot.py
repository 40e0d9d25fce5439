"""Train a model that embeds point clouds close to the text embeddings of their names.

By default it is a model around a frozen encoder, and the text tower belongs to the same checkpoint: CLIP, SigLIP and
CLAP have one, and a sentence encoder is its own text tower. With `--model_type uni3d` or `openshape` it is a point
encoder of that layout, trained from scratch towards the texts of `--encoder_name_or_path`, or from the weights of
`--model_name_or_path`. Training is contrastive, on pairs of clouds and texts; afterwards a class is given by its name:

    python examples/run_zero_shot.py --output_dir out/zero-shot --held_out_classes sofa lamp vehicle \
        --caption_column title --augment scale shift --num_train_epochs 20
    python examples/run_zero_shot.py recipe.yaml
    accelerate launch --config_file examples/recipes/accelerate/ddp.yaml --num_processes 2 \
        examples/run_zero_shot.py recipe.yaml
    python examples/run_zero_shot.py examples/recipes/shapes_uni3d.yaml

Held-out classes are never seen in training, neither clouds nor captions with their names; zero-shot accuracy is
measured on them, among themselves and among all classes, next to that of seen classes. Without held-out classes the
model learns all classes, and there is no zero-shot accuracy. The output directory gets model, model card and
metrics.json.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hf_any3d  # noqa: F401  before torch, whose threads it lets sleep while they wait

# isort: split
from dataclasses import dataclass, field
from typing import cast

from datasets import ClassLabel, Dataset, DatasetDict
from torch import nn
from transformers import default_data_collator

from hf_any3d import PointCloudProcessor
from hf_any3d.data.inputs import count_channels
from hf_any3d.evaluation.classification import Judgment
from hf_any3d.evaluation.zero_shot import CompareWithClasses, compute_zero_shot_metrics, evaluate_zero_shot
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.point_encoders.text_templates import CAPTION_TEMPLATES, HYPOTHESIS_TEMPLATES, fill_templates
from hf_any3d.modeling.point_encoders.text_towers import TextTower, embed_prompts
from hf_any3d.training import program
from hf_any3d.training.arguments import (
    AdapterArguments,
    DataArguments,
    PointTrainingArguments,
)
from hf_any3d.training.models import ZERO_SHOT, PointModelArguments, build_model, text_tower_of
from hf_any3d.training.norm_statistics import refresh_norm_statistics
from hf_any3d.training.rows import training_transform
from hf_any3d.training.text_rows import CaptionedDataset, caption_texts, readable
from hf_any3d.training.trainer import PointTrainer

# Training rows of held-out classes.
HELD_OUT = "held_out"


@dataclass
class ZeroShotDataArguments(DataArguments):
    """Training data and held-out classes."""

    # Accuracy on seen classes does not help to select weights for unseen ones, so there is no validation split.
    validation_fraction: float = field(default=0.0, metadata={"help": "Share of the training split for validation."})
    held_out_classes: list[str] = field(
        default_factory=list,
        metadata={"help": "Classes that training never sees, for zero-shot accuracy."},
    )
    caption_column: str | None = field(
        default=None, metadata={"help": "Column with a text about each cloud, which replaces its class name."}
    )
    caption_templates: list[str] = field(
        default_factory=lambda: list(CAPTION_TEMPLATES),
        metadata={"help": "Templates for names and captions in training, with {} for the text."},
    )
    hypothesis_templates: list[str] = field(
        default_factory=lambda: list(HYPOTHESIS_TEMPLATES),
        metadata={"help": "Templates for labels after training; embeddings of several are averaged."},
    )
    judged_splits: list[str] = field(
        default_factory=lambda: ["validation", "test", HELD_OUT],
        metadata={"help": f"Splits to evaluate; {HELD_OUT} has the training rows of held-out classes."},
    )


@dataclass
class ZeroShotTrainingArguments(PointTrainingArguments):
    """Training arguments with defaults for contrastive training."""

    load_best_model_at_end: bool = field(default=False)
    metric_for_best_model: str | None = field(default="seen_accuracy")
    per_device_train_batch_size: int = field(default=32)
    num_train_epochs: float = field(default=20)


def class_numbers(rows: Dataset, held_out: list[str]) -> tuple[list[str], list[int]]:
    """Return the names of all classes, and the numbers of held-out classes.

    Raises:
        ValueError: The rows have no classes, a held-out class does not exist, or fewer than two classes remain.
    """
    label = rows.features.get("label")
    if not isinstance(label, ClassLabel):
        raise ValueError(f"the training split has label {label}; expected a ClassLabel, text or whole numbers from 0")
    if unknown := [name for name in held_out if name not in label.names]:
        raise ValueError(f"--held_out_classes names {unknown[0]!r}; there are {', '.join(label.names)}")
    unseen = sorted({label.names.index(name) for name in held_out})
    if len(label.names) - len(unseen) < 2:
        raise ValueError(f"--held_out_classes leaves {len(label.names) - len(unseen)} classes; expected at least 2")
    return label.names, unseen


def hold_out(splits: DatasetDict, unseen: list[int]) -> DatasetDict:
    """Move rows of unseen classes from `train` and `validation` to their own split; `test` keeps all rows."""
    if not unseen:
        return splits
    kept, moved = DatasetDict(splits), []
    for split in ("train", "validation"):
        if split in splits:
            is_unseen = [label in unseen for label in splits[split]["label"]]
            kept[split] = splits[split].select([i for i, away in enumerate(is_unseen) if not away])
            moved.append(splits[split].select([i for i, away in enumerate(is_unseen) if away]))
    # Validation rows of the dataset's own split may have other columns, so they are left out.
    kept[HELD_OUT] = moved[0]
    return kept


def captioned_rows(
    rows: Dataset,
    processor: PointCloudProcessor,
    tower: TextTower,
    data: ZeroShotDataArguments,
    seed: int | None = None,
) -> CaptionedDataset:
    """Build training rows; without a seed, evaluation rows with the label texts of their classes."""
    names = [rows.features["label"].names[int(label)] for label in rows["label"]]
    if seed is None:
        texts = caption_texts(names, templates=data.hypothesis_templates)
        return CaptionedDataset(rows, processor, texts, tower)
    if data.caption_column is not None and data.caption_column not in rows.column_names:
        raise ValueError(f"--caption_column {data.caption_column}; there are {', '.join(rows.column_names)}")
    captions = None if data.caption_column is None else rows[data.caption_column]
    texts = caption_texts(names, captions, data.caption_templates, forbidden=data.held_out_classes)
    return CaptionedDataset(rows, processor, texts, tower, training_transform(processor, data.augment), seed)


@dataclass
class ZeroShot(program.TrainingTask):
    """Contrastive training on clouds and texts."""

    model: PointModelArguments
    data: ZeroShotDataArguments
    adapter: AdapterArguments
    training: ZeroShotTrainingArguments
    usage = 'pipeline("zero-shot-point-cloud-classification", model="{}")'

    def divide(self, rows: DatasetDict) -> tuple[DatasetDict, str]:
        """Hold out classes."""
        splits, origin = super().divide(rows)
        self.classes, self.unseen = class_numbers(splits["train"], self.data.held_out_classes)
        return hold_out(splits, self.unseen), origin

    def build(self, splits: DatasetDict) -> tuple[nn.Module, PointCloudProcessor]:
        """Build model and processor."""
        data = self.data
        processor = PointCloudProcessor(num_points=data.num_points, features=data.features, up_axis=data.up_axis)
        model = build_model(
            ZERO_SHOT,
            self.model,
            self.adapter,
            [name for number, name in enumerate(self.classes) if number not in self.unseen],
            in_channels=count_channels(data.features),
            hypothesis_templates=data.hypothesis_templates,
            **text_tower_of(self.model),
        )
        self.tower = cast(TextTower, model.text_tower)
        return model, processor

    def build_trainer(self, model: nn.Module, splits: DatasetDict, processor: PointCloudProcessor) -> PointTrainer:
        """Build the trainer; without a validation split it does not evaluate."""
        data, tower = self.data, self.tower
        texts = fill_templates([readable(name) for name in self.classes], data.hypothesis_templates)
        names = embed_prompts(tower, texts)
        return program.build_trainer(
            model,
            self.training,
            captioned_rows(splits["train"], processor, tower, data, self.training.seed),
            captioned_rows(splits["validation"], processor, tower, data) if "validation" in splits else None,
            processor,
            data_collator=default_data_collator,
            compute_metrics=compute_zero_shot_metrics(self.unseen),
            preprocess_logits_for_metrics=CompareWithClasses(names),
        )

    def fit(self, trainer: PointTrainer, checkpoint: str | None) -> None:
        """Train the model, and compute the statistics of its norms anew."""
        super().fit(trainer, checkpoint)
        refresh_norm_statistics(trainer)

    def evaluate(self, trainer: PointTrainer, splits: DatasetDict, processor: PointCloudProcessor) -> Judgment:
        """Return accuracies on seen and held-out classes."""
        names = [split for split in self.data.judged_splits if split in splits]
        judged = {split: captioned_rows(splits[split], processor, self.tower, self.data) for split in names}
        return evaluate_zero_shot(trainer, judged, self.classes, self.unseen)

    def data_facts(self) -> dict[str, object]:
        """Return held-out classes and texts."""
        data = self.data
        facts = {"held-out classes": data.held_out_classes, "caption column": data.caption_column}
        return {**facts, "caption templates": data.caption_templates}


def main(argv: list[str] | None = None) -> RunReport:
    """Train and evaluate; write model, card and metrics.json, and push them if requested."""
    return program.train(ZeroShot.parse(argv))


if __name__ == "__main__":
    program.run_program(main)
