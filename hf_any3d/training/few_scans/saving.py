"""Save a model that learned from few scans, with all that is beside it, whole or not at all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from hf_any3d.evaluation.scan_scores import save_scan_scores
from hf_any3d.model_card.run_report import RunReport
from hf_any3d.model_card.saving import write_run_card
from hf_any3d.modeling.point_features import PointFeaturesForPointCloudClassification
from hf_any3d.training.few_scans.estimate import Estimate
from hf_any3d.training.few_scans.examples import Examples
from hf_any3d.training.few_scans.report import section_of
from hf_any3d.training.few_scans.scans import Scans
from hf_any3d.training.few_scans.validation import CROSS_VALIDATION
from hf_any3d.training.trainer import replacing_model


def save(
    model: PointFeaturesForPointCloudClassification,
    scans: Scans,
    examples: Examples,
    estimates: Mapping[str, Estimate],
    report: RunReport,
    folder: Path,
    license: str | None,
) -> None:
    """Write everything into a folder; metrics.json last, which marks the run as complete."""
    scan_scores = {split: estimates[split].scans.of_rows(rows) for split, rows in scans.judging.items()}
    if CROSS_VALIDATION in estimates:
        estimate = estimates[CROSS_VALIDATION]
        names = np.array(scans.together.names)[estimate.counted].tolist()
        digests = np.array(scans.together.digests)[estimate.counted].tolist()
        scan_scores[CROSS_VALIDATION] = estimate.scans.named(names, digests)
    sure = section_of(model.config, estimates)
    with replacing_model(folder) as new:
        model.save_pretrained(new)
        scans.processor.save_pretrained(new)
        examples.save(new)
        save_scan_scores(new, scan_scores)
        write_run_card(model, report, scans.processor.num_points, sure, new, license, folder)
