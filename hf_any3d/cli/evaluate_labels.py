"""`hf-any3d evaluate PREDICTED TRUTH`: labels of points in files against ground truth, without a model."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from typer.core import TyperCommand

from hf_any3d.cli.common import (
    AsCsv,
    AsJson,
    LabelField,
    is_model,
    json_object,
    option,
    print_error,
    print_note,
    status,
)
from hf_any3d.cli.inputs import FileNotes, files_of_folder, finish
from hf_any3d.cli.outputs import DATA, check_output, write_results
from hf_any3d.many_files.files import FILE_ERRORS, Cloud, InputFile
from hf_any3d.registry import FORMATS
from hf_any3d.utils.messages import counted, listed, one_line, print_line

if TYPE_CHECKING:
    from hf_any3d.data.files import PointCloudData
    from hf_any3d.evaluation.labels import LabelComparison, Matches

# Pairs of classes that are named as the most frequent confusions, and pairs of files that a page shows.
_MOST_CONFUSED, _MOST_SHOWN = 5, 4
# Folders of models have files of these endings, too.
_OF_POINTS = FORMATS.keys() - {"bin", "csv", "txt"}


def are_points(word: str) -> bool:
    """Return whether a word of the command line is a file of points, or a folder of them that is no model."""
    path = Path(word)
    if path.is_file():
        return path.suffix[1:].lower() in FORMATS
    # Found one by one, and only as far as needed: folders of scans may have thousands of files.
    found = (file.suffix[1:].lower() for file in path.rglob("*"))
    return path.is_dir() and not is_model(path) and any(ending in _OF_POINTS for ending in found)


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
        return super().parse_args(ctx, words)


@dataclass(frozen=True)
class _Pair:
    """The file with predicted labels of a scan, and the file with true ones."""

    name: str
    predicted: Path
    truth: Path


def evaluate_labels(
    predicted: Annotated[
        Path,
        typer.Argument(metavar="PREDICTED", help="A file whose points have predicted labels, or a folder of them."),
    ],
    truth: Annotated[
        Path,
        typer.Argument(metavar="TRUTH", help="The file, or a folder of files of the same names, with true labels."),
    ],
    output: Annotated[Path | None, option("Also write all figures (.json) or a table of classes (.csv).")] = None,
    page: Annotated[Path | None, option("Write a page (.html) of true and predicted labels and differences.")] = None,
    tolerance: Annotated[
        float | None,
        option(
            "Largest distance of matched points in units of the files; by default a centimeter, without a known unit "
            "1/10,000 of the extent.",
            min=0,
        ),
    ] = None,
    least_matched: Annotated[
        float,
        typer.Option(
            help="Least share of the true points of a file that must have a predicted point within the tolerance; "
            "with fewer the file is an error, as figures of a few chance matches say nothing of the scan.",
            min=0,
            max=1,
        ),
    ] = 0.5,
    merge: Annotated[
        list[str] | None,
        option("Classes to join in prediction and truth, as in train, such as vegetation=3,4,5; several may follow."),
    ] = None,
    ignore: Annotated[
        list[str] | None,
        option(
            "Codes of true labels whose points do not count, as in train, such as 0,1,7 or none; may be repeated. By "
            "default those of LAS that name no object in the point format of the file, such as 0, 1, 7, 12 and 18, "
            "but for those that --merge names; negative ones never count."
        ),
    ] = None,
    class_names: Annotated[
        str | None, option('JSON object with names of classes, such as {"2": "ground"}; LAS has its own.', "--names")
    ] = None,
    label_field: LabelField = None,
    predicted_field: Annotated[
        str | None, option("The same of PREDICTED, whose column need not be that of TRUTH.")
    ] = None,
    as_json: AsJson = False,
    as_csv: AsCsv = False,
) -> None:
    """Compare labels of points with ground truth: intersection over union, recall and precision of each class.

    Points are matched by their order where their coordinates are equal, else by the nearest within the tolerance. True
    points without a match do not count and are reported. Points that the prediction leaves without a class (0 and 1 of
    LAS, and others that name no object; negative labels) count as wrong. Points that are flagged as withheld or
    synthetic in the truth are left out. A file of whose true points fewer than --least-matched have a match is an
    error.
    """
    check_output(output, DATA, as_json=as_json, as_csv=as_csv)
    if page is not None:
        check_output(page, (".html",))
    pairs, alone = _pairs(predicted, truth)
    is_las = _are_las(pairs)
    from hf_any3d.data.las_classes import ASPRS_CLASSES, CURRENT, UNCLASSIFIED
    from hf_any3d.evaluation.labels import LabelComparison

    joined, ignored = _read_rule(merge, ignore, is_las)
    unclassified = set(UNCLASSIFIED) if is_las else set()
    if ignored is None:
        ignored = unclassified - joined.keys()
    names = dict(ASPRS_CLASSES) if is_las else {}
    names |= {number: name for name, number in joined.values()}
    # Names that are given win over those of ASPRS.
    names |= {int(label): str(name) for label, name in json_object("--names", class_names).items()}
    # Of the codes without a class, one that counts in the truth is a class of the prediction, too.
    whole = LabelComparison(ignored, unclassified & ignored)
    numbers = {code: number for code, (_, number) in joined.items()}
    table = CURRENT if is_las and not ignore else None
    matching = _Matching(tolerance, least_matched, numbers, table, names, (predicted_field, label_field))
    rows, different = _compare_all(pairs, whole, matching, names)
    # Files that failed may be the reason, and are told below.
    if not whole.pairs and not any("error" in row for row in rows):
        raise ValueError(f"{truth}: no point has a true class that counts; there are {_listed(whole, names)}")
    for text in alone:
        print_note(f"warning: {text}")
    figures = whole.figures(names)
    write_results({**figures, "files": rows, "left_out": alone}, figures["classes"], output, as_json, as_csv)
    if not as_json and not as_csv:
        for line in comparison_lines(figures, rows, whole, names):
            print_line(line)
        if is_las and (hint := _classes_to_join(whole)) is not None:
            print_note(hint)
    if page is not None and different:
        _write_page(page, different, whole, names)
        print_note(f"{page}: {counted(len(different), 'scan')}")
    finish(rows)


def _read_rule(
    merge: list[str] | None, ignore: list[str] | None, is_las: bool
) -> tuple[dict[int, tuple[str, int]], set[int] | None]:
    """Return the name and number of the joined class of a code, and the codes to ignore; None if none are given."""
    if not merge and not ignore:
        return {}, None
    from hf_any3d.data.las_classes import CURRENT, UNCLASSIFIED
    from hf_any3d.training.tiles.labels import ClassRule

    try:
        rule = ClassRule.parse(",".join(ignore) if ignore else None, merge)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None
    joined: dict[int, tuple[str, int]] = {}
    for name, codes in rule.merged.items():
        number = rule.class_of(codes[0], CURRENT if is_las else None)[1]
        # A class may have no code of LAS, and a prediction says of its points that they are unclassified.
        if is_las and number in UNCLASSIFIED:
            number = codes[-1]
        # A labeled copy has the code that the joined class has in files, which need not be one of those that it joins.
        joined |= dict.fromkeys((*codes, number), (name, number))
    return joined, None if rule.ignored is None else set(rule.ignored)


def _classes_to_join(whole: LabelComparison) -> str | None:
    """Return a remark if the prediction joins classes that the truth tells apart, such as heights of vegetation."""
    from hf_any3d.data.las_classes import FAMILIES

    true = {label for label, _ in whole.pairs}
    predicted = {label for _, label in whole.pairs}
    for family, members in FAMILIES.items():
        known = true & {*members}
        if len(known) > 1 and known & predicted and known - predicted:
            codes = ",".join(map(str, sorted(known)))
            return (
                f"note: of {family}, the truth has classes {codes} and the prediction not all of them; if it was "
                f"learned as one class: --merge {family}={codes}"
            )
    return None


def _are_las(pairs: list[_Pair]) -> bool:
    """Return whether labels are codes of ASPRS, as those of LAS are."""
    # There is one table for all files, in which a code has one meaning.
    are_las = []
    for pair in pairs:
        are_las += [path.suffix.lower() in (".las", ".laz") for path in (pair.predicted, pair.truth)]
    if any(are_las) and not all(are_las):
        print_note("note: one of a pair is no LAS; its labels are taken for the codes of ASPRS, as those of the other")
    return any(are_las)


def _compare_all(
    pairs: list[_Pair], whole: LabelComparison, matching: _Matching, names: dict[int, str]
) -> tuple[list[dict[str, Any]], list[_Compared]]:
    """Return the row of each pair, and the scans with the most differences."""
    rows: list[dict[str, Any]] = []
    different: list[_Compared] = []
    with FileNotes() as notes:
        for pair in pairs:
            with status(f"comparing {pair.name}"):
                row, compared = _compare(pair, whole, matching, names, raise_errors=len(pairs) == 1)
            notes.add("warning", pair.name, row.get("warnings", ()))
            if "error" in row:
                print_error(row["error"])
            rows.append(row)
            if compared is not None:
                # Clouds of all files would not fit into memory; a page shows the worst.
                different = sorted([*different, compared], key=lambda one: one.accuracy)[:_MOST_SHOWN]
    return rows, different


def _pairs(predicted: Path, truth: Path) -> tuple[list[_Pair], list[str]]:
    """Return the pairs of files, and a line about those without a partner."""
    for place in (predicted, truth):
        if not place.exists():
            raise FileNotFoundError(f"{place}: no such file or folder")
    # Both have to be files, or both folders, whose files are matched by name.
    if predicted.is_file() != truth.is_file():
        raise ValueError(f"{predicted} and {truth}: a file and a folder; expected two files or two folders")
    if predicted.is_file():
        return [_Pair(predicted.name, predicted, truth)], []
    # Predictions may have another format than the truth.
    first, second = (
        {path.relative_to(root).with_suffix("").as_posix(): path for path in files_of_folder(root)}
        for root in (predicted, truth)
    )
    common = [name for name in first if name in second]
    if not common:
        raise ValueError(f"{predicted} and {truth}: no files of the same name; expected one prediction for each scan")
    alone = []
    for root, own, other in ((predicted, first, second), (truth, second, first)):
        if lonely := [path.name for name, path in own.items() if name not in other]:
            alone.append(f"{root}: {len(lonely)} of {len(own)} files have no partner: {listed(lonely)}")
    return [_Pair(name, first[name], second[name]) for name in common], alone


@dataclass(frozen=True)
class _Matching:
    """Options for a pair of files before its labels are counted."""

    tolerance: float | None
    least_share: float  # of the true points that must have a match
    joined: dict[int, int]  # code -> number of the joined class
    table: str | None  # by which codes of files that are no LAS count, None if the codes that count were named
    names: dict[int, str]  # code -> name, also of words that files have for classes
    fields: tuple[str | None, str | None]  # columns of predicted and of true labels

    def join(self, labels: np.ndarray) -> np.ndarray:
        """Return labels (points,) with the numbers of joined classes."""
        if not self.joined:
            return labels
        present, place = np.unique(labels, return_inverse=True)
        return np.array([self.joined.get(code, code) for code in present.tolist()])[place.reshape(-1)]

    def codes(self, cloud: Cloud, *, has_words: bool) -> np.ndarray:
        """Return the labels of a cloud (points,), with the codes of classes that are words, in either of two files."""
        from hf_any3d.data.files import PointCloudFileError
        from hf_any3d.data.files.label_words import NO_LABEL, renumbered

        labels = _labels_of(cloud)
        words = cloud.data.label_names
        if words is None:
            unnamed = sorted({*np.unique(labels).tolist()} - self.names.keys() - {NO_LABEL}) if has_words else []
            if unnamed:
                given = f'--names \'{{"{unnamed[0]}": "ground"}}\''
                raise PointCloudFileError(
                    f"{cloud.name}: labels are numbers, and words in the other file; name each, such as {given}"
                )
            return labels
        # A word that nobody has given a number gets the next one.
        for word in words:
            if word not in self.names.values():
                self.names[max(self.names, default=-1) + 1] = word
        codes = np.array([*self.names, NO_LABEL])
        return codes[renumbered(labels, words, list(self.names.values()))]

    def no_objects(self, truth: PointCloudData, labels: np.ndarray) -> set[int]:
        """Return which labels name no object in the file with the truth, as its point format says."""
        from hf_any3d.data.las_classes import names_object

        if self.table is None:
            return set()
        table = truth.label_codes or self.table
        codes = {code for code in np.unique(labels).tolist() if not names_object(code, table)}
        return codes - self.joined.keys()

    def check(self, matches: Matches, predicted: str, truth: str) -> None:
        """Refuse figures of a few points that are near each other by chance."""
        from hf_any3d.data.files import PointCloudFileError

        found = int((matches.indices >= 0).sum())
        total = len(matches.indices)
        if found < self.least_share * total:
            raise PointCloudFileError(
                f"{predicted}: {found:,} of the {total:,} points of {truth} have a predicted point within "
                f"{matches.tolerance:g}; expected at least {100 * self.least_share:g} % (--least-matched)"
            )


@dataclass(frozen=True)
class _Compared:
    """A pair of clouds after their comparison."""

    name: str
    truth: PointCloudData
    true: np.ndarray  # (points of the truth,) labels
    answers: np.ndarray  # (points of the truth,) predicted labels of their matches
    found: np.ndarray  # (points of the truth,) whether they have a match
    accuracy: float


def _compare(
    pair: _Pair, whole: LabelComparison, matching: _Matching, names: dict[int, str], *, raise_errors: bool
) -> tuple[dict[str, Any], _Compared | None]:
    """Add a pair of files to the comparison; return its row, and what a page shows of it."""
    from hf_any3d.data.files import file_errors
    from hf_any3d.evaluation.labels import LabelComparison, match_points, points_that_count

    try:
        paths = (pair.predicted, pair.truth)
        predicted, truth = (
            InputFile(str(path), label_field=name).read() for path, name in zip(paths, matching.fields, strict=True)
        )
        has_words = any(cloud.data.label_names is not None for cloud in (predicted, truth))
        answers = matching.join(matching.codes(predicted, has_words=has_words))
        true = matching.join(matching.codes(truth, has_words=has_words))
        with file_errors(predicted.name):
            matches = match_points(predicted.data, truth.data, matching.tolerance)
        matching.check(matches, predicted.name, truth.name)
        no_objects = matching.no_objects(truth.data, np.concatenate([true, answers]))
        whole.unclassified = {*whole.unclassified, *no_objects}
        judged = LabelComparison({*whole.ignored, *no_objects}, whole.unclassified)
        counts = points_that_count(truth.data)
        flagged = int((~counts).sum())
        # For the row of this file, and added to the figures of all
        own = judged.add(answers, true[counts], replace(matches, indices=matches.indices[counts]))
        whole.merge(own)
    except FILE_ERRORS as error:
        if raise_errors:
            raise
        return {"file": pair.name, "error": one_line(error)}, None
    figures = own.figures(names)
    row = {"file": pair.name, "matching": "order" if matches.in_order else "nearest", "tolerance": matches.tolerance}
    warned = [*predicted.warnings, *truth.warnings]
    if flagged:
        warned.append(f"{flagged:,} points with the flag withheld or synthetic are not judged")
    if warned:
        row["warnings"] = warned
    # (true points,); -1 stands for no match, and picks an answer that `found` then hides.
    found = (matches.indices >= 0) & counts
    accuracy = figures["accuracy"] or 0.0
    return row | figures, _Compared(pair.name, truth.data, true, answers[matches.indices], found, accuracy)


def _labels_of(cloud: Cloud) -> np.ndarray:
    from hf_any3d.data.files import PointCloudFileError

    if cloud.data.labels is None:
        raise PointCloudFileError(f"{cloud.name}: no labels of points; expected a class for each point")
    return cloud.data.labels


def _listed(whole: LabelComparison, names: dict[int, str]) -> str:
    from hf_any3d.data.las_classes import class_name

    counts = whole.not_counted.most_common()
    return ", ".join(f"{count:,} of {class_name(label, names)}" for label, count in counts) or "none"


def _percent(share: float | None) -> str:
    return "     -" if share is None else f"{100 * share:6.2f}"


def comparison_lines(
    figures: dict[str, Any],
    rows: list[dict[str, Any]],
    whole: LabelComparison,
    names: dict[int, str],
    not_counted: str = "without a true class",
) -> Iterator[str]:
    """Yield a table of the classes, with intervals where the figures have them, and the most frequent confusions."""
    from hf_any3d.data.las_classes import class_name

    # Files may have been matched in different ways, which the figures do not show.
    told = {"order": "equal coordinates in the same order", "nearest": "the nearest point within the tolerance"}
    for way, words in told.items():
        matched = [row for row in rows if row.get("matching") == way]
        if matched:
            total = sum(row["points"] for row in matched)
            found = total - sum(row["unmatched"] for row in matched)
            of_files = f" in {counted(len(matched), 'file')}" if len(rows) > 1 else ""
            yield f"matched by {words}: {found:,} of {total:,} points{of_files}"
    yield from _class_lines(figures)
    # By (true label, predicted label); equal ones are no confusion.
    wrong = Counter({pair: count for pair, count in whole.pairs.items() if pair[0] != pair[1]})
    if wrong:
        confused = [
            f"{class_name(true, names)} as {class_name(answer, names)} {count:,}"
            for (true, answer), count in wrong.most_common(_MOST_CONFUSED)
        ]
        yield f"most confused: {'; '.join(confused)}"
    if figures["never_classified"]:
        yield f"never classified by the prediction: {figures['never_classified']:,} points, which count as wrong"
    if whole.not_counted:
        yield f"{not_counted}, not counted: {_listed(whole, names)}"
    if figures["unmatched"]:
        yield f"without a predicted point within the tolerance, not counted: {figures['unmatched']:,} points"


def _class_lines(figures: dict[str, Any]) -> Iterator[str]:
    """Yield a line for each class, and one for all."""
    width = max([len(row["name"]) for row in figures["classes"]] or [0])
    # Intervals are there for a model that was evaluated on several files.
    with_intervals = "mean_iou_low" in figures
    interval = "  95 % interval" if with_intervals else ""
    yield f"{'class':<{width}}     IoU{interval}  recall  precision  true points  predicted"
    for row in figures["classes"]:
        interval = f"  {_percent(row['iou_low'])} {_percent(row['iou_high'])}" if with_intervals else ""
        shares = f"{_percent(row['iou'])}{interval}  {_percent(row['recall'])}     {_percent(row['precision'])}"
        yield f"{row['name']:<{width}}  {shares}  {row['true_points']:>11,}  {row['predicted_points']:>9,}"
    mean = f"mean IoU {_percent(figures['mean_iou']).strip()} %"
    if with_intervals:
        low, high = (_percent(figures[name]).strip() for name in ("mean_iou_low", "mean_iou_high"))
        mean += f" (95 % interval {low} to {high} %)"
    yield (
        f"accuracy {_percent(figures['accuracy']).strip()} %   {mean}   "
        f"mean class {_percent(figures['mean_class_accuracy']).strip()} %   of {figures['counted']:,} points"
    )


def _write_page(page: Path, compared: list[_Compared], whole: LabelComparison, names: dict[int, str]) -> None:
    """Write a row for each scan: true labels, predicted ones, and predicted ones where they differ."""
    from hf_any3d.data.las_classes import class_name
    from hf_any3d.visualization.show import class_colors, write_views
    from hf_any3d.visualization.viewer import CloudView

    labels = np.array(sorted({*whole.matrix()[0], *whole.not_counted}))
    # After the classes: points with equal labels, and those that do not count.
    equal = len(labels)
    not_counted = len(labels) + 1
    titles = [*(class_name(label, names) for label in labels.tolist()), "equal", "not counted"]
    palette = np.concatenate([class_colors(titles[: len(labels)]), [[0.6, 0.6, 0.6], [0.85, 0.85, 0.85]]])
    # By all labels, those of the truth that do not count among them.
    counted_labels, _ = whole.matrix()
    ignored = [label for label in labels.tolist() if whole.is_ignored(label) or label not in counted_labels]
    views = []
    for one in compared:
        points = one.truth.points[one.found]
        true = one.true[one.found]
        answers = one.answers[one.found]
        # The answer for a point that does not count may be a label of no class here.
        predicted = np.where(np.isin(answers, labels), np.searchsorted(labels, answers), not_counted)
        differences = np.where(true == answers, equal, predicted)
        differences[np.isin(true, ignored)] = not_counted
        # Numbers of `titles`, as a page counts labels from 0.
        shown = {"truth": np.searchsorted(labels, true), "prediction": predicted, "differences": differences}
        for kind, values in shown.items():
            title = f"{one.name}: {kind}"
            views.append(CloudView(points, labels=values, title=title, up_axis=one.truth.up_axis))
    # The three views of a scan have one frame, so that they can be compared.
    settings: dict[str, Any] = {"names": titles, "label_name": "class", "palette": palette}
    write_views(page, views, title="true and predicted labels", columns=3, rows_share_frame=True, **settings)
