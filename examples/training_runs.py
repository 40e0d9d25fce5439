"""What programs share that train several models with several seeds: runs that are kept, and figures over the seeds."""

from __future__ import annotations

import argparse
import json
import os
import platform
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import shapes_recipe as recipe
import torch
from datasets import Dataset
from torch import nn
from tqdm.auto import tqdm
from transformers import Trainer
from transformers.trainer_callback import PrinterCallback

from hf_any3d.atomic_files import write_text


def fit(
    model: nn.Module, seed: int, train: Dataset, output_dir: str | os.PathLike, **changes: Any
) -> tuple[Trainer, dict[str, float]]:
    """Train a model by the recipe for the embedded shapes, and say what it cost.

    Args:
        model: any point cloud classifier.
        seed: order of the rows, augmentation, dropout.
        train: training rows.
        output_dir: where `Trainer` may write.
        **changes: settings to change, by their names in `TrainingArguments`.

    Returns:
        The trainer with the last epoch's model, and `train_loss`, `trained_parameters`, `seconds`, `cpu_seconds`,
        `train_rows` of the training alone.
    """
    trainer = recipe.build_trainer(model, recipe.training_arguments(output_dir, seed, **changes), train)
    trainer.remove_callback(PrinterCallback)
    start, cpu_start = time.perf_counter(), time.process_time()
    loss = trainer.train().training_loss
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    return trainer, {
        "train_loss": loss,
        "trained_parameters": recipe.trained_parameters(model),
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "train_rows": len(train),
    }


def kept_run(path: Path, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The result stored at `path` if it was made with the same settings, else that of `run`, which is stored there.

    Args:
        path: JSON file of this run.
        settings: everything that decides the result, as JSON gives it back.
        run: makes the result.
    """
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stored.get("settings") != settings:
        stored = {**run(), "threads": torch.get_num_threads(), "settings": settings}
        write_text(path, json.dumps(stored, indent=1))
    return stored


def every_run(
    arms: Iterable[str],
    seeds: Iterable[int],
    folder: Path,
    settings_of: Callable[[str], dict[str, Any]],
    run: Callable[[str, int], dict[str, Any]],
) -> list[dict[str, Any]]:
    """The runs of all arms with all seeds, each kept as `folder/<arm>-<seed>.json` (see `kept_run`).

    Args:
        arms: names of what is trained.
        seeds: seeds of each.
        folder: where runs are kept.
        settings_of: what decides the result of an arm beside the seed.
        run: trains an arm with a seed and measures it; gives at least `accuracy` and `seconds`.
    """
    runs = []
    for seed, arm in tqdm([(seed, arm) for seed in seeds for arm in arms], desc="runs"):

        def named_run(arm: str = arm, seed: int = seed) -> dict[str, Any]:
            tqdm.write(f"{arm}, seed {seed}")
            return {"arm": arm, "seed": seed, **run(arm, seed)}

        stored = kept_run(folder / f"{arm}-{seed}.json", settings_of(arm), named_run)
        tqdm.write(f"{arm}, seed {seed}: {100 * stored['accuracy']:.1f} % in {stored['seconds']:.0f} s")
        runs.append(stored)
    return runs


def recipe_settings(changes: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    """What decides the result of a run by the recipe, as JSON gives it back.

    Args:
        changes: changed training settings (see `fit`).
        **more: what else decides, such as settings of the model.
    """
    settings = {"training": {**recipe.TRAINING, **(changes or {})}, "augmentation": recipe.AUGMENTATION, **more}
    return json.loads(json.dumps({**settings, "label_smoothing": recipe.LABEL_SMOOTHING}))


def runs_parser(about: str, output_dir: str, arms: Iterable[str]) -> argparse.ArgumentParser:
    """A command line with what a program asks that trains arms with several seeds.

    Args:
        about: the program's docstring.
        output_dir: where results go by default.
        arms: names of what can be trained.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path(output_dir), help="runs and tables go here")
    parser.add_argument("--arms", nargs="+", default=list(arms), choices=list(arms), help="what to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--threads", type=int, help="threads of torch; its own choice by default")
    return parser


def leave_results(folder: Path, name: str, summary: dict[str, Any], tables: str) -> None:
    """Store a summary as `name`.json and its tables as `name`.md, and print the tables."""
    write_text(folder / f"{name}.json", json.dumps(summary, indent=1))
    write_text(folder / f"{name}.md", tables)
    print(tables)
    print(f"Stored in {folder}.")


def over_seeds(runs: Iterable[dict[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """Mean (`name`) and sample standard deviation (`name_std`, 0 for one run) of figures of several runs."""
    runs, row = list(runs), {}
    for name in names:
        values = [run[name] for run in runs]
        row[name] = float(np.mean(values))
        row[f"{name}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return row


def percent(row: dict[str, Any], name: str) -> str:
    """A share as text, `77.1 ± 0.8`; without the deviation where the row has none."""
    text = f"{100 * row[name]:.1f}"
    return f"{text} ± {100 * row[f'{name}_std']:.1f}" if f"{name}_std" in row else text


def machine() -> str:
    """What figures are made on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
