"""Learn classes from few scans in seconds: frozen features with a linear head, and how sure it is of its answers.

`request.py` has what is asked, `learning.py` what is fitted, `report.py` what is said of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from datasets import DatasetDict

from hf_any3d.data.inputs import count_channels
from hf_any3d.model_card.run_report import RunReport, Stopwatch
from hf_any3d.modeling.point_features import PointFeaturesConfig
from hf_any3d.processing.point_clouds import PointCloudProcessor
from hf_any3d.training import program
from hf_any3d.training.few_scans.axes import hint_of_axis
from hf_any3d.training.few_scans.features import compute_bank, compute_examples, compute_features
from hf_any3d.training.few_scans.learning import STATED_FROM, evaluate, fit_few_scans, open_model
from hf_any3d.training.few_scans.no_class import NUM_THINGS
from hf_any3d.training.few_scans.plan import FEATURES
from hf_any3d.training.few_scans.report import CROSS_VALIDATION, lines_of, save
from hf_any3d.training.few_scans.request import (
    OF_SCANS,
    OPTIONS,
    FewScans,
    FewScansArguments,
    FewScansDataArguments,
    implied_up_axis,
)
from hf_any3d.training.few_scans.scans import check, look_at
from hf_any3d.training.protocol import build_processor
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
        EncoderUnavailableError: An encoder that was asked for is neither on the hub nor in the cache.
    """
    stopwatch = Stopwatch()
    request = request if isinstance(request, FewScans) else FewScans.parse(request)
    arguments, earlier = request.arguments, request.earlier()
    program.claim_output(Path(arguments.output_dir))
    with stopwatch.part("data"):
        data = request.prepared(earlier)
        splits, _ = program.divide(program.load_rows(data) if rows is None else rows, data)
        known_up = implied_up_axis(data, splits["train"])
        is_assumed = earlier is None and data.up_axis is None and known_up is None
        data.up_axis = data.up_axis or known_up or "y"
        processor = build_processor(data, {}) if earlier is None else earlier.processor
        origin = data.train_file or data.data_dir or data.dataset_name
        scans = look_at(splits["train"], origin, data.group_column)
        if earlier is None:
            check(scans, origin, arguments.allow_doubts)
    plan = request.plan(scans.counts, FEATURES)
    model = open_model(plan, data, arguments, known_up)
    config = model.config
    _refuse_unread(config, processor)
    with stopwatch.part("features"):
        learns_views = arguments.views or (earlier is not None and earlier.learns_views)
        wanted = arguments.one_sided or learns_views
        examples = compute_examples(model, splits["train"], processor, scans, earlier, wanted)
        if learns_views and examples.views is None:
            raise ValueError("--views true with colors or normals, or a model without views; expected points alone")
        examples = replace(examples, learns_views=learns_views)
        # Before the model has a head, with which features are standardized, so that those in the cache stay valid.
        others = {
            str(split): (rows, compute_features(model, rows, processor))
            for split, rows in splits.items()
            if split in ("validation", "test")
        }
    scans = examples.scans
    check(scans, origin, arguments.allow_doubts)
    plan = request.plan(scans.counts, FEATURES)
    with stopwatch.part("things of no class"):
        usual = 0 if "views" in config.features else NUM_THINGS
        unlike = usual if arguments.unlike is None else arguments.unlike
        bank = compute_bank(model, processor, unlike)
    with stopwatch.part("head"):
        config.id2label = dict(enumerate(scans.classes))
        config.label2id = {name: number for number, name in enumerate(scans.classes)}
        model.classifier = torch.nn.Linear(config.hidden_size, len(scans.classes))
        model.side_head, config.one_sided = None, False  # for features that are standardized otherwise
        record_sizes(config, data, splits["train"])
        fitted = fit_few_scans(model, examples, bank, plan, arguments)
        judged = {} if fitted.estimate is None else {CROSS_VALIDATION: fitted.estimate}
        judged |= {split: evaluate(model, fitted.head, rows, features) for split, (rows, features) in others.items()}
    facts = program.data_facts(data, splits, CROSS_VALIDATION)
    facts |= {"rows": {**facts["rows"], "train": len(scans.labels)}}
    facts |= {"scans of each class": scans.counts, "near-duplicates": scans.num_copies}
    report = save(model, processor, examples, facts, plan, judged, stopwatch, arguments)
    release_claims()
    origin += " and the earlier ones" if earlier is not None else ""
    lines = lines_of(origin, scans, plan, judged, config, processor.features, unlike, STATED_FROM)
    if learns_views:
        lines.insert(2, "views: one of each scan from one side is learned, too; predict makes no remark on views")
    if is_assumed and (hint := hint_of_axis(splits["train"], data.up_axis)) is not None:
        lines.insert(1, hint)
    return Learned(report, lines)


def _refuse_unread(config: PointFeaturesConfig, processor: PointCloudProcessor) -> None:
    """Refuse channels of points that none of the features reads."""
    channels = [getattr(getattr(config, f"{name}_config"), "in_channels", 3) for name in ("encoder", "wrap")]
    channels += [6] if config.normals and "descriptors" in config.features else [3]
    ends = np.cumsum([count_channels([name]) for name in processor.features])
    if unread := [name for name, end in zip(processor.features, ends, strict=True) if end > max(channels)]:
        features = " and ".join(config.features)
        raise ValueError(f"--features: {features} do not read {unread[0]}; expected --way trained, which does")
