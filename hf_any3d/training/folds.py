"""Runs of a training program over folds: each once, continued where it was interrupted, with mean and deviation."""

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.fingerprints import is_saved_model, path_fingerprint
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.training.recipes import FILE_TYPES, read_settings
from hf_any3d.utils.atomic_files import read_json, write_json
from hf_any3d.utils.progress import progress_bar

SUMMARY = "few_shot.json"
_WORDS, _INPUTS = "arguments.json", "inputs.json"
# Arguments that name the models that a training starts from, and its data.
_STARTS = ("model_name_or_path", "encoder_name_or_path")
_DATA = ("data_dir", "train_file", "validation_file", "test_file")

Program = Callable[[list[str]], RunReport]
"""A training program, called with its command line arguments; it writes metrics.json to --output_dir."""


def run_once(run: Program, words: Sequence[str], folder: Path) -> RunReport:
    """Run a program unless its folder has the complete run, and return the report.

    The folder of a run with other arguments, or with another content of what they name, is refused.
    """
    path = folder / _WORDS
    inputs = fingerprints_of_inputs(words)
    # Noted before the run, so that an interrupted one is recognized.
    if not path.is_file():
        write_json(folder / _INPUTS, inputs)
        write_json(path, list(words))
    stored = read_json(path) or []
    before = read_json(folder / _INPUTS) or {}
    changes = [] if stored == list(words) else [f"{' '.join(stored)}, not {' '.join(words)}"]
    # Files of the same names may have changed since.
    for name, fingerprint in inputs.items():
        if before.get(name) != fingerprint:
            changes.append(f"another content of {name}")
    if changes:
        raise ValueError(f"{folder} was run with {changes[0]}; use the same arguments, or another --output_dir")
    # The report is written last, so that a folder with it holds a complete run.
    if not (folder / "metrics.json").is_file():
        run([*words, "--output_dir", str(folder)])
    return RunReport.load(folder / "metrics.json")


def run_folds(
    run: Program,
    words: Sequence[str],
    output_dir: str | os.PathLike,
    folds: int,
    fold_words: Callable[[int], list[str]],
) -> dict[str, Any]:
    """Run a program once for each fold, and summarize the results.

    Complete folds are not run again: an interrupted series continues with the fold that it stopped in, from its last
    checkpoint.

    Returns:
        `folds`, the metrics of each split for each fold, and `summary`, see `summarize`.
    """
    root = Path(output_dir)
    # Each fold has a folder of its own, in which it can be continued.
    reports = [
        run_once(run, [*words, *fold_words(fold)], root / f"fold_{fold}")
        for fold in progress_bar(range(folds), desc="folds", unit="fold")
    ]
    metrics = [report.metrics for report in reports]
    result = {"arguments": list(words), "folds": metrics, "summary": summarize(metrics)}
    write_json(root / SUMMARY, result)
    return result


def summarize(metrics: Sequence[Mapping[str, Mapping[str, float]]]) -> dict[str, dict[str, dict[str, float]]]:
    """Compute `mean` and `std` over runs for each split and metric; std with n - 1, 0 for a single run."""
    # All runs have the splits and metrics of the first one.
    summary: dict[str, dict[str, dict[str, float]]] = {}
    for split, first in metrics[0].items():
        summary[split] = {}
        for name in first:
            summary[split][name] = mean_and_std([run[split][name] for run in metrics])
    return summary


def mean_and_std(values: Sequence[float]) -> dict[str, float]:
    """Return `mean` and `std`, with n - 1, 0 for a single value."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std}


def words_of(words: Sequence[str], names: Sequence[str]) -> list[str]:
    """Return those words of a command line that set arguments of these names."""
    kept = []
    is_kept = False
    for word in words:
        # Words without dashes are values of the last option, of which there may be several.
        if word.startswith("--"):
            is_kept = word[2:].partition("=")[0] in names
        if is_kept:
            kept.append(word)
    return kept


def fingerprints_of_inputs(words: Sequence[str]) -> dict[str, str]:
    """Return the fingerprints of the recipe, models and data that arguments name, by their names."""
    fingerprints: dict[str, str] = {}
    settings: dict[str, Any] = {}
    if words and words[0].endswith(FILE_TYPES):
        # By its values, with those of the files that it extends, so that comments and layout do not count.
        settings = read_settings(Path(words[0]))
        fingerprints[words[0]] = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()
    for name in _STARTS + _DATA:
        named = words_of(words, [name])
        # The last word counts, as it does for argparse; it is `--name=value` or the value alone. Paths may have "=".
        word = named[-1] if named else ""
        value = (word.partition("=")[2] if word.startswith("--") else word) or settings.get(name)
        # A model of the hub is no path, and counts by its name alone.
        if value and os.path.exists(str(value)) and (name in _DATA or is_saved_model(str(value))):
            fingerprints[str(value)] = path_fingerprint(str(value))
    return fingerprints
