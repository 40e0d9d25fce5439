"""The steps of MiniGPT-3D on the embedded shapes: its parts, four stages by the program, a judgement of each."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import chat_encoder
import chat_judging
import chat_language
import run_minigpt3d
from datasets import DatasetDict
from shape_facts import ShapeFacts
from shape_tree import all_facts, write_tree
from training_runs import kept_run, write_text

from hf_any3d.data import load_point_dataset
from hf_any3d.model_card.run_report import peak_memory
from hf_any3d.training.arguments import read_settings

RECIPES = Path(__file__).resolve().parent / "recipes"
STAGES = (1, 2, 3, 4)
PARTS = ("encoder", "language")
STEPS = (*PARTS, *(f"{what}_{stage}" for stage in STAGES for what in ("stage", "judge")))
"""What a seed goes through, in order."""


def recipe_of(stage: int) -> dict[str, Any]:
    """A stage's settings, but for folders and what an earlier stage left."""
    return read_settings(RECIPES / f"shapes_chat_stage{stage}.yaml")


def deciding_settings(step: str) -> dict[str, Any]:
    """All that decides a step's result beside the seed, as JSON would give it back."""
    settings: dict[str, Any] = {"encoder": {**chat_encoder.ENCODER, **chat_encoder.TRAINING}}
    settings["language"] = {**chat_language.LANGUAGE, **chat_language.TRAINING}
    if step in PARTS:
        settings = {step: settings[step]}
    else:
        settings |= {f"stage_{stage}": recipe_of(stage) for stage in STAGES if stage <= int(step[-1])}
    return json.loads(json.dumps(settings))


def prepare(folder: Path) -> Path:
    """Write the tree that all seeds share, and have it converted once."""
    splits = load_point_dataset("shapes")
    tree = write_tree(folder / "tree", splits["train"], splits["test"])
    for kind in {kind for stage in STAGES for kind in recipe_of(stage)["conversations"]}:
        options = recipe_of(1)["dataset_options"]
        load_point_dataset("objaverse_captions", data_dir=tree, which=kind, splits=["train"], **options)
    return tree


def run_step(step: str, seed: int, folder: Path) -> dict[str, Any]:
    """One step, kept as `folder/runs/<seed>-<step>.json`; steps before it must have been run.

    Args:
        step: One of `STEPS`.
        seed: Of weights, of the order of rows and of what is said to the language model.
        folder: Holds the runs of all seeds, and the tree of `prepare`.

    Returns:
        What came out, and `seconds`, `cpu_seconds` and `peak_memory` (bytes that the process held at most so far).
    """
    settings, place = deciding_settings(step), folder / f"seed-{seed}"

    def run() -> dict[str, Any]:
        _forget_other(place / step, settings)
        start, cpu_start = time.perf_counter(), time.process_time()
        name, _, stage = step.partition("_")
        result = _RUN[name](place, seed, int(stage or 0))
        took = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}
        return {"step": step, "seed": seed, **result, **took, "peak_memory": peak_memory().get("process")}

    return kept_run(folder / "runs" / f"{seed}-{step}.json", settings, run)


def _encoder(place: Path, seed: int, stage: int) -> dict[str, Any]:
    splits, facts = shapes()
    model, probes = chat_encoder.train_encoder(splits["train"], facts["train"], seed)
    model.save_pretrained(place / "encoder" / "model")
    told = {split: chat_encoder.probe_accuracy(model, probes, splits[split], facts[split]) for split in splits}
    return {"parameters": model.num_parameters(), "probes": told}


def _language(place: Path, seed: int, stage: int) -> dict[str, Any]:
    splits, facts = shapes()
    folder = place / "language" / "model"
    told = chat_language.train_language(facts["train"], seed, folder)
    rows = chat_judging.judged_rows(splits["test"], facts["test"])
    return {**told, "alone": chat_judging.words_alone(folder, rows, facts["test"])}


def _stage(place: Path, seed: int, stage: int) -> dict[str, Any]:
    parts = {"point_encoder": str(place / "encoder" / "model"), "language_model": str(place / "language" / "model")}
    start = (
        parts | {"qformer": "none"}
        if stage == 1
        else {"model_name_or_path": str(place / f"stage_{stage - 1}" / "model")}
    )
    quiet = {"disable_tqdm": True, "report_to": "none", "use_cpu": True}
    own = {"seed": seed, "data_dir": str(place.parent / "tree"), "output_dir": str(place / f"stage_{stage}" / "model")}
    file = place / f"stage_{stage}" / "arguments.json"
    write_text(file, json.dumps(recipe_of(stage) | start | quiet | own, indent=1))
    report = run_minigpt3d.main([str(file)])
    loss = report.metrics["train"]["loss"]
    return {"trained_parameters": report.trained_parameters, "total_parameters": report.total_parameters, "loss": loss}


def _judge(place: Path, seed: int, stage: int) -> dict[str, Any]:
    splits, facts = shapes()
    rows = chat_judging.judged_rows(splits["test"], facts["test"])
    model = place / f"stage_{stage}" / "model"
    return chat_judging.judge_stage(model, rows, facts["test"], place / f"judge_{stage}", seed)


_RUN: dict[str, Callable[[Path, int, int], dict[str, Any]]] = {
    "encoder": _encoder,
    "language": _language,
    "stage": _stage,
    "judge": _judge,
}


@cache
def shapes() -> tuple[DatasetDict, dict[str, list[ShapeFacts]]]:
    """The embedded shapes, and what is true of each."""
    splits = load_point_dataset("shapes")
    return splits, {split: all_facts(rows) for split, rows in splits.items()}


def _forget_other(folder: Path, settings: dict[str, Any]) -> None:
    """Begin anew what was begun by other settings."""
    path = folder / "settings.json"
    if folder.exists() and (not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != settings):
        shutil.rmtree(folder)
    write_text(path, json.dumps(settings))
