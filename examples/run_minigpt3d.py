"""Train MiniGPT-3D: a language model learns to answer questions about point clouds, in four stages.

    python examples/run_minigpt3d.py examples/recipes/minigpt3d_stage1.yaml --data_dir DATA \
        --model_name_or_path outputs/start --output_dir out/stage1
    python examples/run_minigpt3d.py examples/recipes/minigpt3d_stage2.yaml --data_dir DATA \
        --model_name_or_path out/stage1 --output_dir out/stage2
    python examples/run_minigpt3d.py --stage 3 --data_dir DATA --model_name_or_path out/stage2 \
        --output_dir out/stage3 --max_steps 100 --batch_sizes 2 2 2 --bf16 --activation_checkpointing
    accelerate launch --config_file examples/recipes/accelerate/fsdp2.yaml --num_processes 2 \
        examples/run_minigpt3d.py recipe.yaml

Stage 1 trains the layers from the point encoder to the Q-Former, stages 2 and 3 nearly everything, stage 4 the query
experts. `outputs/start` has what the paper starts from, see docs/minigpt3d_checkpoints.md; --point_encoder, --qformer
and --language_model build a model from other parts, without image priors. A saved stage has the trained weights and
the names of the pretrained parts. Next:
`hf-any3d chat out/stage4 chair.ply`.
"""

import os

# torch reads this when it is loaded: idle threads sleep, and leave processors to the programs beside this one.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import hf_any3d  # noqa: F401  before torch, whose threads it lets sleep while they wait

# isort: split
import logging
import math
import sys

import torch
from datasets import Dataset
from transformers.trainer_utils import TrainOutput

from hf_any3d.chat import MiniGPT3DProcessor
from hf_any3d.data import load_point_dataset
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters
from hf_any3d.modeling.minigpt3d import MiniGPT3DForConditionalGeneration
from hf_any3d.training import program
from hf_any3d.training.minigpt3d_stages import (
    ConversationArguments,
    StageArguments,
    StageTrainer,
    StageTrainingArguments,
    halve_frozen,
    open_for_stage,
    trained_groups,
    warn_of_local_parts,
)
from hf_any3d.training.requests import parse_arguments
from hf_any3d.training.text_rows import ConversationCollator, ConversationRows

logger = logging.getLogger(__name__)


def load_conversations(data: ConversationArguments) -> tuple[list[Dataset], Dataset | None]:
    """Load the training rows of each kind of conversations, and the validation rows."""
    kinds, validation = [], None
    for number, kind in enumerate(data.conversations):
        wanted = ["train"] + ["validation"] * (number == 0 and data.max_eval_samples > 0)
        splits = load_point_dataset(
            data.dataset_name, data_dir=data.data_dir, which=kind, splits=wanted, **data.dataset_options
        )
        rows = splits["train"]
        most = len(rows) if data.max_train_samples is None else min(len(rows), data.max_train_samples)
        kinds.append(rows.select(range(most)))
        if "validation" in splits:
            rows = splits["validation"]
            validation = rows.select(range(min(len(rows), data.max_eval_samples)))
    return kinds, validation


def build_trainer(
    model: MiniGPT3DForConditionalGeneration,
    processor: MiniGPT3DProcessor,
    arguments: StageTrainingArguments,
    data: ConversationArguments,
    kinds: list[Dataset],
    validation: Dataset | None,
) -> StageTrainer:
    """Build a `Trainer` for this task."""
    if validation is None:
        arguments.eval_strategy = "no"
    return StageTrainer(
        model,
        arguments,
        kinds=[ConversationRows(rows, processor) for rows in kinds],
        batch_sizes=data.batch_sizes,
        ratios=data.data_ratios,
        eval_dataset=None if validation is None else ConversationRows(validation, processor),
        data_collator=ConversationCollator(processor),
        processing_class=processor,
    )


def evaluate(trainer: StageTrainer) -> dict[str, dict[str, float]]:
    """Compute loss and perplexity on the validation split, if there is one."""
    if trainer.eval_dataset is None:
        return {}
    found = trainer.evaluate(metric_key_prefix="validation")
    metrics = {"loss": found["validation_loss"], "perplexity": math.exp(min(found["validation_loss"], 100.0))}
    trainer.log_metrics("validation", found)
    return {"validation": metrics}


def training_loss(trainer: StageTrainer, trained: TrainOutput, checkpoint: str | None) -> dict[str, dict[str, float]]:
    """Compute the mean training loss; for a resumed run from all logged steps."""
    if checkpoint is None:
        return {"train": {"loss": trained.training_loss}}
    logged = [(entry["step"], entry["loss"]) for entry in trainer.state.log_history if "loss" in entry]
    steps = [step - before for (step, _), before in zip(logged, [0, *(step for step, _ in logged)], strict=False)]
    if not logged:
        return {}
    return {"train": {"loss": sum(n * loss for n, (_, loss) in zip(steps, logged, strict=True)) / sum(steps)}}


def main(argv: list[str] | None = None) -> RunReport:
    """Train and evaluate a stage; write model, card and metrics.json, and push them if requested."""
    stopwatch = Stopwatch()
    kinds = (StageArguments, ConversationArguments, StageTrainingArguments)
    start, data, arguments = parse_arguments(kinds, sys.argv[1:] if argv is None else argv)
    data.choose(start.stage)
    if start.frozen_in_half and not (arguments.bf16 or arguments.fp16):
        raise ValueError("--frozen_in_half needs --bf16 or --fp16")
    checkpoint = program.start_run(arguments, logger)
    with arguments.main_process_first(desc="loading the data"):
        training, validation = load_conversations(data)
    model, processor = open_for_stage(start, data.num_points, data.sampling)
    if start.frozen_in_half:
        halve_frozen(model, torch.bfloat16 if arguments.bf16 else torch.float16)
    if arguments.push_to_hub:
        warn_of_local_parts(model.config.parts)
    parameters, groups = count_parameters(model), trained_groups(model)
    for name, count in groups.items():
        logger.info("stage %d trains %s: %s parameters", start.stage, name, f"{count:,}")
    trainer = build_trainer(model, processor, arguments, data, training, validation)
    with stopwatch.part("training"):
        trained = trainer.train(resume_from_checkpoint=checkpoint)
    with stopwatch.part("evaluation"):
        metrics = evaluate(trainer)
    rows = {name: len(some) for name, some in zip(data.conversations, training, strict=True)}
    report, name = program.save_and_push(
        trainer,
        stopwatch,
        (metrics | training_loss(trainer, trained, checkpoint), {}),
        data={
            "name": data.dataset_name,
            "options": data.dataset_options,
            "rows": rows | ({} if validation is None else {"validation": len(validation)}),
            "ratios": dict(zip(data.conversations, data.data_ratios, strict=True)),
            "validation": "none" if validation is None else "the dataset's own split",
            "points": processor.feature_extractor.num_points,
            "features": list(processor.feature_extractor.features),
        },
        parameters=parameters,
        num_points=processor.feature_extractor.num_points,
        checkpoint=checkpoint,
        start={
            "stage": start.stage,
            "model": start.model_name_or_path,
            "parts": model.config.parts,
            "image_priors": model.config.image_priors,
        },
        schedules={
            "batch_size": {
                kind: size * arguments.gradient_accumulation_steps * arguments.world_size
                for kind, size in zip(data.conversations, data.batch_sizes, strict=True)
            },
            "trained": groups,
            **arguments.schedule_facts,
        },
    )
    logger.info("Model, card and metrics.json: %s. Try: hf-any3d chat %s CLOUD", name, name)
    return report


if __name__ == "__main__":
    program.run_program(main)
