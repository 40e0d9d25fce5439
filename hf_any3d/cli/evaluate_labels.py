"""`hf-any3d evaluate PREDICTED TRUTH`: labels of points in files against ground truth, without a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
from typer.core import TyperCommand

from hf_any3d.cli.errors import print_error, print_note
from hf_any3d.cli.inputs import FileNotes, files_of_folder, finish
from hf_any3d.cli.options import AsCsv, AsJson, LabelField, json_object, option, output_option
from hf_any3d.cli.outputs import DATA, check_output, write_results
from hf_any3d.cli.progress import status
from hf_any3d.data.files.input_files import FILE_ERRORS
from hf_any3d.hub.models import is_model
from hf_any3d.registry import FORMATS
from hf_any3d.utils.messages import counted, one_line, print_line

if TYPE_CHECKING:
    from hf_any3d.data.classes.class_rule import ClassRule
    from hf_any3d.evaluation.label_files import FilePair

Compared = TypeVar("Compared")
_LAS = {".las", ".laz"}
# Pairs of files that a page shows.
_MOST_SHOWN = 4
# Folders of models have files of these endings, too.
_OF_POINTS = FORMATS.keys() - {"bin", "csv", "txt"}


def are_points(word: str) -> bool:
    """Return whether a word of the command line is a file of points, or a folder of them that is no model."""
    path = Path(word)
    if path.is_file():
        return path.suffix[1:].lower() in FORMATS
    if not path.is_dir() or is_model(path):
        return False
    # Found one by one, and only as far as needed: folders of scans may have thousands of files.
    return any(file.suffix[1:].lower() in _OF_POINTS for file in path.rglob("*"))


class LabelsCommand(TyperCommand):
    """The command `evaluate PREDICTED TRUTH`, whose `--merge` takes several classes, as that of `train` does."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Repeat `--merge` before each further class behind it; files that are compared are no classes."""
        words: list[str] = []
        follows = False
        for word in args:
            is_class = follows and re.search(r"=\s*-?\d", word) is not None and not Path(word).exists()
            if is_class and words[-1] != "--merge":
                words.append("--merge")
            follows = word == "--merge" or is_class
            words.append(word)
        try:
            return super().parse_args(ctx, words)
        except typer.Exit:
            raise
        except Exception as error:
            is_alone = type(error).__name__ == "MissingParameter" and args and not args[0].startswith("-")
            if is_alone:
                ctx.fail(
                    f"{args[0]} is data, not a model; expected MODEL {args[0]}, or PREDICTED TRUTH to compare labels "
                    "of points"
                )
            raise


def evaluate_labels(
    predicted: Annotated[
        Path,
        typer.Argument(metavar="PREDICTED", help="A file with predicted point labels, or a folder of such files."),
    ],
    truth: Annotated[
        Path,
        typer.Argument(
            metavar="TRUTH", help="The file with ground-truth labels, or a folder of files with the same names."
        ),
    ],
    output: Annotated[
        Path | None, output_option("Also write all metrics (.json) or a table of classes (.csv).")
    ] = None,
    page: Annotated[
        Path | None, output_option("Also write an HTML page (.html) of true labels, predicted labels and differences.")
    ] = None,
    tolerance: Annotated[
        float | None,
        option(
            "Maximum distance between matched points, in the units of the files; by default one centimeter, or "
            "1/10,000 of the extent if the unit is unknown.",
            min=0,
        ),
    ] = None,
    least_matched: Annotated[
        float,
        typer.Option(
            help="Minimum share of ground-truth points in a file that must match a predicted point within the "
            "tolerance; below it, the file is reported as an error.",
            min=0,
            max=1,
        ),
    ] = 0.5,
    merge: Annotated[
        list[str] | None,
        option(
            "Classes to merge in predictions and ground truth, as in train, such as vegetation=3,4,5; accepts "
            "several values."
        ),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        option(
            "Ground-truth codes to ignore, as in train, such as 0,1,7 or none; can be repeated. By default, LAS "
            "codes that are not object classes, such as 0, 1, 7, 12 and 18, unless --merge names them. Negative "
            "codes are always ignored."
        ),
    ] = None,
    class_names: Annotated[
        str | None,
        option(
            'JSON object with class names, such as {"2": "ground"}; not needed for standard LAS classes.', "--names"
        ),
    ] = None,
    label_field: LabelField = None,
    predicted_field: Annotated[
        str | None, option("Attribute with the labels in PREDICTED, if it differs from --label-field.")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare predicted point labels with ground truth: IoU, recall and precision of each class.

    Points are matched by order if their coordinates are equal, otherwise to the nearest point within the tolerance.
    Ground-truth points without a match are reported but not scored. Points without a predicted class (LAS codes 0 and
    1 and others that are not object classes; negative labels) count as wrong. Points flagged as withheld or synthetic
    in the ground truth are ignored.
    """
    check_output(output, DATA, as_json=as_json, as_csv=as_csv)
    if page is not None:
        check_output(page, (".html",))
    from hf_any3d.data.classes.las_classes import ASPRS_CLASSES
    from hf_any3d.evaluation.label_files import LabelFiles, pair_files, split_family, write_comparison
    from hf_any3d.evaluation.labels import comparison_lines, not_counted_labels

    pairs, alone = pair_files(predicted, truth, files_of_folder)
    endings: set[str] = set()
    for pair in pairs:
        endings |= {pair.predicted.suffix.lower(), pair.truth.suffix.lower()}
    # There is one table for all files, in which a code has one meaning.
    is_las = not endings.isdisjoint(_LAS)
    if is_las and not endings <= _LAS:
        print_note("note: one file of a pair is not LAS; its labels are read as ASPRS codes, like those of the other")
    rule = _read_rule(merge, ignore)
    ignored = None if rule.ignored is None else set(rule.ignored)
    given_names = {int(label): str(name) for label, name in json_object("--names", class_names).items()}
    compared = LabelFiles(
        is_las=is_las,
        joined=rule.joined(is_las),
        ignored=ignored,
        names=given_names,
        tolerance=tolerance,
        least_share=least_matched,
        fields=(predicted_field, label_field),
    )
    rows, different = compare_pairs(pairs, compared.compare, lambda one: one.accuracy)
    if compared.codes:
        # Any tile may lack a class of the standard.
        rule.check_in_files(compared.codes, may_lack=ASPRS_CLASSES if is_las else ())
    whole, names = compared.whole, compared.names
    # Files that failed may be the reason, and are told below.
    if not whole.pairs and not any("error" in row for row in rows):
        labels = not_counted_labels(whole, names)
        raise ValueError(f"{truth}: no point has a true class that counts; there are {labels}")
    for text in alone:
        print_note(f"warning: {text}")
    figures = whole.figures(names)
    write_results({**figures, "files": rows, "left_out": alone}, figures["classes"], output, as_json, as_csv)
    if not as_json and not as_csv:
        for line in comparison_lines(figures, rows, whole, names):
            print_line(line)
        family = split_family(whole) if is_las else None
        if family is not None:
            codes = ",".join(map(str, family[1]))
            print_note(
                f"note: of {family[0]}, the truth has classes {codes} and the prediction not all of them; if it was "
                f"learned as one class: --merge {family[0]}={codes}"
            )
    if page is not None and different:
        write_comparison(page, different, whole, names)
        print_note(f"{page}: {counted(len(different), 'scan')}")
    finish(rows)


def _read_rule(merge: list[str] | None, ignore: list[str] | None) -> ClassRule:
    """Return which codes are joined, and which are ignored."""
    from hf_any3d.data.classes.class_rule import ClassRule

    try:
        return ClassRule.parse(",".join(ignore) if ignore else None, merge)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def compare_pairs(
    pairs: Sequence[FilePair],
    compare: Callable[[FilePair], tuple[dict[str, Any], Compared]],
    score: Callable[[Compared], float],
) -> tuple[list[dict[str, Any]], list[Compared]]:
    """Return the row of each pair, with its error if there is one, and the scans with the lowest scores."""
    from hf_any3d.evaluation.label_files import FewMatchesError, UnnamedLabelsError

    rows: list[dict[str, Any]] = []
    worst: list[Compared] = []
    with FileNotes() as notes:
        for pair in pairs:
            try:
                with status(f"comparing {pair.name}"):
                    row, compared = compare(pair)
            except FILE_ERRORS as error:
                if isinstance(error, UnnamedLabelsError):
                    error = ValueError(f'{error}, such as --names \'{{"{error.label}": "ground"}}\'')
                elif isinstance(error, FewMatchesError):
                    error = ValueError(f"{error} (--least-matched)")
                # The error of a single pair ends the command; of several, the others are compared.
                if len(pairs) == 1:
                    raise error from None
                rows.append({"file": pair.name, "error": one_line(error)})
                print_error(rows[-1]["error"])
                continue
            notes.add("warning", pair.name, row.get("warnings", ()))
            rows.append(row)
            # Clouds of all files would not fit into memory; a page shows the worst.
            worst = sorted([*worst, compared], key=score)[:_MOST_SHOWN]
    return rows, worst
