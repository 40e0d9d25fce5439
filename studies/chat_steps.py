"""The steps of MiniGPT-3D on the embedded shapes: its parts, the four training stages, an evaluation of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from datasets import DatasetDict, load_from_disk

from examples import run_minigpt3d
from hf_any3d.data import load_point_dataset, validation_split
from hf_any3d.model_card.run_report import peak_memory
from hf_any3d.training.arguments import read_settings
from hf_any3d.utils.atomic_files import write_text
from studies import chat_encoder, chat_evaluation, chat_language
from studies.runs import RECIPES, kept_run, reset_if_changed, stopwatch, write_arguments
from studies.shape_conversations import write_tree
from studies.shape_facts import ShapeFacts, all_facts

STAGES = (1, 2, 3, 4)
PARTS = ("encoder", "language")
VALIDATION = 0.2
STEPS = (*PARTS, *(f"{what}_{stage}" for stage in STAGES for what in ("stage", "judge")))
"""The steps of a seed, in order."""


def recipe_of(stage: int) -> dict[str, Any]:
    """Read the settings of a stage, without folders and the results of earlier stages."""
    return read_settings(RECIPES / f"shapes_chat_stage{stage}.yaml")


def settings_of(step: str) -> dict[str, Any]:
    """Collect everything but the seed that affects a step's result, as JSON reads it back."""
    settings: dict[str, Any] = {"encoder": {**chat_encoder.ENCODER, **chat_encoder.TRAINING}}
    settings["language"] = {**chat_language.LANGUAGE, **chat_language.TRAINING}
    if step in PARTS:
        settings = {step: settings[step]}
    else:
        settings |= {f"stage_{stage}": recipe_of(stage) for stage in STAGES if stage <= int(step[-1])}
    return json.loads(json.dumps(settings))


def prepare(folder: Path, validation: bool = False) -> None:
    """Write the shapes and the conversations that all seeds share, and convert the latter once.

    Args:
        folder: Folder for the runs of all seeds.
        validation: Evaluate on a fifth of the training shapes, whole groups of near-duplicates, instead of the test
            shapes.

    Raises:
        ValueError: If the folder was prepared for the other shapes.
    """
    place, origin = folder / "shapes", {"validation": validation}
    if not place.is_dir():
        splits = load_point_dataset("shapes")
        if validation:
            parts = validation_split(splits["train"], VALIDATION, group_column="group")
            splits = DatasetDict(train=parts["train"], test=parts["validation"])
        part = place.with_name("shapes.part")
        splits.save_to_disk(part)
        write_text(part / "origin.json", json.dumps(origin))
        part.rename(place)
    if (stored := json.loads((place / "origin.json").read_text(encoding="utf-8"))) != origin:
        raise ValueError(f"{folder} was prepared with {stored}; expected {origin}, or another folder")
    splits = shapes(folder)[0]
    tree = write_tree(folder / "tree", splits["train"], splits["test"])
    for kind in {kind for stage in STAGES for kind in recipe_of(stage)["conversations"]}:
        options = recipe_of(1)["dataset_options"]
        load_point_dataset("objaverse_captions", data_dir=tree, which=kind, splits=["train"], **options)


def run_step(step: str, seed: int, folder: Path) -> dict[str, Any]:
    """Run one step, stored as `folder/runs/<seed>-<step>.json`, after the steps before it.

    Args:
        step: One of `STEPS`.
        seed: Seed of weights, row order and the texts for the language model.
        folder: Folder for the runs of all seeds, where `prepare` wrote the conversations.

    Returns:
        The results, with `seconds`, `cpu_seconds` and `peak_memory` (peak bytes of the process so far).
    """
    settings, place = settings_of(step), folder / f"seed-{seed}"

    def run() -> dict[str, Any]:
        reset_if_changed(place / step, settings)
        name, _, stage = step.partition("_")
        with stopwatch() as spent:
            result = _RUN[name](place, seed, int(stage or 0))
        return {"step": step, "seed": seed, **result, **spent, "peak_memory": peak_memory().get("process")}

    return kept_run(folder / "runs" / f"{seed}-{step}.json", settings, run)


def _encoder(place: Path, seed: int, stage: int) -> dict[str, Any]:
    splits, facts = shapes(place.parent)
    model, probes = chat_encoder.train_encoder(splits["train"], facts["train"], seed)
    model.save_pretrained(place / "encoder" / "model")
    accuracies = {name: chat_encoder.probe_accuracy(model, probes, rows, facts[name]) for name, rows in splits.items()}
    return {"parameters": model.num_parameters(), "probes": accuracies}


def _language(place: Path, seed: int, stage: int) -> dict[str, Any]:
    splits, facts = shapes(place.parent)
    folder = place / "language" / "model"
    result = chat_language.train_language(facts["train"], seed, folder)
    rows = chat_evaluation.evaluation_rows(splits["test"], facts["test"])
    return {**result, "alone": chat_evaluation.evaluate_language_model(folder, rows, facts["test"])}


def _stage(place: Path, seed: int, stage: int) -> dict[str, Any]:
    start = {"model_name_or_path": str(place / f"stage_{stage - 1}" / "model")}
    if stage == 1:
        parts = {"point_encoder": "encoder", "language_model": "language"}
        start = {name: str(place / part / "model") for name, part in parts.items()} | {"qformer": "none"}
    own = {"use_cpu": True, "seed": seed, "data_dir": str(place.parent / "tree")}
    folder = place / f"stage_{stage}"
    report = run_minigpt3d.main([write_arguments(folder, recipe_of(stage) | start | own, folder / "model")])
    loss = report.metrics["train"]["loss"]
    return {"trained_parameters": report.trained_parameters, "total_parameters": report.total_parameters, "loss": loss}


def _judge(place: Path, seed: int, stage: int) -> dict[str, Any]:
    splits, facts = shapes(place.parent)
    rows = chat_evaluation.evaluation_rows(splits["test"], facts["test"])
    model = place / f"stage_{stage}" / "model"
    return chat_evaluation.evaluate_stage(model, rows, facts["test"], place / f"judge_{stage}", seed)


_RUN: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "encoder": _encoder,
    "language": _language,
    "stage": _stage,
    "judge": _judge,
}


@cache
def shapes(folder: Path) -> tuple[DatasetDict, dict[str, list[ShapeFacts]]]:
    """Load the shapes of a prepared folder, and the facts about each."""
    splits = load_from_disk(folder / "shapes")
    assert isinstance(splits, DatasetDict)
    return splits, {split: all_facts(rows) for split, rows in splits.items()}
