"""Learn classes from few scans in seconds: frozen features with a linear head, and how sure it is of its answers.

`request.py` has what is asked, `preparation.py` what is checked before, `features.py` what is computed, `learning.py`
what is fitted, `cross_validation.py` by what it is judged, and `report.py` what is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict

from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.training import program
from hf_any3d.training.few_scans.axes import hint_of_axis
from hf_any3d.training.few_scans.confidence import Estimate
from hf_any3d.training.few_scans.features import compute_examples, compute_features, compute_things
from hf_any3d.training.few_scans.learning import Fitted, fit_few_scans, judge_split
from hf_any3d.training.few_scans.preparation import Preparation, prepare
from hf_any3d.training.few_scans.report import CROSS_VALIDATION, lines_of, save
from hf_any3d.training.few_scans.request import OF_SCANS, OPTIONS, FewScans, FewScansArguments, FewScansDataArguments
from hf_any3d.training.few_scans.scans import Examples
from hf_any3d.training.scan_sizes import record_sizes
from hf_any3d.utils.atomic_files import release_claims

__all__ = [
    "OF_SCANS",
    "OPTIONS",
    "FewScans",
    "FewScansArguments",
    "FewScansDataArguments",
    "Learned",
    "fit_few_scans",
    "learn_few_scans",
]


@dataclass(frozen=True)
class Learned:
    """A model that was saved."""

    report: RunReport
    lines: list[str]


def learn_few_scans(request: FewScans | Sequence[str], rows: DatasetDict | None = None) -> Learned:
    """Learn the classes of few scans, and save model, card and metrics.json.

    Raises:
        PointCloudFileError: No file of the folder can be read.
        ValueError: There is one class or one scan in all, two labels for the same scan, or settings that do not fit.
        OSError: There is no such folder, or an encoder that was asked for is neither on the hub nor in the cache.
    """
    stopwatch = Stopwatch()
    request = request if isinstance(request, FewScans) else FewScans.parse(request)
    # A folder that cannot be written is an error before the features are computed.
    program.claim_output(Path(request.arguments.output_dir))
    with stopwatch.part("data"):
        prepared = prepare(request, rows)
    with stopwatch.part("features"):
        # Before the model has a head, with which features are standardized, so that those in the cache stay valid.
        examples = _compute_examples(prepared)
        features_of_splits = _compute_other_splits(prepared)
    # Drawn for each run: a bank that is stored would be of one up axis and number of points.
    with stopwatch.part("things of no class"):
        things = compute_things(prepared.model, prepared.processor, prepared.num_things)
    with stopwatch.part("head"):
        fitted = _fit(prepared, examples, things)
        estimates = _estimates(prepared, fitted, features_of_splits)
    report = save(prepared, examples, estimates, stopwatch)
    # Only after the last file, so that a killed run leaves its mark.
    release_claims()
    return Learned(report, lines_of(prepared, estimates, _hint(prepared)))


def _compute_examples(prepared: Preparation) -> Examples:
    """Compute the features of the scans, and those of views that are learned or recognized."""
    examples = compute_examples(
        prepared.model,
        prepared.splits["train"],
        prepared.processor,
        prepared.scans,
        prepared.earlier,
        prepared.request.arguments.one_sided or prepared.learns_views,
    )
    return replace(examples, learns_views=prepared.learns_views)


def _compute_other_splits(prepared: Preparation) -> dict[str, np.ndarray]:
    """Compute the features `(rows, width)` of the splits that only judge."""
    features = {}
    for split, rows in prepared.splits.items():
        # Only if the data have such splits; few scans are judged by folds.
        if split in ("validation", "test"):
            features[str(split)] = compute_features(prepared.model, rows, prepared.processor)
    return features


def _fit(prepared: Preparation, examples: Examples, things: np.ndarray) -> Fitted:
    """Give the model the classes of the scans, and fit everything that it has learned of them."""
    model = prepared.model
    classes = examples.scans.classes
    model.config.id2label = dict(enumerate(classes))
    model.config.label2id = {name: number for number, name in enumerate(classes)}
    model.classifier = torch.nn.Linear(model.config.hidden_size, len(classes))
    # An earlier model has one for features that are standardized otherwise.
    model.side_head = None
    model.config.one_sided = False
    # By these a later file is known to be of another unit.
    record_sizes(model.config, prepared.data, prepared.splits["train"])
    return fit_few_scans(model, examples, things, prepared.plan, prepared.request.arguments)


def _estimates(prepared: Preparation, fitted: Fitted, features: dict[str, np.ndarray]) -> dict[str, Estimate]:
    """Return the estimate by cross-validation, if there is one, and those of the splits with these features."""
    estimates = {} if fitted.estimate is None else {CROSS_VALIDATION: fitted.estimate}
    for split, of_split in features.items():
        estimates[split] = judge_split(prepared.model, fitted.head, prepared.splits[split], of_split)
    return estimates


def _hint(prepared: Preparation) -> str | None:
    """Return a line on the axis that points up, if it was assumed and most scans look as if it was another one."""
    return hint_of_axis(prepared.splits["train"], prepared.data.up_axis) if prepared.is_axis_assumed else None
