"""What the learning benchmarks share: runs that are stored when they end, and figures over several seeds."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModel, PreTrainedModel


def random_encoder(pretrained: PreTrainedModel) -> PreTrainedModel:
    """An encoder of the same shape as its own initialisation leaves it."""
    return AutoModel.from_config(pretrained.config)


def write_text(path: Path, text: str) -> None:
    """Write under a temporary name, then rename, so that no half-written result is ever found."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def stored_run(path: Path, settings: Mapping[str, Any], run: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A run's result: read back where it is stored and was made with the same settings, else made and stored.

    Args:
        path: JSON file of the run.
        settings: What decides the result, as JSON would give it back.
        run: Makes the result.
    """
    stored = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    if stored.get("settings") != settings:
        stored = {**run(), "threads": torch.get_num_threads(), "settings": settings}
        write_text(path, json.dumps(stored, indent=1))
    return stored


def mean_and_spread(runs: Iterable[Mapping[str, Any]], names: Iterable[str]) -> dict[str, float]:
    """Mean of each figure over the runs, and of several its sample standard deviation under the name with `_std`."""
    runs, row = list(runs), {}
    for name in names:
        values = [run[name] for run in runs]
        row[name] = float(np.mean(values))
        if len(values) > 1:
            row[f"{name}_std"] = float(np.std(values, ddof=1))
    return row


def percent(row: Mapping[str, float], name: str) -> str:
    """A share in percent, with its spread where there is one."""
    return f"{100 * row[name]:.1f}" + (f" ± {100 * row[f'{name}_std']:.1f}" if f"{name}_std" in row else "")


def machine() -> str:
    """What it ran on."""
    return f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}"
