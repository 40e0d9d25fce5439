"""`hf-any3d evaluate MODEL DATA` of models on local features: labeled files, each of them whole."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from hf_any3d.cli.errors import print_error
from hf_any3d.cli.evaluate import warn_if_learned
from hf_any3d.cli.inputs import finish
from hf_any3d.cli.opening import open_pipeline
from hf_any3d.cli.outputs import write_results
from hf_any3d.tasks.segmentation.about import TASK as SEGMENTATION
from hf_any3d.utils.messages import print_line
from hf_any3d.utils.progress import is_watched

_SPLIT = "all"
# Figures of all files together that stand for the split in JSON.
_SHARES = ("mean_iou", "mean_iou_low", "mean_iou_high", "accuracy", "mean_class_accuracy", "places", "tiles")


def evaluate_tiles(
    model: str,
    data: str,
    output: Path | None,
    *,
    unit: str | None = None,
    label_field: str | None = None,
    use_cpu: bool = False,
    as_json: bool = False,
    as_csv: bool = False,
) -> None:
    """Compare the answers of a model with the classes in a file, or in the files of a folder.

    Prints the table of `evaluate PREDICTED TRUTH`, with intervals where the files are of several places, or are
    several tiles of one. `unit` is that of files that say none.
    """
    pipe = open_pipeline(SEGMENTATION.name, model, "cpu" if use_cpu else None)
    from hf_any3d.evaluation.comparison import training_report
    from hf_any3d.evaluation.labels import comparison_lines
    from hf_any3d.evaluation.scan_scores import to_json
    from hf_any3d_survey.tiles.evaluation import judge_tiles
    from hf_any3d_survey.tiles.reading import tile_files

    files = tile_files([data], "test")
    warning = warn_if_learned(model, Path(data).name)

    def label(cloud: Any) -> Any:
        return pipe({"points": cloud}, progress=is_watched())["labels"]

    # Bars and remarks go to stderr, so that stdout holds the table alone.
    with contextlib.redirect_stdout(sys.stderr):
        processor = pipe.feature_extractor
        judgment = judge_tiles(pipe.model.config, processor.unit, label, files, unit, label_field, processor.columns)
    for row in judgment.files:
        if "error" in row:
            print_error(row["error"])
    whole = judgment.comparison
    # If files failed, that is the reason, and the command ends here.
    if not whole.pairs:
        finish(judgment.files)
        raise ValueError(f"{data}: no point has a class that {model} was trained on")
    figures = judgment.figures()
    # As other evaluations have it: metrics by split, then scores of classes by split.
    facts = {
        "model": model,
        "metrics": {_SPLIT: {name: figures[name] for name in _SHARES if name in figures}},
        "class_iou": {_SPLIT: {row["name"]: row["iou"] for row in figures["classes"]}},
        **figures,
        "files": judgment.files,
        "scans": {} if judgment.scans is None else to_json({_SPLIT: judgment.scans}),
        "training": training_report(Path(model)),
    }
    write_results(facts, figures["classes"], output, as_json, as_csv)
    if output is not None and output.suffix.lower() == ".html" and judgment.estimate is not None:
        from hf_any3d.visualization.evaluation_page import write_evaluation_page

        write_evaluation_page(
            output,
            title=f"Evaluation of {Path(model).name} on {Path(data).name}",
            summary=f"Warning: {warning}." if warning else "",
            metrics=facts["metrics"],
            class_scores=facts["class_iou"],
            confusions={_SPLIT: (judgment.estimate.matrix, judgment.estimate.classes)},
        )
    if not as_json and not as_csv:
        not_counted = "without a class that the model was trained on"
        for line in comparison_lines(figures, judgment.files, whole, judgment.names, not_counted):
            print_line(line)
    finish(judgment.files)
