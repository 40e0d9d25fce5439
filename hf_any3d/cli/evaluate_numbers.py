"""`hf-any3d evaluate PREDICTED TRUTH --numbers COLUMN`: numbers of things against ground truth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from hf_any3d.cli.common import AsCsv, AsJson, option, print_error, print_note, status
from hf_any3d.cli.inputs import FileNotes, files_of_folder, finish
from hf_any3d.cli.outputs import DATA, check_output, write_results
from hf_any3d.data.input_files import FILE_ERRORS, Cloud, InputFile
from hf_any3d.utils.messages import counted, one_line, print_line

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData
    from hf_any3d.evaluation.instances import InstanceComparison

OPTION = "--numbers"
"""Option by which `evaluate` of two files is about numbers of things, and not about labels."""
# Column with the numbers in files that `inventory` writes, and pairs of files that a page shows.
_PREDICTED_COLUMN, _MOST_SHOWN = "PredInstance", 4
_LEAST_MATCHED = 0.5  # share of the true points
# Names of what a page shows, by the numbers of its labels, and their colors.
_KINDS = ("no thing", "found", "missed", "invented")
_COLORS = np.array([[0.8, 0.8, 0.8], [0.17, 0.6, 0.29], [0.84, 0.23, 0.23], [0.91, 0.53, 0.16]])


@dataclass(frozen=True)
class _Compared:
    """A pair of clouds after their comparison."""

    name: str
    truth: PointCloudData
    comparison: InstanceComparison
    true: np.ndarray  # (points that are judged,) numbers
    answers: np.ndarray  # (points that are judged,) numbers
    found: np.ndarray  # (points of the truth,) which of them are judged


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
        Path | None, option("Also write all figures (.json), a row for each true thing (.csv), or a page (.html).")
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
    from hf_any3d.evaluation.instances import instance_figures
    from hf_any3d.evaluation.label_files import pair_files

    pairs, alone = pair_files(predicted, truth, files_of_folder)
    rows: list[dict[str, Any]] = []
    things: list[dict[str, Any]] = []
    comparisons: list[InstanceComparison] = []
    shown: list[_Compared] = []
    with FileNotes() as notes:
        for pair in pairs:
            try:
                with status(f"comparing {pair.name}"):
                    compared, row = _compare(
                        pair.name, (pair.predicted, field), (pair.truth, numbers), tolerance, least_points
                    )
            except FILE_ERRORS as error:
                if len(pairs) == 1:
                    raise
                print_error(one_line(error))
                rows.append({"file": pair.name, "error": one_line(error)})
                continue
            notes.add("warning", pair.name, row.get("warnings", ()))
            rows.append(row)
            things += _rows_of_things(compared)
            comparisons.append(compared.comparison)
            # Clouds of all files would not fit into memory.
            shown = sorted([*shown, compared], key=lambda one: _f1(one.comparison))[:_MOST_SHOWN]
    for text in alone:
        print_note(f"warning: {text}")
    figures = instance_figures(comparisons)
    is_page = ending == ".html"
    write_results({**figures, "files": rows, "left_out": alone}, things, None if is_page else output, as_json, as_csv)
    if not as_json and not as_csv:
        for line in _lines(figures, least_points):
            print_line(line)
    if is_page and output is not None and shown:
        _write_page(output, shown)
        print_note(f"{output}: {counted(len(shown), 'scan')}")
    finish(rows)


def _compare(
    name: str,
    predicted_file: tuple[Path, str],
    true_file: tuple[Path, str],
    tolerance: float | None,
    least_points: int,
) -> tuple[_Compared, dict[str, Any]]:
    """Compare a pair of files, each with the column of its numbers; also returns the row of the pair."""
    from hf_any3d.data.files import PointCloudFileError, file_errors
    from hf_any3d.evaluation.instances import compare_instances, instance_figures
    from hf_any3d.evaluation.labels import match_points, points_that_count

    predicted, answers = _read_numbers(*predicted_file)
    truth, true = _read_numbers(*true_file)
    with file_errors(predicted.name):
        matches = match_points(predicted.data, truth.data, tolerance)
    matched = int((matches.indices >= 0).sum())
    if matched < _LEAST_MATCHED * len(truth.data):
        raise PointCloudFileError(
            f"{predicted.name}: {matched:,} of the {len(truth.data):,} points of {truth.name} have a predicted point "
            f"within {matches.tolerance:g}; expected at least half of them (--tolerance)"
        )
    # Withheld points are not judged, as in comparisons of labels.
    found = (matches.indices >= 0) & points_that_count(truth.data)
    answers = answers[matches.indices[found]]
    true = true[found]
    comparison = compare_instances(answers, true, least_points=least_points)
    row: dict[str, Any] = {
        "file": name,
        "matching": "order" if matches.in_order else "nearest",
        "tolerance": matches.tolerance,
        "unmatched": len(truth.data) - matched,
        **instance_figures([comparison]),
    }
    warned = [*predicted.warnings, *truth.warnings]
    if row["unmatched"]:
        warned.append(f"{row['unmatched']:,} points of the truth have no predicted point within {matches.tolerance:g}")
    if warned:
        row["warnings"] = warned
    return _Compared(name, truth.data, comparison, true, answers, found), row


def _read_numbers(path: Path, column: str) -> tuple[Cloud, np.ndarray]:
    """Return a cloud, and the numbers (points,) in a column of it."""
    from hf_any3d.data.files import PointCloudFileError

    cloud = InputFile(str(path), label_field=column).read()
    if cloud.data.labels is None or cloud.data.label_names is not None:
        raise PointCloudFileError(f"{cloud.name}: column {column!r} has words; expected numbers of things")
    return cloud, cloud.data.labels


def _f1(comparison: InstanceComparison) -> float:
    from hf_any3d.evaluation.instances import instance_figures

    # Without any thing on either side there is nothing to see.
    f1 = instance_figures([comparison])["f1"]
    return 1.0 if f1 is None else f1


def _rows_of_things(compared: _Compared) -> list[dict[str, Any]]:
    """Return a row for each true thing."""
    true = compared.comparison.true
    columns = (true.numbers, true.points, compared.comparison.found, true.best_ious, true.partners)
    return [
        {
            "file": compared.name,
            "number": number,
            "points": points,
            "found": found,
            "best_iou": round(iou, 4),
            "predicted_number": partner,
        }
        for number, points, found, iou, partner in zip(*(column.tolist() for column in columns), strict=True)
    ]


def _lines(figures: dict[str, Any], least_points: int) -> list[str]:
    """Return the figures as text."""

    def percent(name: str) -> str:
        return "-" if figures[name] is None else f"{100 * figures[name]:.1f} %"

    small = figures["too_small_true"], figures["too_small_predicted"]
    lines = [
        f"true things {figures['true_things']:,}: found {figures['found']:,}, missed {figures['missed']:,}",
        f"predicted things {figures['predicted_things']:,}: right {figures['found']:,}, "
        f"invented {figures['invented']:,}",
        f"precision {percent('precision')}   recall {percent('recall')}   F1 {percent('f1')}   "
        f"mean best IoU {percent('mean_best_iou')}   of {figures['points']:,} points",
    ]
    if any(small):
        lines.append(f"with fewer than {least_points} points, not counted: {small[0]:,} true, {small[1]:,} predicted")
    return lines


def _write_page(page: Path, compared: list[_Compared]) -> None:
    """Write a row for each scan: true things, which are found or missed, and predicted ones, right or invented."""
    from hf_any3d.visualization.show import write_views
    from hf_any3d.visualization.things import number_colors
    from hf_any3d.visualization.viewer import CloudView

    no_thing, found, missed, invented = range(len(_KINDS))
    views = []
    for one in compared:
        points = one.truth.points[one.found]
        true, predicted = one.comparison.true, one.comparison.predicted
        # Things that are too small to count are shown as none.
        truth_kinds = np.where(np.isin(one.true, true.numbers), missed, no_thing)
        truth_kinds[np.isin(one.true, true.numbers[one.comparison.found])] = found
        answer_kinds = np.where(np.isin(one.answers, predicted.numbers), invented, no_thing)
        answer_kinds[np.isin(one.answers, predicted.numbers[one.comparison.right])] = found
        shown = {"truth": (one.true, truth_kinds), "prediction": (one.answers, answer_kinds)}
        for kind, (numbers, kinds) in shown.items():
            title = f"{one.name}: {kind}"
            views.append(CloudView(points, number_colors(numbers), kinds, title=title, up_axis=one.truth.up_axis))
    # Both views of a scan have one frame, so that they can be compared.
    write_views(
        page,
        views,
        title="true and predicted things",
        columns=2,
        rows_share_frame=True,
        names=_KINDS,
        label_name="kind",
        palette=_COLORS,
    )
