"""Learn classes from few scans in seconds: frozen features with a linear head, and how sure it is of its answers.

`learn_few_scans` is told from top to bottom, and each step gets what the steps before it have made: the scans are read
(`scans.py`), their labels checked (`labeled_scans.py`), the way is chosen (`plan.py`), a model is opened (`model.py`),
which computes features (`features.py`); a head is fitted to them (`fitting.py`) and judged (`validation.py`); all is
told (`report.py`) and saved (`saving.py`). `learn_scans` also takes requests of the other ways.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import DatasetDict

from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.modeling.point_encoders.packaged_encoder import PACKAGED_UP_AXIS
from hf_any3d.pipelines import default_model
from hf_any3d.training import program
from hf_any3d.training.few_scans.features import compute_examples, compute_features, compute_things, things_to_draw
from hf_any3d.training.few_scans.fitting import fit_few_scans
from hf_any3d.training.few_scans.model import open_model, start_head
from hf_any3d.training.few_scans.plan import FEATURES, WRAP_WEIGHT, plan_of
from hf_any3d.training.few_scans.report import lines_of, report_of
from hf_any3d.training.few_scans.request import BothWays, FewScans
from hf_any3d.training.few_scans.saving import save
from hf_any3d.training.few_scans.scans import read_earlier, read_scans
from hf_any3d.training.few_scans.validation import validate
from hf_any3d.training.program import figures, train
from hf_any3d.training.tasks import Classification
from hf_any3d.utils.atomic_files import release_claims, temporary_folder


@dataclass(frozen=True)
class Learned:
    """A model that was saved."""

    report: RunReport
    lines: list[str]


def learn_few_scans(request: FewScans | Sequence[str], rows: DatasetDict | None = None) -> Learned:
    """Learn the classes of few scans, and save model, card and metrics.json.

    `rows` are the scans if they are loaded.

    Raises:
        PointCloudFileError: No file of the folder can be read.
        ValueError: There is one class or one scan in all, two labels for the same scan, or settings that do not fit.
        OSError: There is no such folder, or an encoder that was asked for is neither on the hub nor in the cache.
    """
    stopwatch = Stopwatch()
    if not isinstance(request, FewScans):
        request = FewScans.parse(request)
    arguments = request.arguments
    folder = Path(arguments.output_dir)
    # A folder that cannot be written is an error before the features are computed.
    program.claim_output(folder)
    with stopwatch.part("data"):
        earlier = read_earlier(request)
        scans = read_scans(request.data, earlier, rows)
        scans.together.check(scans.origin, arguments.allow_doubts)
        # The table may want a training for so many scans; frozen features were asked for.
        plan = plan_of(arguments, scans.together.counts, FEATURES, earlier)
        model = open_model(plan, scans, arguments)
    with stopwatch.part("features"):
        # Before the model has a head, with which features are standardized, so that those in the cache stay valid.
        views = {"learns_views": plan.learns_views, "compares_views": arguments.one_sided}
        examples = compute_examples(model, scans, **views)
        judging = {}  # rows, and their features (rows, width)
        for split, judged in scans.judging.items():
            judging[split] = judged, compute_features(model, judged, scans.processor)
    # Drawn for each run: a bank that is stored would be of one up axis and number of points.
    with stopwatch.part("things of no class"):
        num_things = things_to_draw(model.config, arguments.unlike)
        things = compute_things(model, scans.processor, num_things)
    with stopwatch.part("head"):
        start_head(model, scans)
        fitted = fit_few_scans(model, examples, things, plan.strength, arguments)
        estimates = validate(model, fitted, scans.together, judging)
    report = report_of(model, scans, plan, estimates, stopwatch.stop())
    save(model, scans, examples, estimates, report, folder, arguments.license)
    # Only after the last file, so that a killed run leaves its mark.
    release_claims()
    return Learned(report, lines_of(model.config, scans, plan, estimates, num_things))


def learn_scans(request: FewScans | BothWays | program.TrainingTask, rows: DatasetDict | None = None) -> Learned:
    """Learn in the way that a request asks for, and save model, card and metrics.json.

    `rows` are the scans if they are loaded.
    """
    if isinstance(request, FewScans):
        return learn_few_scans(request, rows)
    if isinstance(request, BothWays):
        return _learn_both_ways(request, rows)
    report = train(request, rows)
    return Learned(report, figures(report))


def _learn_both_ways(request: BothWays, rows: DatasetDict | None) -> Learned:
    """Train a classifier, and average its answers with those of a head on frozen features; one model has both."""
    arguments = request.scans.arguments
    if rows is None:
        rows = request.scans.load()
    # What is wrong with the scans or their folder is found before the minutes of a training.
    program.claim_output(Path(arguments.output_dir))
    earlier = read_earlier(request.scans)
    scans = read_scans(request.scans.data, earlier, rows)
    scans.together.check(scans.origin, arguments.allow_doubts)
    open_model(plan_of(arguments, scans.together.counts, FEATURES, earlier), scans, arguments)
    with temporary_folder() as folder, _without_lines_on(str(folder)):
        trained = str(folder / "wrap")
        _train_into(trained, request.classification, scans.data.up_axis, rows)
        with_wrap = replace(request.scans, arguments=replace(arguments, wrap=trained, wrap_weight=WRAP_WEIGHT))
        return learn_few_scans(with_wrap, rows)


def _train_into(folder: str, classification: Classification, up_axis: str, rows: DatasetDict) -> None:
    """Train a classifier on scans with this axis up, and save it in a folder."""
    # The request may be used again.
    training = copy(classification.training)
    data = copy(classification.data)
    training.output_dir = folder
    starts_from_packaged = classification.model.model_name_or_path == default_model()
    if starts_from_packaged and up_axis != PACKAGED_UP_AXIS:
        # It goes on learning from what it knows. The model of both turns clouds for it as for the encoder.
        data.up_axis = PACKAGED_UP_AXIS

        def turn(row: dict[str, Any]) -> dict[str, Any]:
            points = np.array(row["points"])  # a copy, since rows may be views
            points[:, :3] = turn_up_axis(points[:, :3], up_axis, PACKAGED_UP_AXIS)
            return {"points": points}

        rows = rows.map(turn)
    train(replace(classification, training=training, data=data), rows)


@contextmanager
def _without_lines_on(folder: str) -> Iterator[None]:
    """Silence the advice of a training about a folder that is removed afterwards."""

    def is_of_others(record: logging.LogRecord) -> bool:
        return folder not in record.getMessage()

    program.logger.addFilter(is_of_others)
    try:
        yield
    finally:
        program.logger.removeFilter(is_of_others)
