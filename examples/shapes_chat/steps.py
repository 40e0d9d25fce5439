"""The steps of MiniGPT-3D on colored shapes: a point encoder, the four training stages, an evaluation of each."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, load_from_disk

from examples import run_minigpt3d
from examples.shapes_chat import encoder as chat_encoder, evaluation as chat_evaluation
from examples.shapes_chat.conversations import write_tree
from examples.shapes_chat.facts import PALETTE, ShapeFacts, all_facts
from hf_any3d.data import load_point_dataset
from hf_any3d.model_card.run_report import peak_memory
from hf_any3d.training.recipes import read_settings
from studies.donors import donors_folder
from studies.generated_shapes import CLASSES, draw_colored
from studies.runs import RECIPES, kept_run, reset_if_changed, stopwatch, write_arguments

STAGES = (1, 2, 3, 4)
STEPS = ("alone", "encoder", *(f"stage_{stage}" for stage in STAGES), *(f"judge_{stage}" for stage in STAGES[::-1]))
"""The steps of a seed, in order: the last stage is evaluated first."""
GENERATED = {"train": 20, "test": 2}
"""Generated shapes of each class; those of a split have the seed of its place here."""


def recipe_of(stage: int) -> dict[str, Any]:
    """Read the settings of a stage, without folders and the results of earlier stages."""
    return read_settings(RECIPES / f"shapes_chat_stage{stage}.yaml")


def settings_of(step: str) -> dict[str, Any]:
    """Collect everything but the seed that affects a step's result, as JSON reads it back."""
    settings: dict[str, Any] = {"generated": GENERATED}
    if step != "alone":
        settings["encoder"] = {**chat_encoder.ENCODER, **chat_encoder.TRAINING}
    if step[-1].isdecimal():
        settings |= {f"stage_{stage}": recipe_of(stage) for stage in STAGES if stage <= int(step[-1])}
    return json.loads(json.dumps(settings))


def prepare(folder: Path) -> None:
    """Write the shapes and the conversations that all seeds share.

    Raises:
        FileNotFoundError: If the language model is missing.
    """
    if not language_model().is_dir():
        raise FileNotFoundError(f"{language_model()} does not exist; `make donors` builds it")
    if not (folder / "shapes").is_dir():
        DatasetDict({split: colored_shapes(split) for split in GENERATED}).save_to_disk(folder / "shapes.part")
        (folder / "shapes.part").rename(folder / "shapes")
    splits = shapes(folder)[0]
    write_tree(folder / "tree", splits["train"], splits["test"])


def language_model() -> Path:
    """Return the directory of SmolLM2-135M-Instruct."""
    return donors_folder() / "smollm2"


def colored_shapes(split: str, per_class: int | None = None) -> Dataset:
    """Collect the embedded shapes of a split, then generated ones: `points`, `colors`, `label`.

    Args:
        split: "train" or "test".
        per_class: Generated shapes of each class; None for `GENERATED`.
    """
    embedded = load_point_dataset("shapes", split=split).with_format("numpy")
    known = embedded.features["label"].names
    names = list(dict.fromkeys([*known, *(name.replace("_", " ") for name in CLASSES)]))
    count, seed = GENERATED[split] if per_class is None else per_class, list(GENERATED).index(split)
    wanted = [(name, number) for number in range(count) for name in CLASSES]
    drawn = [draw_colored(name, seed, number, PALETTE) for name, number in wanted]
    points, colors = zip(*((row["points"], row["colors"]) for row in embedded), *drawn, strict=True)
    labels = [names.index(known[label]) for label in embedded["label"]]
    columns = {
        "points": np.stack(points),
        "colors": np.stack(colors),
        "label": labels + [names.index(name.replace("_", " ")) for name, _ in wanted],
    }
    shape = (len(points[0]), 3)
    features = Features(
        points=Array2D(shape, "float32"), colors=Array2D(shape, "uint8"), label=ClassLabel(names=names)
    )
    return Dataset.from_dict(columns, features=features)


def run_step(step: str, seed: int, folder: Path) -> dict[str, Any]:
    """Run one step, stored as `folder/runs/<seed>-<step>.json`, after the steps before it.

    Args:
        step: One of `STEPS`.
        seed: Seed of weights and row order.
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


def _alone(place: Path, seed: int, stage: int) -> dict[str, Any]:
    exam, facts = examination(place.parent), shapes(place.parent)[1]["train"]
    alone = chat_evaluation.evaluate_language_model(language_model(), exam)
    return {"blind": exam.blind(facts), "main_color": exam.main_color(), "alone": alone}


def _encoder(place: Path, seed: int, stage: int) -> dict[str, Any]:
    splits, facts = shapes(place.parent)
    model, probes = chat_encoder.train_encoder(splits["train"], facts["train"], seed)
    model.save_pretrained(place / "encoder" / "model")
    return {
        "parameters": model.num_parameters(),
        "probes": chat_encoder.probe_answers(model, probes, splits["test"], facts["test"]),
    }


def _stage(place: Path, seed: int, stage: int) -> dict[str, Any]:
    start = {"model_name_or_path": str(place / f"stage_{stage - 1}" / "model")}
    if stage == 1:
        encoder = str(place / "encoder" / "model")
        start = {"point_encoder": encoder, "qformer": "none", "language_model": str(language_model())}
    own = {"use_cpu": True, "seed": seed, "data_dir": str(place.parent / "tree")}
    folder = place / f"stage_{stage}"
    report = run_minigpt3d.main([write_arguments(folder, recipe_of(stage) | start | own, folder / "model")])
    loss = report.metrics["train"]["loss"]
    return {"trained_parameters": report.trained_parameters, "total_parameters": report.total_parameters, "loss": loss}


def _judge(place: Path, seed: int, stage: int) -> dict[str, Any]:
    model = place / f"stage_{stage}" / "model"
    asked = [what for what in chat_evaluation.ASKED if stage == STAGES[-1] or "new words" not in what]
    asked = (
        asked[:2] if stage < 3 else asked
    )  # answers cost as much as training, and these stages learn captions alone
    return chat_evaluation.evaluate_stage(model, shapes(place.parent)[0]["test"], examination(place.parent), asked)


_RUN: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "alone": _alone,
    "encoder": _encoder,
    "stage": _stage,
    "judge": _judge,
}


@cache
def shapes(folder: Path) -> tuple[DatasetDict, dict[str, list[ShapeFacts]]]:
    """Load the shapes of a prepared folder, and the facts about each."""
    splits = load_from_disk(folder / "shapes")
    assert isinstance(splits, DatasetDict)
    return splits, {split: all_facts(rows) for split, rows in splits.items()}


def examination(folder: Path) -> chat_evaluation.Examination:
    """Return the questions about the test shapes of a prepared folder."""
    splits, facts = shapes(folder)
    return chat_evaluation.Examination(facts["test"], splits["test"].features["label"].names)
