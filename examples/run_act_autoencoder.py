"""Train ACT's first stage: a discrete autoencoder of point clouds around a frozen teacher of any modality.

    python examples/run_act_autoencoder.py --output_dir out/autoencoder --num_train_epochs 20 \
        --teacher sentence-transformers/all-MiniLM-L6-v2 --temperature_steps 800 --kl_weight_delay 0
    python examples/run_act_autoencoder.py examples/recipes/act_autoencoder_shapenet55.yaml --data_dir DATA
    python examples/run_act_autoencoder.py recipe.yaml --teacher openai/clip-vit-base-patch16 --tower vision
    python examples/run_act_autoencoder.py recipe.yaml --teacher none
    accelerate launch --config_file examples/recipes/accelerate/ddp.yaml --num_processes 2 \
        examples/run_act_autoencoder.py recipe.yaml

The teacher is any encoder that hf_any3d supports; --teacher none leaves it out, --random_teacher has its shape with
random weights. Evaluation reconstructs clouds from one code per patch, and counts the codes in use with their
perplexity; the weights with the lowest Chamfer distance are kept. The output directory gets the autoencoder, a model
card, metrics.json and a page of reconstructed clouds. How codes are selected is part of the model: --model_config
'{"code_scores": "distance", "quantizer": "nearest", "code_ema_decay": 0.97}'.
Next: examples/run_act_pretraining.py --autoencoder out/autoencoder.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hf_any3d  # noqa: F401  before torch, whose threads it lets sleep while they wait

# isort: split
import logging
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from datasets import ClassLabel, Dataset, DatasetDict
from transformers import Trainer, pipeline

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.data.inputs import count_channels
from hf_any3d.evaluation.reconstruction import (
    CompareWithClouds,
    ComputeReconstructionMetrics,
    evaluate_reconstruction,
    ignored_outputs,
)
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters
from hf_any3d.modeling.act import ActAutoencoder, ActAutoencoderOutput
from hf_any3d.training import program
from hf_any3d.training.pretraining import (
    AutoencoderTrainingArguments,
    PretrainingDataArguments,
    TeacherArguments,
    UnlabeledRows,
    build_autoencoder,
    load_splits,
    pretraining_rows,
)
from hf_any3d.training.protocol import build_processor
from hf_any3d.training.requests import parse_arguments
from hf_any3d.training.schedules import ScheduledArguments
from hf_any3d.visualization.reconstruction import write_reconstructions

logger = logging.getLogger(__name__)
PICTURE = "reconstructions.html"
IGNORED = ignored_outputs(output.name for output in fields(ActAutoencoderOutput))


def categories_of(rows: Dataset) -> list[int] | None:
    """Return the category of each row, or None without categories."""
    return list(rows["label"]) if isinstance(rows.features.get("label"), ClassLabel) else None


def build_trainer(
    model: ActAutoencoder,
    arguments: AutoencoderTrainingArguments,
    augment: Sequence[str],
    splits: DatasetDict,
    processor: PointCloudProcessor,
) -> Trainer:
    """Build a `Trainer` for this task."""
    validation = splits.get("validation")
    trainer = program.build_trainer(
        model,
        arguments,
        pretraining_rows(splits["train"], processor, augment, arguments.seed),
        None if validation is None else UnlabeledRows(validation, processor),
        processor,
        data_collator=PointCloudCollator(),
        compute_metrics=ComputeReconstructionMetrics(None if validation is None else categories_of(validation)),
        preprocess_logits_for_metrics=CompareWithClouds(arguments.f_score_threshold, arguments.drop_zero_sums),
    )
    # Before the callbacks that write logs.
    trainer.callback_handler.callbacks.insert(0, ScheduledArguments(arguments.schedules()))
    return trainer


def draw(model: ActAutoencoder, rows: Dataset, processor: PointCloudProcessor, count: int, path: Path) -> None:
    """Write a page of clouds and their reconstructions, of as many categories as possible."""
    numbers = categories_of(rows) or [0] * len(rows)
    firsts = [numbers.index(number) for number in sorted(set(numbers))]
    chosen = (firsts + [row for row in range(len(rows)) if row not in firsts])[:count]
    names = getattr(rows.features.get("label"), "names", ["cloud"])
    reconstruct = pipeline("point-cloud-reconstruction", model=model, feature_extractor=processor, device=model.device)
    answers = reconstruct([rows[row] for row in chosen])
    write_reconstructions(path, answers, [names[numbers[row]] for row in chosen], up_axis=processor.up_axis)


def main(argv: list[str] | None = None) -> RunReport:
    """Train and evaluate; write model, card, page and metrics.json, and push them if requested."""
    stopwatch = Stopwatch()
    kinds = (TeacherArguments, PretrainingDataArguments, AutoencoderTrainingArguments)
    teacher, data, arguments = parse_arguments(kinds, sys.argv[1:] if argv is None else argv)
    checkpoint = program.start_run(arguments, logger)
    with arguments.main_process_first(desc="loading the data"):
        splits, origin = load_splits(data)
    processor = build_processor(data, data.processor_config)
    model = build_autoencoder(teacher, in_channels=count_channels(data.features))
    parameters = count_parameters(model)
    trainer = build_trainer(model, arguments, data.augment, splits, processor)
    with stopwatch.part("training"):
        trainer.train(resume_from_checkpoint=checkpoint, ignore_keys_for_eval=IGNORED)
    with stopwatch.part("evaluation"):
        judged = {split: splits[split] for split in data.judged_splits() if split in splits}
        label = splits["train"].features.get("label")
        scores = evaluate_reconstruction(
            trainer,
            {split: UnlabeledRows(rows, processor) for split, rows in judged.items()},
            {split: categories_of(rows) for split, rows in judged.items()},
            getattr(label, "names", []),
            IGNORED,
        )
    if arguments.pictured_clouds and trainer.is_world_process_zero():
        shown = next((splits[split] for split in ("test", "validation") if split in splits), splits["train"])
        draw(model, shown, processor, arguments.pictured_clouds, Path(arguments.output_dir) / PICTURE)
    report, name = program.save_and_push(
        trainer,
        stopwatch,
        scores,
        data=program.data_facts(data, splits, origin),
        parameters=parameters,
        num_points=data.num_points,
        checkpoint=checkpoint,
        schedules=arguments.schedule_facts(),
    )
    logger.info("Model, card and metrics.json: %s. Try: examples/run_act_pretraining.py --autoencoder %s", name, name)
    return report


if __name__ == "__main__":
    program.run_program(main)
