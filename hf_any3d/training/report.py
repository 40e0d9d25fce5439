"""The report of a run with the stock Trainer."""

from __future__ import annotations

from typing import Any

from peft import PeftModel
from torch import nn
from transformers import PreTrainedConfig, Trainer

from hf_any3d.model_card.run_report import RunReport, peak_memory
from hf_any3d.model_card.subject import adapter_facts
from hf_any3d.training.settings import PointTrainingArguments

_ENCODER = ("name_or_path", "revision", "checksum", "tower", "layers")


def report_run(
    trainer: Trainer,
    *,
    data: dict[str, Any],
    parameters: tuple[int, int],
    seconds: dict[str, float],
    metrics: dict[str, dict[str, float]],
    class_accuracy: dict[str, dict[str, float]] | None = None,
    resumed_from: str | None = None,
    encoder: dict[str, Any] | None = None,
    start: dict[str, Any] | None = None,
    schedules: dict[str, Any] | None = None,
) -> RunReport:
    """Gather what a run was, once it is over.

    Args:
        trainer: The trainer, after `train()`.
        data: Facts about the data; must have `name`.
        parameters: `count_parameters(model)` from before the training: loading the best adapter takes the gradient
            from some of them.
        seconds: Wall-clock seconds by part.
        metrics: What `judge_splits` gave.
        class_accuracy: What `judge_splits` gave beside it.
        resumed_from: Checkpoint that the run went on from.
        encoder: Which encoder it learned with; the one that the model's config names when left out.
        start: What the model started from, where that is no frozen encoder.
        schedules: Further facts about the training, such as schedules of its own.
    """
    arguments, state = trainer.args, trainer.state
    # Without an evaluation during training nothing was chosen.
    selection = {}
    if arguments.load_best_model_at_end and state.best_metric is not None:
        selection = {
            "metric": arguments.metric_for_best_model.removeprefix("eval_"),
            "value": state.best_metric,
            "step": state.best_global_step,
        }
    return RunReport(
        data=data,
        encoder=encoder_facts(config_of(trainer.model)) if encoder is None else encoder,
        adapter=adapter_facts(trainer.model),
        trained_parameters=parameters[0],
        total_parameters=parameters[1],
        seconds=seconds,
        peak_memory=peak_memory(),
        metrics=metrics,
        class_accuracy=class_accuracy or {},
        selection=selection,
        start=start or {},
        training={
            "seed": arguments.seed,
            "steps": state.global_step,
            "epochs": state.epoch,
            "batch_size": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
            "gradient_accumulation_steps": arguments.gradient_accumulation_steps,
            "processes": arguments.world_size,
            "learning_rate": float(arguments.learning_rate),
            **_schedule_facts(arguments, state.max_steps),
            "weight_decay": arguments.weight_decay,
            "weight_decay_on": arguments.weight_decay_on,
            "no_weight_decay": arguments.no_weight_decay,
            "max_grad_norm": arguments.max_grad_norm,
            **({"two_steps_per_batch": True} if arguments.two_steps_per_batch else {}),
            "label_smoothing": arguments.label_smoothing_factor,
            "precision": "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
            "device": arguments.device.type,
            "resumed_from": resumed_from,
            **(schedules or {}),
        },
    )


def _schedule_facts(arguments: PointTrainingArguments, max_steps: int) -> dict[str, Any]:
    if arguments.epoch_cosine is not None:
        return {"lr_scheduler": "epoch_cosine", "epoch_cosine": arguments.epoch_cosine}
    return {
        "lr_scheduler": str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)),
        "warmup_steps": arguments.get_warmup_steps(max_steps),
    }


def config_of(model: nn.Module) -> PreTrainedConfig:
    """The config of a model, adapted or not."""
    return model.get_base_model().config if isinstance(model, PeftModel) else model.config


def encoder_facts(config: PreTrainedConfig) -> dict[str, Any]:
    """Which encoder a config names, or the one that it was trained from: name, revision, checksum, tower, layers.

    Empty for a model without a frozen encoder.
    """
    if getattr(config, "encoder_config", None) is None:
        return {}
    facts = {key: getattr(config, f"encoder_{key}", None) for key in _ENCODER}
    facts["name"] = facts.pop("name_or_path") or config.encoder_trained_from
    facts["layers"] = config.encoder_config.num_hidden_layers
    facts["model_type"] = config.encoder_config.model_type
    return {key: facts[key] for key in ("name", "model_type", "tower", "layers", "revision", "checksum")}
