"""Learn classes from few scans in seconds: frozen features with a linear head, and how sure it is of its answers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, DatasetDict
from safetensors import safe_open
from safetensors.torch import save_file

from hf_any3d.atomic_files import atomic_write
from hf_any3d.model_card import Subject, build_model_card
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters, peak_memory
from hf_any3d.model_card.saving import FILE, save_card
from hf_any3d.modeling.point_features import PointFeaturesConfig, PointFeaturesForPointCloudClassification
from hf_any3d.processing import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.arguments import DataArguments, argument, parse_arguments
from hf_any3d.training.frozen_features import frozen_features
from hf_any3d.training.little_data.confidence import Estimate
from hf_any3d.training.little_data.linear_head import LinearHead, draw_folds, fit_head, held_out_logits
from hf_any3d.training.little_data.plan import FEATURES, Plan, plan_for
from hf_any3d.training.little_data.scans import Scans, class_counts, digest_of, file_names, look_at
from hf_any3d.training.protocol import build_processor

_DATA = {
    *("dataset_name", "data_dir", "dataset_options", "train_file", "validation_file", "test_file", "train_splits"),
    *("group_column", "num_points", "features", "up_axis", "max_train_samples", "max_eval_samples"),
}
# Of these the earlier model of `--from_model` decides.
_OF_THE_MODEL = ("num_points", "features", "up_axis", "feature_sets", "copies", "heading")
UNKNOWN_FAR = 0.99
"""Unknown score above which a pipeline gives no label: some four deviations beyond all that the training has seen."""
# Not pushed to the hub, as all files that start with an underscore.
_STORE = "_features.safetensors"


@dataclass
class FewScansArguments:
    """How few scans are learned; what is not given follows from their number."""

    output_dir: str = argument("trainer_output", help="Directory to write the model to.")
    feature_sets: list[str] | None = argument(
        None, help="Sets of frozen features: descriptors, encoder; by default as the table for this many scans says."
    )
    copies: int | None = argument(
        None, help="Slightly turned, scaled and jittered copies of each cloud, over which features are averaged."
    )
    strength: float | None = argument(
        None, help="Weight of the scans against that of small weights, as C in logistic regression."
    )
    folds: int = argument(10, help="Folds of the cross-validation at most.")
    heading: str = argument(
        "known",
        help="known if scans face one direction, or any of them as they do later; unknown turns copies completely.",
    )
    allow_doubts: bool = argument(
        False, help="Go on if names of classes differ only in case, or a scan has two labels."
    )
    from_model: str | None = argument(
        None, help="Directory of a model of this kind to add scans to; the features of its scans are reused."
    )
    seed: int = argument(42, help="Seed of the folds.")
    license: str | None = argument(None, help="License in the model card, as the hub writes it.")

    def __post_init__(self):
        if self.heading not in ("known", "unknown"):
            raise ValueError(f"--heading {self.heading!r}; expected known or unknown")
        if self.folds < 2:
            raise ValueError(f"--folds {self.folds}; expected at least 2")
        if self.strength is not None and not self.strength > 0:
            raise ValueError(f"--strength {self.strength}; expected more than 0")


ARGUMENTS = (FewScansArguments, DataArguments)
OPTIONS = {setting.name for setting in fields(FewScansArguments)} | _DATA
"""Names of the options that this way takes; others are for training."""


@dataclass(frozen=True)
class Learned:
    """A model that was saved.

    Attributes:
        report: The report of its run.
        lines: What was seen and chosen, and how sure it is, for people.
    """

    report: RunReport
    lines: list[str]


def given_options(argv: Sequence[str]) -> set[str]:
    """Return the names of the options among the words of a command line."""
    return {word[2:].partition("=")[0].replace("-", "_") for word in argv if word.startswith("--")}


def plan_for_data(argv: Sequence[str], way: str | None = None) -> Plan:
    """Load the data that options name, and plan how they are learned.

    Args:
        argv: Options of `ARGUMENTS`.
        way: A way that is requested; None for the table's.
    """
    arguments, data = parse_arguments(ARGUMENTS, argv)
    data.validation_fraction = 0
    rows = program.load_splits(data)[0]["train"]
    names, labels = program.class_names(rows), rows.with_format(None)["label"][:]
    counts = np.bincount(labels, minlength=len(names))
    return _plan({name: int(count) for name, count in zip(names, counts, strict=True) if count}, arguments, way)


def _plan(counts: dict[str, int], arguments: FewScansArguments, way: str | None) -> Plan:
    sets = None if arguments.feature_sets is None else tuple(arguments.feature_sets)
    return plan_for(counts, way=way, features=sets, copies=arguments.copies, strength=arguments.strength)


def learn_few_scans(argv: Sequence[str]) -> Learned:
    """Learn the classes of few scans, and save model, card and metrics.json.

    Args:
        argv: Options of `ARGUMENTS`.

    Raises:
        ValueError: An option that has no effect here, or scans that cannot be learned, see `look_at`.
    """
    if foreign := sorted(given_options(argv) - OPTIONS):
        raise ValueError(f"--{foreign[0]} has no effect on frozen features with a linear head; expected --way trained")
    stopwatch = Stopwatch()
    arguments, data = parse_arguments(ARGUMENTS, argv)
    if arguments.from_model is not None and (fixed := sorted(given_options(argv) & set(_OF_THE_MODEL))):
        raise ValueError(f"--{fixed[0]} with --from_model, which has its own; expected one of them")
    data.validation_fraction = 0  # all scans are learned, and judged by cross-validation
    program.claim_output(Path(arguments.output_dir))
    with stopwatch.part("data"):
        splits, _ = program.load_splits(data)
        origin = data.train_file or data.data_dir or data.dataset_name
        earlier = None if arguments.from_model is None else _Store.load(Path(arguments.from_model))
        processor = build_processor(data, {}) if earlier is None else earlier.processor
        if earlier is None:
            rows = splits["train"]
            scans = look_at(
                rows, processor, origin, group_column=data.group_column, allow_doubts=arguments.allow_doubts
            )
    plan = _plan(scans.counts, arguments, FEATURES)
    model = _new_model(plan, scans.classes, data, arguments.heading)
    with stopwatch.part("features"):
        features = _features(model, rows, processor)
    with stopwatch.part("head"):
        folds = draw_folds(scans.labels, scans.groups, arguments.folds, arguments.seed)
        logits = held_out_logits(features, scans.labels, folds, len(scans.classes), plan.strength)
        head = fit_head(features, scans.labels, len(scans.classes), plan.strength)
        _set_head(model, head)
        estimate = None
        if (folds >= 0).any():
            how = f"cross-validation in {folds.max() + 1} folds, near-duplicates together"
            estimate = Estimate.from_logits(logits, scans.labels, scans.classes, how)
            _fit_unknown(model, head.standardize(features), logits, scans.groups)
    return None
