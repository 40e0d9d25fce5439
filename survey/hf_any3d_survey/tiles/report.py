"""Words about a model that learned from a few tiles: metrics, card and lines."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hf_any3d.data.classes.class_rule import ClassRule
from hf_any3d.evaluation.statistics import share_at_most
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters, peak_memory
from hf_any3d.model_card.saving import write_run_card
from hf_any3d.training.trainer import replacing_model
from hf_any3d.utils.messages import percent
from hf_any3d_survey.local_features import LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.processor import LocalFeaturesProcessor
from hf_any3d_survey.tiles.codes import POINTS
from hf_any3d_survey.tiles.confidence import Judged
from hf_any3d_survey.tiles.examples import Examples
from hf_any3d_survey.tiles.tile_set import TileSet
from hf_any3d_survey.tiles.unknown_score import STATED_FROM

HELD_OUT = {"tile": "held-out tiles", "object": "held-out objects"}


def save(
    model: LocalFeaturesForPointCloudSegmentation,
    processor: LocalFeaturesProcessor,
    tiles: TileSet,
    examples: Examples,
    judged: Judged | None,
    stopwatch: Stopwatch,
    paths: Sequence[str | Path],
) -> RunReport:
    """Write everything; metrics.json last, which marks the run as complete."""
    arguments = tiles.arguments
    classes = tiles.classes
    names = [Path(path).name for path in paths]
    counts = dict(zip(classes.names, examples.labeled.sum(axis=0).tolist(), strict=True))
    # The name of the split in report and card, since no test files were given
    held_out = HELD_OUT[tiles.kind]
    estimates = {} if judged is None else {held_out: judged.estimate}
    report = RunReport(
        data={
            "name": names[0] if len(names) == 1 else f"{len(names)} files",
            "rows": {"train": len(tiles)},
            "validation": held_out,
            "points": sum(tile.points for tile in tiles.tiles),
            "features": [*processor.features, *processor.columns],
            "augmentation": ["thinned and scaled copies"],
            "places": tiles.num_places,
            "labeled points of each class": counts,
            "hub_type": "custom",
        },
        encoder={},
        adapter={},
        trained_parameters=count_parameters(model)[0],
        total_parameters=count_parameters(model)[1],
        seconds=stopwatch.stop(),
        peak_memory=peak_memory(),
        metrics={split: estimate.metrics() for split, estimate in estimates.items()},
        class_accuracy={split: estimate.class_ious() for split, estimate in estimates.items()},
        selection={},
        training={
            "method": "features of surroundings with a small network",
            "edges": processor.edges,
            "unit": processor.unit,
            "labels of": tiles.labels_of,
            "seed": arguments.seed,
            "class codes": dict(zip(classes.names, classes.codes, strict=True)),
        },
    )
    folder = Path(arguments.output_dir)
    sure = f"Not evaluated: the model was trained on a single {tiles.kind}, so none could be held out."
    if judged is not None:
        sure = judged.estimate.section()
    with replacing_model(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        write_run_card(model, report, processor.num_points, sure, new, arguments.license, folder)
    return report


def lines_of(
    model: LocalFeaturesForPointCloudSegmentation,
    processor: LocalFeaturesProcessor,
    tiles: TileSet,
    judged: Judged | None,
    paths: Sequence[str | Path],
) -> list[str]:
    """Return what is printed of a model: of what it has learned, and how well it labels what it has not."""
    unknown = model.config.unknown
    codes = tiles.codes
    counts = [sum(codes[code] for code in members) for members in tiles.classes.members(ClassRule())]
    shown = ", ".join(f"{name} {count:,}" for name, count in zip(tiles.classes.names, counts, strict=True))
    origins = f"{len(tiles)} {tiles.kind}{'s' * (len(tiles) > 1)}"
    if tiles.are_places:
        origins += f" of {tiles.num_places} site{'s' * (tiles.num_places != 1)}"
    # Labels of points are those of vertices in a mesh.
    labeled = "vertices" if tiles.labels_of == POINTS and tiles.tiles[0].is_mesh else tiles.labels_of
    origin = ", ".join(str(path) for path in list(paths)[:2]) + (", …" if len(paths) > 2 else "")
    lines = [
        f"{origin}: {origins}; labeled {labeled}: {shown}",
        f"method: {len(processor.names())} features of each point's neighborhood, in boxes {3 * processor.edges[0]:g} "
        f"to {3 * processor.edges[-1]:g} {'m' if processor.unit == 'meters' else 'sixteenths of the diagonal'} "
        f"wide, with a small network; inputs: {', '.join([*processor.features, *processor.columns])}",
    ]
    if judged is None:
        why = f"as no {tiles.kind} could be held out; add a second one"
        return [*lines, f"mean IoU: not evaluated, {why}"]
    lines += judged.estimate.lines()
    unit = "site" if tiles.are_places else "object"
    if unknown.share is None:
        lines.append(f"none of these: off; it needs at least {STATED_FROM} {unit}s")
    else:
        # The level is that of the worst fold, so that each of them stands for one site.
        folds = len(np.unique(judged.folds))
        of_fold = f"each {unit}" if folds == len(judged.estimate.matrices) else f"each of {folds} groups of {unit}s"
        lines.append(
            f"none of these: with none_of_these, at most {percent(unknown.share)} % of the points of {of_fold} "
            f"held out; at most {percent(share_at_most(0, folds))} % of new {unit}s like these exceed that (95 % "
            "confidence)"
        )
    return lines
