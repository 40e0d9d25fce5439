"""Run a training program over the folds of a few-shot dataset, and average the results."""

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from hf_any3d.atomic_files import write_json
from hf_any3d.model_card.run_report import RunReport

SUMMARY = "few_shot.json"
_WORDS = "arguments.json"


def run_folds(
    run: Callable[[list[str]], RunReport],
    words: Sequence[str],
    output_dir: str | os.PathLike,
    folds: int,
    fold_words: Callable[[int], list[str]],
) -> dict[str, Any]:
    """Run a program once for each fold, and summarize the results.

    Complete folds are not run again: an interrupted series continues with the fold that it stopped in, from its last
    checkpoint.

    Args:
        run: A training program, called with its command line arguments; it writes metrics.json to --output_dir.
        words: Arguments of all folds.
        output_dir: Directory for one directory per fold and the summary, few_shot.json.
        folds: Number of folds.
        fold_words: Function from the number of a fold to its arguments.

    Returns:
        `folds`, the metrics of each split for each fold, and `summary`: for each split and metric, `mean` and `std`
        over the folds (std with n - 1, 0 for a single fold).

    Raises:
        ValueError: If `folds` is less than 1, or a directory holds a fold with other arguments.
    """
    if folds < 1:
        raise ValueError(f"folds is {folds}; expected at least 1")
    root = Path(output_dir)
    reports = []
    for fold in tqdm(range(folds), desc="folds", unit="fold"):
        folder = root / f"fold_{fold}"
        own = [*words, *fold_words(fold)]
        _check_arguments(folder, own)
        if not (folder / "metrics.json").is_file():
            run([*own, "--output_dir", str(folder)])
        reports.append(RunReport.load(folder / "metrics.json"))
    result = {"arguments": list(words), **summarize([report.metrics for report in reports])}
    write_json(root / SUMMARY, result)
    return result


def summarize(metrics: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """Compute mean and standard deviation over runs for each split and metric; see `run_folds`."""
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for split, first in metrics[0].items():
        for name in first:
            values = np.array([run[split][name] for run in metrics])
            std = float(values.std(ddof=1)) if len(values) > 1 else 0.0
            summary.setdefault(split, {})[name] = {"mean": float(values.mean()), "std": std}
    return {"folds": list(metrics), "summary": summary}


def _check_arguments(folder: Path, words: list[str]) -> None:
    """Store the arguments of a fold, and refuse the directory of another run."""
    path = folder / _WORDS
    if path.is_file():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored != words:
            raise ValueError(
                f"{folder}: was run with {' '.join(stored)}, not {' '.join(words)}; expected the same or "
                "another --output_dir"
            )
        return
    write_json(path, words)
