"""Train a classifier of point clouds: around a frozen pretrained encoder, or from a pretrained point transformer.

Arguments can come from a JSON or YAML file; arguments after the file override it:

    python examples/run_point_cloud_classification.py --output_dir out/shapes --peft guided_adapter \
        --encoder_name_or_path sentence-transformers/all-MiniLM-L6-v2 --augment scale shift --num_train_epochs 40
    python examples/run_point_cloud_classification.py examples/recipes/any2point_clip_modelnet40.yaml \
        --data_dir data --voting 10
    python examples/run_point_cloud_classification.py --model_name_or_path out/pretrained --tuning mlp-3
    python examples/run_point_cloud_classification.py --model_type act3d --model_config '{"num_hidden_layers": 6}'
    python -m torch.distributed.run --nproc_per_node 2 examples/run_point_cloud_classification.py recipe.yaml

The output directory gets the model, a model card with the run's settings and metrics, and metrics.json. A validation
split selects the weights; the test split is evaluated once, at the end, unless --select_on_test is given.
"""

import logging
import sys

from datasets import ClassLabel, Dataset, DatasetDict
from torch import nn
from transformers import Trainer

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.evaluation.classification import compute_classification_metrics, judge_by_voting, judge_splits
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters
from hf_any3d.training import program
from hf_any3d.training.arguments import AdapterArguments, DataArguments, PointTrainingArguments, parse_arguments
from hf_any3d.training.models import CLASSES, PointModelArguments, build_model
from hf_any3d.training.protocol import (
    ProtocolArguments,
    apply_protocol,
    build_processor,
    protocol_facts,
    voting_rows,
)
from hf_any3d.training.rows import evaluation_rows, training_rows

logger = logging.getLogger(__name__)


def class_names(rows: Dataset) -> list[str]:
    """Return the names of the classes to learn.

    Raises:
        ValueError: The rows have no classes.
    """
    label = rows.features.get("label")
    if not isinstance(label, ClassLabel):
        raise ValueError(f"the training split has label {label}; expected a ClassLabel, text or whole numbers from 0")
    return label.names


def build_trainer(
    model: nn.Module,
    arguments: PointTrainingArguments,
    data: DataArguments,
    protocol: ProtocolArguments,
    splits: DatasetDict,
    processor: PointCloudProcessor,
) -> Trainer:
    """Build a `Trainer` for this task."""
    return program.build_trainer(
        model,
        arguments,
        training_rows(splits["train"], processor, data.augment, seed=arguments.seed, whole=protocol.augment_whole),
        evaluation_rows(splits["validation"], processor) if "validation" in splits else None,
        processor,
        data_collator=PointCloudCollator(),
        compute_metrics=compute_classification_metrics,
    )


def main(argv: list[str] | None = None) -> RunReport:
    """Train and evaluate; write model, card and metrics.json, and push them if requested."""
    stopwatch = Stopwatch()
    kinds = (PointModelArguments, DataArguments, ProtocolArguments, AdapterArguments, PointTrainingArguments)
    model_arguments, data, protocol, adapter, arguments = parse_arguments(
        kinds, sys.argv[1:] if argv is None else argv
    )
    checkpoint = program.start_run(arguments, logger)
    with arguments.main_process_first(desc="loading the data"):
        splits, origin = apply_protocol(*program.load_splits(data), protocol)
    classes = class_names(splits["train"])
    processor = build_processor(data, protocol.processor_config)
    model = build_model(CLASSES, model_arguments, adapter, classes, in_channels=3 * len(data.features))
    parameters = count_parameters(model)
    trainer = build_trainer(model, arguments, data, protocol, splits, processor)
    with stopwatch.part("training"):
        trainer.train(resume_from_checkpoint=checkpoint)
    with stopwatch.part("evaluation"):
        own = ("test",) if protocol.select_on_test else ("validation", "test")
        judged = {split: evaluation_rows(splits[split], processor) for split in own if split in splits}
        scores = judge_splits(trainer, judged, classes)
        if protocol.voting and "test" in splits:
            rows = voting_rows(splits["test"], processor, data, protocol, arguments.seed)
            votes = judge_by_voting(trainer, {"test": rows}, classes, protocol.voting)
            scores = tuple({**plain, **voted} for plain, voted in zip(scores, votes, strict=True))
    report, name = program.save_and_push(
        trainer,
        stopwatch,
        scores,
        data={**program.data_facts(data, splits, origin), **protocol_facts(protocol)},
        parameters=parameters,
        num_points=data.num_points,
        checkpoint=checkpoint,
        start=model_arguments.start(),
    )
    logger.info("Model, card and metrics.json: %s. Try: hf-any3d predict FILE --model %s", name, name)
    return report


if __name__ == "__main__":
    program.run_program(main)
