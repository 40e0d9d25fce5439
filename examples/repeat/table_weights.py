"""Evaluate the authors' weights on the official test split, as the only step of a published table.

python -m examples.repeat.table_weights --model_name_or_path vinits5/learning3d:modelnet40 --dataset_name modelnet40 \
    --data_dir DATA --output_dir outputs/pointnet
"""

from __future__ import annotations

import importlib
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers.utils import CONFIG_NAME

from examples.repeat.untrained_report import save_untrained_report
from hf_any3d.data import load_point_dataset
from hf_any3d.data.catalog import dataset_module
from hf_any3d.data.tables.numpy_rows import numpy_rows
from hf_any3d.evaluation.statistics import wilson_interval
from hf_any3d.hub.published_table import find_published, is_published
from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.modeling.file_stamps import file_digest
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.published import published_directory
from hf_any3d.training.arguments import argument, json_mapping
from hf_any3d.training.evaluated_rows import evaluation_arguments, first_rows, with_normals_of_model
from hf_any3d.training.program import run_program
from hf_any3d.training.requests import parse_arguments
from hf_any3d.training.saved_models import EVALUATIONS, EvaluationSettings
from hf_any3d.utils.atomic_files import read_json_object, temporary_folder

SPLIT = "test"
SEGMENT = "segment"


@dataclass
class WeightsArguments:
    """The weights, and the data that they are judged on."""

    model_name_or_path: str = argument(help="Published name of the weights, or directory of a model.")
    output_dir: str = argument(help="Folder for metrics.json.")
    dataset_name: str = argument(help="Dataset of the catalog whose official test split is evaluated.")
    weights: str | None = argument(
        None, help="File that the authors have under that name, or directory of a model, in place of what is fetched."
    )
    data_dir: str | None = argument(None, help="Directory with its files, or with a part of them.")
    dataset_options: dict | str | None = argument(None, help="JSON object with further options of the dataset.")
    command: str = argument("predict", help="Command that runs the model: predict or segment.")
    batch_size: int | None = argument(None, help="Clouds per batch.")
    max_samples: int | None = argument(None, help="Evaluate on this many clouds at most.")
    use_cpu: bool = argument(False, help="Whether to run on the CPU only.")
    seed: int = field(default=0)

    def __post_init__(self):
        self.dataset_options = json_mapping(self.dataset_options, "dataset_options")


def load_test_split(settings: Mapping[str, Any]) -> tuple[Dataset, int | None]:
    """Load the objects of an official test split that are there.

    Returns:
        The rows, and how many the published split has; None where that has no fixed number.
    """
    name, options = settings["dataset_name"], settings.get("dataset_options") or {}
    described = getattr(dataset_module(name), "DATASET", None)
    if described is None:  # generated data are always complete
        rows = load_point_dataset(name, split=SPLIT, **options)
        return rows, len(rows)
    rows = load_point_dataset(name, data_dir=settings.get("data_dir"), split=SPLIT, partial=True, **options)
    stated = options.get("variant", f"area_{options['test_area']}" if "test_area" in options else None)
    counts = {splits[SPLIT] for variant, splits in described.expected_counts.items() if stated in (None, variant)}
    # All layouts of a dataset have the same official test split.
    return rows, counts.pop() if len(counts) == 1 else None


def main(argv: list[str] | None = None) -> RunReport:
    """Evaluate, and write metrics.json."""
    (arguments,) = parse_arguments((WeightsArguments,), sys.argv[1:] if argv is None else argv)
    stopwatch = Stopwatch()
    rows, official = load_test_split(vars(arguments))
    rows = first_rows(rows, arguments.max_samples)
    with ExitStack() as stack:
        with stopwatch.part("opening"):
            model = _open(arguments, stack)
        _check_points(rows, model, arguments.command)
        data, protocol = evaluation_arguments(model, {"dataset_name": arguments.dataset_name})
        rows = with_normals_of_model(rows, model, data)
        settings = EvaluationSettings(data, protocol, arguments.batch_size, arguments.seed, arguments.use_cpu)
        with stopwatch.part("evaluation"):
            metrics, by_class = EVALUATIONS[arguments.command](model, rows, SPLIT, settings)
    figures: dict[str, float] = {**metrics[SPLIT], "clouds": float(len(rows))}
    # Only classifiers have an answer for each cloud.
    scans = settings.details.scans[SPLIT].scans if arguments.command != SEGMENT else []
    if scans:
        right = sum(scan["answer"] == scan["true"] for scan in scans)
        figures["accuracy_low"], figures["accuracy_high"] = wilson_interval(right, len(scans))
        figures["right"] = float(right)
    return save_untrained_report(
        Path(arguments.output_dir),
        stopwatch,
        model=arguments.weights or arguments.model_name_or_path,
        seed=arguments.seed,
        data={
            "name": arguments.dataset_name,
            "options": arguments.dataset_options,
            "objects": len(rows),
            "official": official,
            "classes": _right_of_classes(scans),
        },
        metrics={SPLIT: figures},
        class_accuracy=by_class,
    )


def _open(arguments: WeightsArguments, stack: ExitStack) -> str:
    """Return the directory of the model; that of a converted file lasts as long as the stack."""
    name, weights = arguments.model_name_or_path, arguments.weights
    if weights is None or Path(weights).is_dir():
        chosen = weights or name
        return str(published_directory(chosen)) if is_published(chosen) else chosen
    # A file does not tell what its name does, such as the number of points that it was evaluated with.
    _, size, published = find_published(name)
    file = published.files[size]
    if file.sha256 is not None and file_digest(Path(weights)) != file.sha256:
        raise ValueError(f"{weights}: its SHA-256 is not that of {name}; expected {file.sha256}")
    directory = stack.enter_context(temporary_folder()) / "model"
    convert = getattr(importlib.import_module("hf_any3d.conversions"), published.system.convert)
    convert(checkpoint=weights, output=directory, **file.options)
    config = read_json_object(directory / CONFIG_NAME)
    for setting, expected in file.config.items():
        if config.get(setting) != expected:
            raise ValueError(f"{weights}: its tensors give {setting}={config.get(setting)!r}; {name} has {expected!r}")
    return str(directory)


def _check_points(rows: Dataset, directory: str, command: str) -> None:
    """Refuse clouds with fewer points than the weights were evaluated with; repeated ones would be other clouds."""
    if command == SEGMENT:  # of rooms the points of a block count, of parts the files have few
        return
    expected = PointCloudProcessor.from_pretrained(directory).num_points
    for number, row in enumerate(numpy_rows(rows, ["points"])):
        if len(row["points"]) < expected:
            raise ValueError(
                f"cloud {number} has {len(row['points']):,} points; expected at least {expected:,}, as the weights "
                "read: use files with more points"
            )


def _right_of_classes(scans: Sequence[Mapping[str, Any]]) -> dict[str, list[int]]:
    """Return the numbers of right answers and of clouds of each class, the most frequent class first."""
    counts = Counter(scan["true"] for scan in scans)
    right = Counter(scan["true"] for scan in scans if scan["answer"] == scan["true"])
    return {name: [right[name], count] for name, count in counts.most_common()}


if __name__ == "__main__":
    run_program(main)
