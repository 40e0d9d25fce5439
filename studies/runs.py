"""Training, stored runs that are not repeated, figures over seeds and command lines, shared by the studies."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import Trainer

from examples import quickstart
from hf_any3d.utils.atomic_files import write_text
from studies.tables import write_table

RECIPES = Path(__file__).resolve().parents[1] / "examples" / "recipes"


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Measure `seconds` and `cpu_seconds` of a block; the dict has them after the block."""
    spent: dict[str, float] = {}
    start, cpu_start = time.perf_counter(), time.process_time()
    yield spent
    spent |= {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu_start}


def evaluate(trainer: Trainer, rows: Dataset) -> dict[str, float]:
    """Compute `accuracy`, `mean_class_accuracy` and `loss` on all rows of a split."""
    metrics = quickstart.evaluate(trainer, rows)
    return {name: metrics[f"eval_{name}"] for name in ("accuracy", "mean_class_accuracy", "loss")}


def kept_run(path: Path, settings: dict[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the result stored at `path` if its settings are the same; otherwise call `run` and store its result.

    Args:
        path: JSON file of this run.
        settings: Everything that affects the result, as JSON reads it back.
        run: Computes the result.
    """
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stored.get("settings") != settings:
        stored = {**run(), "threads": torch.get_num_threads(), "settings": settings}
        write_text(path, json.dumps(stored, indent=1))
    return stored


def reset_if_changed(folder: Path, settings: dict[str, Any]) -> None:
    """Empty a folder whose contents were made with other settings, and write the settings there."""
    path = folder / "settings.json"
    if folder.exists() and (not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != settings):
        shutil.rmtree(folder)
    write_text(path, json.dumps(settings))


def write_arguments(folder: Path, settings: dict[str, Any], output_dir: Path | None = None) -> str:
    """Write `folder/arguments.json` for a training program whose output goes to `output_dir`, by default `folder`."""
    path, quiet = folder / "arguments.json", {"disable_tqdm": True, "report_to": "none"}
    write_text(path, json.dumps(settings | quiet | {"output_dir": str(output_dir or folder)}, indent=1))
    return str(path)


def runs_parser(
    about: str, output_dir: str, arms: Iterable[str] = (), with_threads: bool = True
) -> argparse.ArgumentParser:
    """Build a command line with the options that studies share.

    Args:
        about: Docstring of the study.
        output_dir: Default folder for results.
        arms: Names of what can be trained; without them there is no `--arms`.
        with_threads: Whether there is `--threads`.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output-dir", type=Path, default=Path(output_dir), help="folder for all results")
    if arms := list(arms):
        parser.add_argument("--arms", nargs="+", default=arms, choices=arms, help="what to train")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    if with_threads:
        parser.add_argument("--threads", type=int, help="threads of torch; torch's own choice by default")
    return parser


def use_threads(threads: int | None) -> None:
    """Set the number of torch's threads; None keeps torch's own choice."""
    if threads is not None:
        torch.set_num_threads(threads)


def write_results(folder: Path, name: str, summary: dict[str, Any], tables: str) -> None:
    """Store a summary as `name`.parquet (see `tables`) and its tables as `name`.md, and print the tables."""
    write_table(folder / f"{name}.parquet", summary)
    write_text(folder / f"{name}.md", tables)
    print(tables)
    print(f"Stored in {folder}.")


def mean_gain(gains: np.ndarray) -> str:
    """Format the mean of paired differences in points with its 95 % interval over the pairs, `+1.2 ± 0.7`."""
    interval = 1.96 * gains.std(ddof=1) / len(gains) ** 0.5 if len(gains) > 1 else float("nan")
    return f"{gains.mean():+.1f} ± {interval:.1f}"


def machine() -> str:
    """Describe the machine that the figures come from."""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
