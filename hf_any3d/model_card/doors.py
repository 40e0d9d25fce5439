"""Where cards are written: when a model is saved or pushed, by its own method, by PEFT or by a Trainer.

A card is written over when it is none of anybody's work: one that this package wrote and nobody has edited since (a
comment at its end holds a digest of it), or an untouched template of huggingface_hub, PEFT or Trainer. Any other
README.md stays as it is.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.utils import logging

from hf_any3d.atomic_files import write_text
from hf_any3d.markdown import one_line
from hf_any3d.model_card.building import Subject, adapter_facts, build_model_card
from hf_any3d.model_card.run_report import RunReport, count_parameters, package_versions

logger = logging.get_logger(__name__)

FILE = "README.md"
_OF_TRAINER = "This model card has been generated automatically according to the information the Trainer had access to"
_OF_TRANSFORMERS = (
    "This is the model card of a 🤗 transformers model that has been pushed on the Hub. This model card has been "
    "automatically generated."
)
_MARK = re.compile(r"<!-- Written by hf_any3d \((\w+)\)[^>]*-->")
_NOTE = "an edited card is never written over"
_HEAD = re.compile(r"\A\s*---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
# The hub's tools add tags, and write scores in a form of their own.
_CHANGED_BY_TOOLS = ("tags", "model-index")


def write_model_card(model: nn.Module, directory: str | os.PathLike, name: str | None = None) -> Path | None:
    """Write the card of a model that has just been saved, unless somebody wrote one of their own.

    Args:
        model: A model of ours, or a PEFT model around one.
        directory: Where it was saved.
        name: Its repository; None for the directory itself.

    Returns:
        The card, or None where one was kept.

    Raises:
        ValueError: If the class of the model does not describe itself.
    """
    directory = Path(directory)
    shown = name or (directory.name if directory.is_absolute() else os.fspath(directory))
    return save_card(build_model_card(Subject.from_model(model), shown), directory / FILE)


def save_card(card: ModelCard, path: str | os.PathLike) -> Path | None:
    """Write a card, unless somebody wrote one of their own there.

    Tags, licence, language and datasets that were there stay, where the card says nothing else.

    Returns:
        The path, or None where the card that is there was kept.
    """
    path = Path(path)
    if path.is_file():
        there = path.read_text(encoding="utf-8", errors="replace")
        if not may_be_replaced(there):
            logger.info("%s: somebody wrote or edited it; it is kept", path)
            return None
        _take_over(card, _split(there)[0])
    return write_text(path, sign_card(str(card)))


def _take_over(card: ModelCard, metadata: Mapping[str, Any]) -> None:
    tags = metadata.get("tags")
    if isinstance(tags, list):
        card.data.tags = list(dict.fromkeys([*(card.data.tags or []), *(one_line(tag) for tag in tags)]))
    for key in ("license", "language", "datasets"):
        if metadata.get(key) and not getattr(card.data, key, None):
            setattr(card.data, key, metadata[key])


def sign_card(text: str) -> str:
    """A card with the mark by which `may_be_replaced` knows that nobody has edited it."""
    text = _MARK.sub("", text).rstrip()
    return f"{text}\n\n<!-- Written by hf_any3d ({_digest(*_split(text))}); {_NOTE}. -->\n"


def may_be_replaced(text: str) -> bool:
    """Whether a card is nobody's work: our own, as it was written, or an untouched template of another library."""
    metadata, body = _split(text)
    if not body.strip():
        return not set(metadata) - {"tags", "library_name", "base_model", "pipeline_tag"}
    if marked := _MARK.search(body):
        return marked[1] == _digest(metadata, _MARK.sub("", body))
    if _OF_TRAINER in " ".join(body.split()):
        return True
    return _is_template(body)


def keep_model_card(trainer: Trainer, build: Callable[[], ModelCard]) -> None:
    """Let `trainer.create_model_card()`, and with it `trainer.push_to_hub()`, write the card that `build` gives.

    It is built when it is written: saving may find that a pretrained part has changed, and store it.
    """
    trainer.build_model_card = build


def write_trainer_card(
    trainer: Trainer,
    language: str | None = None,
    license: str | None = None,
    tags: str | list[str] | None = None,
    model_name: str | None = None,
    finetuned_from: str | None = None,
    tasks: str | list[str] | None = None,
    dataset_tags: str | list[str] | None = None,
    dataset: str | list[str] | None = None,
    dataset_args: str | list[str] | None = None,
) -> Path | None:
    """Write the card of a trainer's model, with what the trainer knows of the run.

    Args:
        trainer: Holds a model of ours.
        language: As `Trainer.create_model_card` has it, and so the others.
        license: Licence of the model, as the hub writes it.
        tags: More tags.
        model_name: Not heeded: the card is named after its repository.
        finetuned_from: The base model, instead of the one that the config names.
        tasks: More tags; the task is that of the model's class.
        dataset_tags: Names of datasets on the hub.
        dataset: What the model was trained on, in words.
        dataset_args: More about the data, in words.
    """
    if not trainer.is_world_process_zero():
        return None
    path = Path(trainer.args.output_dir) / FILE
    build = getattr(trainer, "build_model_card", None)
    if build is not None:
        card = build()
    else:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        name = trainer.hub_model_id or (path.parent.name if path.is_absolute() else os.fspath(path.parent))
        report = report_of_trainer(trainer, _listed(dataset), _listed(dataset_args))
        subject = Subject.from_model(model, report)
        card = build_model_card(
            subject, name, license=getattr(trainer.args, "license", None), base_model=finetuned_from
        )
    card.data.license = one_line(license) if license else card.data.license
    card.data.language = language or card.data.language
    card.data.datasets = [one_line(tag) for tag in _listed(dataset_tags)] or card.data.datasets
    more = [one_line(tag) for tag in _listed(tags) + _listed(tasks)]
    card.data.tags = list(dict.fromkeys([*card.data.tags, *more]))
    if (saved := save_card(card, path)) is None:
        logger.warning("%s: somebody wrote or edited it; it is kept, and says nothing of this run", path)
    return saved


def _listed(given: str | list[str] | None) -> list[str]:
    return [given] if isinstance(given, str) else list(given or ())


def report_of_trainer(trainer: Trainer, dataset: Sequence[str] = (), options: Sequence[str] = ()) -> RunReport:
    """What a stock Trainer knows of its run.

    Losses of an evaluation with label smoothing, or by a function of the user's, are named so: they are not those of
    the model.

    Args:
        trainer: Holds a model of ours.
        dataset: What it was trained on, where that is known.
        options: More about that.
    """
    arguments, state = trainer.args, trainer.state
    model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
    inner = model if isinstance(model, PreTrainedModel) else model.get_base_model()
    rows = {"train": trainer.train_dataset, "evaluation": trainer.eval_dataset}
    sizes = {split: len(some) for split, some in rows.items() if hasattr(some, "__len__")}
    name = ", ".join(dataset) or getattr(getattr(trainer.train_dataset, "info", None), "dataset_name", None)
    trained, total = count_parameters(model)
    selection, metrics = _last_evaluation(trainer)
    smoothed = arguments.label_smoothing_factor and trainer.label_smoother is not None
    if "loss" in metrics and trainer.compute_loss_func is not None:
        metrics["loss (of the trainer's own function)"] = metrics.pop("loss")
    elif "loss" in metrics and smoothed and not getattr(trainer, "judges_by_plain_loss", False):
        metrics["loss (label-smoothed)"] = metrics.pop("loss")
    config = inner.config
    encoder = getattr(config, "encoder_name_or_path", None) or getattr(config, "encoder_trained_from", None)
    start = getattr(config, "base_name_or_path", None)
    return RunReport(
        data={"name": name, "options": list(options), "rows": sizes},
        encoder={"name": encoder} if encoder else {},
        adapter=adapter_facts(model),
        trained_parameters=trained,
        total_parameters=total,
        seconds={},
        peak_memory={},
        metrics={"evaluation": metrics} if metrics else {},
        class_accuracy={},
        selection=selection,
        training={
            "seed": arguments.seed,
            "steps": state.global_step,
            "epochs": state.epoch,
            "batch_size": arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size,
            "learning_rate": float(arguments.learning_rate),
            "lr_scheduler": str(getattr(arguments.lr_scheduler_type, "value", arguments.lr_scheduler_type)),
            "weight_decay": arguments.weight_decay,
            "label_smoothing": arguments.label_smoothing_factor,
            "precision": "bfloat16" if arguments.bf16 else "float16" if arguments.fp16 else "float32",
        },
        versions=package_versions(),
        start={"model": start} if start else {},
    )


def _last_evaluation(trainer: Trainer) -> tuple[dict[str, Any], dict[str, float]]:
    """Which step's weights the model has, and what the evaluation of that very step found."""
    arguments, state = trainer.args, trainer.state
    step, selection = state.global_step, {}
    if arguments.load_best_model_at_end and state.best_metric is not None:
        step = state.best_global_step
        metric = arguments.metric_for_best_model.removeprefix("eval_")
        selection = {"metric": metric, "value": state.best_metric, "step": step}
    found: dict[str, float] = {}
    skipped = ("runtime", "samples_per_second", "steps_per_second", "jit_compilation_time")
    for entry in state.log_history:
        if entry.get("step") == step:
            found |= {
                key.removeprefix("eval_"): float(value)
                for key, value in entry.items()
                if key.startswith("eval_") and isinstance(value, (int, float)) and not key.endswith(skipped)
            }
    return selection, found


def _split(text: str) -> tuple[dict[str, Any], str]:
    """Metadata and body of a card; what cannot be read as metadata counts as body."""
    head = _HEAD.match(text)
    if head is None:
        return {}, text
    try:
        metadata = yaml.safe_load(head[1])
    except yaml.YAMLError:
        return {}, text
    return (metadata, text[head.end() :]) if isinstance(metadata, dict) else ({}, text)


def _digest(metadata: Mapping[str, Any], body: str) -> str:
    kept = {key: value for key, value in metadata.items() if key not in _CHANGED_BY_TOOLS}
    whole = json.dumps([kept, "\n".join(body.split("\n")).strip().splitlines()], sort_keys=True, default=str)
    return hashlib.sha256(whole.encode("utf-8", "replace")).hexdigest()[:16]


def _is_template(body: str) -> bool:
    """Whether a card has no line but those of the template that huggingface_hub, PEFT and transformers fill in."""
    template = ModelCard.from_template(ModelCardData(), model_description=_OF_TRANSFORMERS).text
    known = {line.strip() for line in template.splitlines()}
    lines = (line.strip() for line in body.splitlines())
    return all(
        line in known or line == "### Framework versions" or line.startswith("- PEFT ") for line in lines if line
    )
