"""Compare labels of points in files with ground truth: pairs of files by name, codes and words, joined classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.checks.left_out_points import count_left_out, left_out_words
from hf_any3d.data.classes.las_classes import ASPRS_CLASSES, CURRENT, FAMILIES, UNCLASSIFIED, class_name, names_object
from hf_any3d.data.files import PointCloudData, PointCloudFileError, file_errors
from hf_any3d.data.files.input_files import Cloud, InputFile
from hf_any3d.data.files.label_words import NO_LABEL, renumbered
from hf_any3d.evaluation.labels import LabelComparison, match_points, points_that_count
from hf_any3d.hub.names import no_such
from hf_any3d.utils.messages import listed


class UnnamedLabelsError(PointCloudFileError):
    """Labels that are numbers in one file, `label` among them, and words in the other, without names for them."""

    def __init__(self, text: str, label: int):
        super().__init__(text)
        self.label = label


class FewMatchesError(PointCloudFileError):
    """Too few of the true points have a predicted one."""


@dataclass(frozen=True)
class FilePair:
    """The file with predicted labels of a scan, and the file with true ones."""

    name: str
    predicted: Path
    truth: Path


def pair_files(
    predicted: Path, truth: Path, files_of: Callable[[Path], Sequence[Path]]
) -> tuple[list[FilePair], list[str]]:
    """Pair two files, or the files of two folders by their names without endings; `files_of` lists a folder.

    Returns:
        The pairs, and a line about files without a partner for each folder that has some.

    Raises:
        FileNotFoundError: There is no such file or folder.
        ValueError: A file and a folder, or folders without files of the same name.
    """
    for place in (predicted, truth):
        if not place.exists():
            raise FileNotFoundError(no_such(place))
    # Both have to be files, or both folders, whose files are matched by name.
    if predicted.is_file() != truth.is_file():
        raise ValueError(f"{predicted} and {truth}: a file and a folder; expected two files or two folders")
    if predicted.is_file():
        return [FilePair(predicted.name, predicted, truth)], []
    # Predictions may have another format than the truth.
    first, second = (
        {path.relative_to(root).with_suffix("").as_posix(): path for path in files_of(root)}
        for root in (predicted, truth)
    )
    common = [name for name in first if name in second]
    if not common:
        raise ValueError(f"{predicted} and {truth}: no files of the same name; expected one prediction for each scan")
    alone = []
    for root, own, other in ((predicted, first, second), (truth, second, first)):
        if lonely := [path.name for name, path in own.items() if name not in other]:
            alone.append(f"{root}: {len(lonely)} of {len(own)} files have no partner: {listed(lonely)}")
    return [FilePair(name, first[name], second[name]) for name in common], alone


@dataclass(frozen=True)
class ComparedLabels:
    """A pair of clouds after their comparison."""

    name: str
    truth: PointCloudData
    true: np.ndarray  # (points of the truth,) labels
    answers: np.ndarray  # (points of the truth,) predicted labels of their matches
    found: np.ndarray  # (points of the truth,) whether they have a match
    accuracy: float


class LabelFiles:
    """Comparison of pairs of files, one after the other; `whole` has the counts of all.

    Args:
        is_las: Labels are codes of ASPRS, as those of LAS are.
        joined: Code -> name and number of the class that it is joined to, in prediction and truth.
        ignored: Codes of true labels that do not count; None for those of LAS that name no object in the point format
            of the file.
        names: Code -> name, which wins over that of ASPRS.
        tolerance: Largest distance of matched points; see `match_points`.
        least_share: Least share of the true points that must have a match.
        fields: Columns of predicted and of true labels; None for a usual name.
    """

    def __init__(
        self,
        *,
        is_las: bool = False,
        joined: Mapping[int, tuple[str, int]] | None = None,
        ignored: set[int] | None = None,
        names: Mapping[int, str] | None = None,
        tolerance: float | None = None,
        least_share: float = 0.5,
        fields: tuple[str | None, str | None] = (None, None),
    ):
        joined = joined or {}
        unclassified: set[int] = set(UNCLASSIFIED) if is_las else set()
        # By which codes of files that are no LAS count, None if the codes that count were named.
        self.table = CURRENT if is_las and ignored is None else None
        left_out: set[int] = unclassified - joined.keys() if ignored is None else set(ignored)
        # Code -> name, also of words that files have for classes. Names that are given win over those of ASPRS.
        self.names: dict[int, str] = dict(ASPRS_CLASSES) if is_las else {}
        self.names |= {number: name for name, number in joined.values()}
        self.names |= names or {}
        # Codes that words of files got here; a number of another file means none of them.
        self._of_words: set[int] = set()
        # Of the codes without a class, one that counts in the truth is a class of the prediction, too.
        self.whole = LabelComparison(left_out, unclassified & left_out)
        # Codes that the files have, if some are joined
        self.codes: set[int] = set()
        self.joined = {code: number for code, (_, number) in joined.items()}
        self.tolerance = tolerance
        self.least_share = least_share
        self.fields = fields

    def compare(self, pair: FilePair) -> tuple[dict[str, Any], ComparedLabels]:
        """Add a pair of files; return its row of figures, with `warnings` if there are any, and its labels.

        Raises:
            UnnamedLabelsError: Labels are words in one of the files, and unnamed numbers in the other.
            FewMatchesError: Figures of a few points that are near each other by chance say nothing of the scan.
            PointCloudError: A file that cannot be read or has no labels, or clouds of different scans or units.
        """
        paths = (pair.predicted, pair.truth)
        predicted, truth = (
            InputFile(str(path), label_field=name).read() for path, name in zip(paths, self.fields, strict=True)
        )
        has_words = any(cloud.data.label_names is not None for cloud in (predicted, truth))
        answers = self._join(self._codes(predicted, has_words=has_words))
        true = self._join(self._codes(truth, has_words=has_words))
        with file_errors(predicted.name):
            matches = match_points(predicted.data, truth.data, self.tolerance)
        matched = int((matches.indices >= 0).sum())
        total = len(matches.indices)
        if matched < self.least_share * total:
            raise FewMatchesError(
                f"{predicted.name}: {matched:,} of the {total:,} points of {truth.name} have a predicted point within "
                f"{matches.tolerance:g}; expected at least {100 * self.least_share:g} %"
            )
        labels = np.concatenate([true, answers])
        if self.table is None:
            no_objects = set()
        else:
            table = truth.data.label_codes or self.table
            codes = {code for code in np.unique(labels).tolist() if not names_object(code, table)}
            no_objects = codes - self.joined.keys()
        self.whole.unclassified = {*self.whole.unclassified, *no_objects}
        judged = LabelComparison({*self.whole.ignored, *no_objects}, self.whole.unclassified)
        counts = points_that_count(truth.data)
        # For the row of this file, and added to the figures of all
        own = judged.add(answers, true[counts], replace(matches, indices=matches.indices[counts]))
        self.whole.merge(own)
        figures = own.figures(self.names)
        row = {
            "file": pair.name,
            "matching": "order" if matches.in_order else "nearest",
            "tolerance": matches.tolerance,
        }
        warned = [*predicted.warnings, *truth.warnings]
        left_out = left_out_words(count_left_out(truth.data), len(counts))
        if left_out:
            warned.append(left_out)
        if warned:
            row["warnings"] = warned
        # (true points,); -1 stands for no match, and picks an answer that `found` then hides.
        found = (matches.indices >= 0) & counts
        accuracy = figures["accuracy"] or 0.0
        return row | figures, ComparedLabels(pair.name, truth.data, true, answers[matches.indices], found, accuracy)

    def _join(self, labels: np.ndarray) -> np.ndarray:
        """Return labels (points,) with the numbers of joined classes."""
        if not self.joined:
            return labels
        present, place = np.unique(labels, return_inverse=True)
        self.codes |= {*present.tolist()}
        return np.array([self.joined.get(code, code) for code in present.tolist()])[place.reshape(-1)]

    def _codes(self, cloud: Cloud, *, has_words: bool) -> np.ndarray:
        """Return the labels of a cloud (points,), with the codes of classes that are words, in either of two files."""
        labels = cloud.data.labels
        if labels is None:
            raise PointCloudFileError(f"{cloud.name}: no labels of points; expected a class for each point")
        words = cloud.data.label_names
        if words is None:
            unnamed = []
            if has_words:
                named = self.names.keys() - self._of_words
                unnamed = sorted({*np.unique(labels).tolist()} - named - {NO_LABEL})
            if unnamed:
                text = f"{cloud.name}: labels are numbers, and words in the other file; name each"
                raise UnnamedLabelsError(text, unnamed[0])
            return labels
        # A word that nobody has given a number gets the next one.
        for word in words:
            if word not in self.names.values():
                code = max(self.names, default=-1) + 1
                self.names[code] = word
                self._of_words.add(code)
        codes = np.array([*self.names, NO_LABEL])
        return codes[renumbered(labels, words, list(self.names.values()))]


def split_family(whole: LabelComparison) -> tuple[str, list[int]] | None:
    """Find classes of the truth that are one class in the prediction, such as vegetation of three heights.

    Returns:
        The name of the family in LAS, and the codes of the truth; None if there is no such family.
    """
    true = {label for label, _ in whole.pairs}
    predicted = {label for _, label in whole.pairs}
    for family, members in FAMILIES.items():
        known = true & {*members}
        if len(known) > 1 and known & predicted and known - predicted:
            return family, sorted(known)
    return None


def write_comparison(
    page: Path, compared: Sequence[ComparedLabels], whole: LabelComparison, names: dict[int, str]
) -> None:
    """Write a page with a row for each scan: true labels, predicted ones, and predicted ones where they differ."""
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
