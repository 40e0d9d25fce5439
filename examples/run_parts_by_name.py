"""Train a model that finds parts of objects by their names: PatchAlign3D's second stage.

Each patch of a cloud learns which words name its points (arXiv 2601.02457, Sec. 3), from scratch or from the weights
of `--model_name_or_path`, such as those of the first stage. The published second stage trains the `last_block`, see
`PatchAlign3DConfig`:

    python examples/run_parts_by_name.py examples/recipes/parts_patchalign3d.yaml
    python examples/run_parts_by_name.py --model_name_or_path models/patchalign3d --dataset_name shapenetpart \
        --data_dir DATA --num_points 2048 --model_config '{"trained": "last_block"}' --learning_rate 1e-4 \
        --lr_scheduler_type constant --output_dir out/parts

The words are the names of the dataset's parts without the category before them: "chair back" is a back. Held-out
categories are never seen; the test split and the training rows of these categories are evaluated by the pipeline that
the model is used with. The output directory gets model, model card and metrics.json.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hf_any3d  # noqa: F401  before torch, whose threads it lets sleep while they wait

# isort: split
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset, DatasetDict
from torch import nn
from transformers import default_data_collator, pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.data.inputs import count_channels
from hf_any3d.evaluation.classification import Judgment
from hf_any3d.evaluation.part_names import named_part_scores
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.modeling.patchalign3d import PatchAlign3DForZeroShotPointCloudSegmentation
from hf_any3d.training import program
from hf_any3d.training.arguments import (
    AdapterArguments,
    DataArguments,
    PointTrainingArguments,
    argument,
)
from hf_any3d.training.models import PARTS_BY_NAME, PointModelArguments, build_model, text_tower_of
from hf_any3d.training.norm_statistics import refresh_norm_statistics
from hf_any3d.training.rows import training_transform
from hf_any3d.training.segmentation_rows import CropRows
from hf_any3d.training.tasks import PointLabels, find_point_labels
from hf_any3d.training.trainer import PointTrainer

# Training rows of held-out categories.
HELD_OUT = "held_out"


@dataclass
class PartModelArguments(PointModelArguments):
    """The model to train."""

    model_type: str | None = argument("patchalign3d", help="Type of the model: patchalign3d.")
    tuning: str = argument("full", help="Must be full; `trained` of the model's config names parts of the encoder.")


@dataclass
class PartDataArguments(DataArguments):
    """Training data and held-out categories."""

    dataset_name: str = argument("parts", help="Name in the catalog (parts, shapenetpart, …) or of a hub repository.")
    # Selecting weights on trained words does not help others, so there is no validation split.
    validation_fraction: float = argument(0.0, help="Share of the training split for validation.")
    held_out_categories: list[str] = argument(
        default_factory=list, help="Categories of objects that training never sees."
    )


@dataclass
class PartTrainingArguments(PointTrainingArguments):
    """Training arguments with defaults for this task."""

    load_best_model_at_end: bool = field(default=False)
    metric_for_best_model: str | None = field(default="loss")
    num_train_epochs: float = field(default=20)
    prediction_loss_only: bool = field(default=True)


class WordCollator:
    """Stack rows; labels become numbers of words, whose vectors are added as `text_embeds`.

    Args:
        words: Word of each part number.
        model: Embeds the words.
    """

    def __init__(self, words: Sequence[str], model: PatchAlign3DForZeroShotPointCloudSegmentation):
        known = list(dict.fromkeys(words))
        self.word_of_part = torch.tensor([known.index(word) for word in words])
        self.vectors = model.encode_labels(known).cpu()  # (words, width)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Return `points`, `labels` `(rows, points)` and `text_embeds` `(rows, words, width)`."""
        batch = default_data_collator(rows)
        labels = batch["labels"]
        batch["labels"] = torch.where(labels < 0, labels, self.word_of_part[labels.clamp(min=0)])
        # One copy a row, so that processes may split a batch.
        batch["text_embeds"] = self.vectors.expand(len(rows), -1, -1)
        return batch


def part_words(task: PointLabels) -> list[str]:
    """Return the words that name each part number: its name without the category.

    Raises:
        ValueError: The rows have no categories, or a name is the category's alone.
    """
    if task.categories is None or task.category_parts is None:
        raise ValueError("the training split has no column 'label' with categories of objects; expected one")
    owner = {part: name for name, own in zip(task.categories, task.category_parts, strict=True) for part in own}
    words = [
        name.removeprefix(f"{owner[number]} ") if number in owner else name for number, name in enumerate(task.names)
    ]
    if empty := [name for name, word in zip(task.names, words, strict=True) if not word.strip()]:
        raise ValueError(f"the part {empty[0]!r} has no name besides its category; expected words")
    return words


def rows_of(rows: Dataset, task: PointLabels, held_out: Sequence[str], away: bool) -> Dataset:
    """Return the rows of the held-out categories if `away`, otherwise of the others.

    Raises:
        ValueError: There is no such category, or none remains.
    """
    categories = task.categories or []
    if unknown := [name for name in held_out if name not in categories]:
        raise ValueError(f"--held_out_categories names {unknown[0]!r}; there are {', '.join(categories)}")
    if set(held_out) == set(categories):
        raise ValueError(f"--held_out_categories names all of {', '.join(categories)}; expected one less at least")
    numbers = {categories.index(name) for name in held_out}
    labels: Any = rows["label"]
    return rows.select([row for row, label in enumerate(labels) if (int(label) in numbers) == away])


def judge(
    model: PatchAlign3DForZeroShotPointCloudSegmentation,
    processor: PointCloudProcessor,
    splits: dict[str, Dataset],
    task: PointLabels,
) -> Judgment:
    """Evaluate the pipeline with the names of each object's parts.

    Returns:
        For each split `instance_miou`, `category_miou` and `accuracy`; and the mean IoU of each category.
    """
    assert task.categories is not None and task.category_parts is not None
    words, parts = part_words(task), dict(zip(task.categories, task.category_parts, strict=True))
    names = {category: [words[number] for number in own] for category, own in parts.items()}
    segment = pipeline(
        "zero-shot-point-cloud-segmentation", model=model.eval(), feature_extractor=processor, device=model.device
    )
    metrics, by_category = {}, {}
    for split, rows in splits.items():
        numbered = (
            {"points": row["points"], "category": category, "labels": _own_numbers(row["labels"], parts[category])}
            for row in rows
            for category in [task.categories[int(row["label"])]]
        )
        found = named_part_scores(segment, numbered, names, templates=None)
        by_category[split] = found.pop("category_ious")
        metrics[split] = found
    return metrics, by_category


def _own_numbers(labels: Sequence[int], parts: Sequence[int]) -> list[int]:
    """Return the places of labels among a category's parts, -100 for others."""
    place = {part: number for number, part in enumerate(parts)}
    return [place.get(int(label), -100) for label in labels]


@dataclass
class PartsByName(program.TrainingTask):
    """Training of patches towards the words of their parts."""

    model: PartModelArguments
    data: PartDataArguments
    adapter: AdapterArguments
    training: PartTrainingArguments
    usage = 'pipeline("zero-shot-point-cloud-segmentation", model="{}")'

    def __post_init__(self):
        if self.adapter.peft not in (None, "none", "full") or self.model.tuning != "full":
            raise ValueError(
                f"--peft {self.adapter.peft} and --tuning {self.model.tuning}; expected none and full: trained in "
                "--model_config names what is trained"
            )

    def build(self, splits: DatasetDict) -> tuple[nn.Module, PointCloudProcessor]:
        """Build model and processor."""
        data = self.data
        self.labels = find_point_labels(splits["train"])
        self.words = part_words(self.labels)
        processor = PointCloudProcessor(num_points=data.num_points, features=data.features, up_axis=data.up_axis)
        channels, tower = count_channels(data.features), text_tower_of(self.model)
        names = self.labels.names
        return build_model(PARTS_BY_NAME, self.model, self.adapter, names, in_channels=channels, **tower), processor

    def build_trainer(self, model: Any, splits: DatasetDict, processor: PointCloudProcessor) -> PointTrainer:
        """Build the trainer."""
        kept = {split: self._rows(splits[split], away=False) for split in splits if split != "test"}
        transform = training_transform(processor, self.data.augment)
        return program.build_trainer(
            model,
            self.training,
            CropRows(kept["train"], processor, transform, self.training.seed),
            CropRows(kept["validation"], processor) if "validation" in kept else None,
            processor,
            data_collator=WordCollator(self.words, model),
        )

    def fit(self, trainer: PointTrainer, checkpoint: str | None) -> None:
        """Train the model, and compute the statistics of its norms anew."""
        super().fit(trainer, checkpoint)
        refresh_norm_statistics(trainer)

    def evaluate(self, trainer: PointTrainer, splits: DatasetDict, processor: PointCloudProcessor) -> Judgment:
        """Return scores of the test split, and with held-out categories of both kinds of rows of each split."""
        judged = {"test": splits["test"]} if "test" in splits else {}
        if self.data.held_out_categories:
            judged |= {f"{split}_{HELD_OUT}": self._rows(rows, away=True) for split, rows in splits.items()}
            judged |= {split: self._rows(splits[split], away=False) for split in judged if split in splits}
        return judge(trainer.model, processor, judged, self.labels)

    def _rows(self, rows: Dataset, away: bool) -> Dataset:
        return rows_of(rows, self.labels, self.data.held_out_categories, away)

    def data_facts(self) -> dict[str, Any]:
        """Return the held-out categories."""
        return {"held-out categories": self.data.held_out_categories}


def main(argv: list[str] | None = None) -> RunReport:
    """Train and evaluate; write model, card and metrics.json, and push them if requested."""
    return program.train(PartsByName.parse(argv))


if __name__ == "__main__":
    program.run_program(main)
