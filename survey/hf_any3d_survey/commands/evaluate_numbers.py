"""`hf-any3d evaluate PREDICTED TRUTH --numbers COLUMN`: numbers of things against ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.errors import print_note
from hf_any3d.cli.evaluate_labels import compare_pairs
from hf_any3d.cli.inputs import files_of_folder, finish
from hf_any3d.cli.options import AsCsv, AsJson, option, output_option
from hf_any3d.cli.outputs import DATA, check_output, write_results
from hf_any3d.utils.messages import counted, percent, print_line

if TYPE_CHECKING:
    from hf_any3d.evaluation.label_files import FilePair
    from hf_any3d_survey.evaluation.number_files import ComparedNumbers

OPTION = "--numbers"
"""Option by which `evaluate` of two files is about numbers of things, and not about labels."""
# Column with the numbers in files that `inventory` writes.
_PREDICTED_COLUMN = "PredInstance"


def evaluate_numbers(
    predicted: Annotated[
        Path,
        typer.Argument(
            metavar="PREDICTED", help="A file with an object number for each point, or a folder of such files."
        ),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH",
            help="The file with ground-truth object numbers, or a folder of files with the same names.",
        ),
    ],
    numbers: Annotated[
        str,
        option("Attribute of TRUTH with the object number of each point, such as itc_ref or treeID; 0 is background."),
    ],
    field: Annotated[str, option("Attribute of PREDICTED with the object numbers.")] = _PREDICTED_COLUMN,
    output: Annotated[
        Path | None,
        output_option(
            "Also write all metrics (.json), a row per ground-truth object (.csv), or an HTML page (.html)."
        ),
    ] = None,
    least_points: Annotated[int, option("Ignore objects with fewer points.", min=1)] = 10,
    tolerance: Annotated[
        float | None,
        option(
            "Maximum distance between matched points, in the units of the files; by default one centimeter, or "
            "1/10,000 of the extent if the unit is unknown.",
            min=0,
        ),
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Evaluate instance segmentation, such as numbered trees: which objects are found, missed or false positives.

    An object is found if a predicted object overlaps it with an IoU of at least 0.5. Points are matched as in
    `evaluate labels`. Points without an object in the ground truth are background.
    """
    ending = check_output(output, (*DATA, ".html"), as_json=as_json, as_csv=as_csv)
    from hf_any3d.evaluation.label_files import pair_files
    from hf_any3d_survey.evaluation.instances import instance_figures
    from hf_any3d_survey.evaluation.number_files import compare_numbers, write_compared_numbers

    pairs, alone = pair_files(predicted, truth, files_of_folder)
    things: list[dict[str, Any]] = []
    comparisons = []

    def compare(pair: FilePair) -> tuple[dict[str, Any], ComparedNumbers]:
        compared, row = compare_numbers(pair, field, numbers, tolerance, least_points)
        things.extend(compared.rows_of_things())
        comparisons.append(compared.comparison)
        return row, compared

    rows, shown = compare_pairs(pairs, compare, lambda one: one.f1)
    for text in alone:
        print_note(f"warning: {text}")
    figures = instance_figures(comparisons)
    is_page = ending == ".html"
    write_results({**figures, "files": rows, "left_out": alone}, things, None if is_page else output, as_json, as_csv)
    if not as_json and not as_csv:
        for line in _lines(figures, least_points):
            print_line(line)
    if is_page and output is not None and shown:
        write_compared_numbers(output, shown)
        print_note(f"{output}: {counted(len(shown), 'scan')}")
    finish(rows)


def _lines(figures: dict[str, Any], least_points: int) -> list[str]:
    """Return the figures as text."""

    def share_of(name: str) -> str:
        return "-" if figures[name] is None else f"{percent(figures[name], 1)} %"

    small = figures["too_small_true"], figures["too_small_predicted"]
    lines = [
        f"true objects {figures['true_things']:,}: found {figures['found']:,}, missed {figures['missed']:,}",
        f"predicted objects {figures['predicted_things']:,}: correct {figures['found']:,}, "
        f"false positives {figures['invented']:,}",
        f"precision {share_of('precision')}   recall {share_of('recall')}   F1 {share_of('f1')}   "
        f"mean best IoU {share_of('mean_best_iou')}   of {figures['points']:,} points",
    ]
    if any(small):
        lines.append(f"with fewer than {least_points} points, not counted: {small[0]:,} true, {small[1]:,} predicted")
    return lines
