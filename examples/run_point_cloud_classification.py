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

from datasets import ClassLabel, Dataset, DatasetDict
from torch import nn
from transformers import Trainer

from hf_any3d import Any2PointForPointCloudClassification, PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.training import program
from hf_any3d.training.arguments import parse_arguments
from hf_any3d.training.card_tasks import CLASSIFICATION
from hf_any3d.training.judging import judge_splits
from hf_any3d.training.metrics import compute_classification_metrics
from hf_any3d.training.report import RunReport, Stopwatch, count_parameters
from hf_any3d.training.rows import evaluation_rows, training_rows
from hf_any3d.training.settings import AdapterArguments, DataArguments, ModelArguments, PointTrainingArguments

logger = logging.getLogger(__name__)


def class_names(rows: Dataset) -> list[str]:
    """Names of the classes to learn.

    Raises:
        ValueError: Rows without classes.
    """
    label = rows.features.get("label")
    if not isinstance(label, ClassLabel):
        raise ValueError(f"the training split has label {label}; expected a ClassLabel, text or whole numbers from 0")
    return label.names


def build_trainer(
    model: nn.Module,
    arguments: PointTrainingArguments,
    data: DataArguments,
    splits: DatasetDict,
    processor: PointCloudProcessor,
) -> Trainer:
    """A stock Trainer for this task."""
    return program.build_trainer(
        model,
        arguments,
        training_rows(splits["train"], processor, data.augment, seed=arguments.seed),
        evaluation_rows(splits["validation"], processor) if "validation" in splits else None,
        processor,
        data_collator=PointCloudCollator(),
        compute_metrics=compute_classification_metrics,
    )


def main(argv: list[str] | None = None) -> RunReport:
    """Train, judge, write model, card and metrics.json, and push them where that is wanted."""
    stopwatch = Stopwatch()
    kinds = (ModelArguments, DataArguments, AdapterArguments, PointTrainingArguments)
    model_arguments, data, adapter, arguments = parse_arguments(kinds, sys.argv[1:] if argv is None else argv)
    checkpoint = program.begin(arguments, logger)
    with arguments.main_process_first(desc="loading the data"):
        splits, origin = program.load_splits(data)
    classes = class_names(splits["train"])
    processor = PointCloudProcessor(num_points=data.num_points, features=data.features, up_axis=data.up_axis)
    model = program.build_adapted_model(
        Any2PointForPointCloudClassification, model_arguments, adapter, classes, in_channels=3 * len(data.features)
    )
    parameters = count_parameters(model)
    trainer = build_trainer(model, arguments, data, splits, processor)
    with stopwatch.part("training"):
        trainer.train(resume_from_checkpoint=checkpoint)
    with stopwatch.part("evaluation"):
        judged = {s: evaluation_rows(splits[s], processor) for s in ("validation", "test") if s in splits}
        scores = judge_splits(trainer, judged, classes)
    report, name = program.leave_behind(
        trainer,
        stopwatch,
        scores,
        data=program.data_facts(data, splits, origin),
        parameters=parameters,
        num_points=data.num_points,
        task=CLASSIFICATION,
        checkpoint=checkpoint,
    )
    logger.info("Model, card and metrics.json: %s. Try: hf-any3d predict FILE --model %s", name, name)
    return report


if __name__ == "__main__":
    main()
