"""Train ACT's second stage: a point transformer learns to predict a frozen autoencoder's features of masked patches.

With --model_name_or_path, a pretrained student is trained further in its own way: as ACT, Point-MAE,
Point-BERT, ReCon or PointGPT.

    python examples/run_act_pretraining.py --autoencoder out/autoencoder --output_dir out/pretrained \
        --num_train_epochs 20 --probe_every 5
    python examples/run_act_pretraining.py examples/recipes/act_pretraining_shapenet55.yaml --data_dir DATA \
        --autoencoder outputs/recipes/act_autoencoder_shapenet55
    python examples/run_act_pretraining.py --autoencoder out/autoencoder --student DIR_OF_A_UNI3D --features xyz rgb
    python examples/run_act_pretraining.py --model_name_or_path point_mae --dataset_name folder --data_dir DATA
    python examples/run_act_pretraining.py recipe.yaml --mask_type block --mask_ratio 0.6 --distillation_loss smooth_l1
    accelerate launch --config_file examples/recipes/accelerate/ddp.yaml --num_processes 2 \
        examples/run_act_pretraining.py recipe.yaml

The autoencoder comes from examples/run_act_autoencoder.py. With --student training starts from an encoder that is
aligned with texts, or of voxels, whose trained weights are also saved alone, in OUTPUT_DIR/student. With --probe_every
a linear SVM measures every few epochs how well frozen features separate classes of labeled clouds. The output
directory gets the model, a model card and metrics.json. Next: examples/run_point_cloud_classification.py
--model_name_or_path out/pretrained.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hf_any3d  # noqa: F401  before torch, whose threads it lets sleep while they wait

# isort: split
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from datasets import DatasetDict
from transformers import PreTrainedModel, Trainer

from hf_any3d import PointCloudProcessor
from hf_any3d.data import PointCloudCollator
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters
from hf_any3d.training import program
from hf_any3d.training.pretraining import (
    DistillationTrainingArguments,
    PretrainingDataArguments,
    ProbeArguments,
    ProbeCallback,
    StudentArguments,
    UnlabeledRows,
    build_probe,
    build_student,
    evaluate_pretraining,
    load_splits,
    pretraining_rows,
)
from hf_any3d.training.program import encoder_facts
from hf_any3d.training.protocol import build_processor
from hf_any3d.training.requests import parse_arguments

logger = logging.getLogger(__name__)


def build_trainer(
    model: PreTrainedModel,
    arguments: DistillationTrainingArguments,
    augment: Sequence[str],
    splits: DatasetDict,
    processor: PointCloudProcessor,
) -> Trainer:
    """Build a `Trainer` for this task."""
    return program.build_trainer(
        model,
        arguments,
        pretraining_rows(splits["train"], processor, augment, arguments.seed),
        UnlabeledRows(splits["validation"], processor) if "validation" in splits else None,
        processor,
        data_collator=PointCloudCollator(),
    )


def save_student(model: PreTrainedModel, processor: PointCloudProcessor, directory: Path) -> Path:
    """Save a student of another kind than ACT's alone, as a model of its own kind; returns the directory."""
    model.base_model.save_pretrained(directory)
    processor.save_pretrained(directory)
    return directory


def main(argv: list[str] | None = None) -> RunReport:
    """Train and evaluate; write model, card and metrics.json, and push them if requested."""
    stopwatch = Stopwatch()
    kinds = (StudentArguments, PretrainingDataArguments, ProbeArguments, DistillationTrainingArguments)
    student, data, probing, arguments = parse_arguments(kinds, sys.argv[1:] if argv is None else argv)
    checkpoint = program.start_run(arguments, logger)
    with arguments.main_process_first(desc="loading the data"):
        splits, origin = load_splits(data)
    processor = build_processor(data, data.processor_config)
    probe = build_probe(probing, data, splits, processor, arguments.per_device_eval_batch_size)
    model = build_student(student)
    parameters = count_parameters(model)
    trainer = build_trainer(model, arguments, data.augment, splits, processor)
    if probe is not None:
        trainer.add_callback(ProbeCallback(trainer, probe, probing.probe_every))
    with stopwatch.part("training"):
        trainer.train(resume_from_checkpoint=checkpoint)
    with stopwatch.part("evaluation"):
        judged = {name: UnlabeledRows(splits[name], processor) for name in data.judged_splits() if name in splits}
        scores = evaluate_pretraining(trainer, judged, probe)
    report, name = program.save_and_push(
        trainer,
        stopwatch,
        scores,
        data=program.data_facts(data, splits, origin) | {"probed on": probing.probe_dataset},
        parameters=parameters,
        num_points=data.num_points,
        checkpoint=checkpoint,
        encoder=encoder_facts(getattr(model.config, "autoencoder_config", None)),
        start={
            name: value
            for name, value in (
                ("autoencoder", student.autoencoder),
                ("student", student.student),
                ("model", student.model_name_or_path),
            )
            if value is not None
        },
    )
    if student.student is not None and trainer.is_world_process_zero():
        name = save_student(model, processor, Path(arguments.output_dir) / "student")
    logger.info(
        "Model, card and metrics.json: %s. Try: examples/run_point_cloud_classification.py --model_name_or_path %s",
        name,
        name,
    )
    return report


if __name__ == "__main__":
    program.run_program(main)
