"""`hf-any3d evaluate PREDICTED TRUTH --numbers COLUMN`: numbers of things against ground truth."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hf_any3d.cli.common import AsCsv, AsJson, option, output_option, print_note
from hf_any3d.cli.evaluate_labels import compare_pairs
from hf_any3d.cli.inputs import files_of_folder, finish
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
        typer.Argument(metavar="PREDICTED", help="A file whose points have numbers of things, or a folder of them."),
    ],
    truth: Annotated[
        Path,
        typer.Argument(metavar="TRUTH", help="The file, or a folder of files of the same names, with true numbers."),
    ],
    numbers: Annotated[
        str, option("Column of TRUTH with the number of each point's thing, such as itc_ref or treeID; 0 is none.")
    ],
    field: Annotated[str, option("The same of PREDICTED.")] = _PREDICTED_COLUMN,
    output: Annotated[
        Path | None,
        output_option("Also write all figures (.json), a row for each true thing (.csv), or a page (.html)."),
    ] = None,
    least_points: Annotated[int, option("Things with fewer points do not count.", min=1)] = 10,
    tolerance: Annotated[
        float | None,
        option(
            "Largest distance of matched points in units of the files; by default a centimeter, without a known unit "
            "1/10,000 of the extent.",
            min=0,
        ),
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare numbers of things, such as trees, with ground truth: which are found, missed and invented.

    A thing is found if its points and those of a predicted one have an intersection over union of at least one half.
    Points are matched as those of labels are. Points of no thing in the truth are background.
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
        f"true things {figures['true_things']:,}: found {figures['found']:,}, missed {figures['missed']:,}",
        f"predicted things {figures['predicted_things']:,}: right {figures['found']:,}, "
        f"invented {figures['invented']:,}",
        f"precision {share_of('precision')}   recall {share_of('recall')}   F1 {share_of('f1')}   "
        f"mean best IoU {share_of('mean_best_iou')}   of {figures['points']:,} points",
    ]
    if any(small):
        lines.append(f"with fewer than {least_points} points, not counted: {small[0]:,} true, {small[1]:,} predicted")
    return lines
