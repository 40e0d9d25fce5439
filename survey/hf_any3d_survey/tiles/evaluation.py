"""Judge a model on labeled files: true and predicted classes of all points, with an interval over places."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from hf_any3d.data.checks.left_out_points import left_out_words, split_withheld
from hf_any3d.data.checks.scan_checksums import checksum_of_points
from hf_any3d.data.classes.las_classes import ASPRS_CLASSES
from hf_any3d.data.files import PointCloudData, PointCloudError, file_errors
from hf_any3d.data.files.label_words import NO_LABEL, renumbered
from hf_any3d.data.files.source import NoPointsError
from hf_any3d.evaluation.labels import LabelComparison, Matches, points_that_count
from hf_any3d.evaluation.scan_scores import ScanScores
from hf_any3d_survey.local_features import LocalFeaturesConfig
from hf_any3d_survey.tiles.confidence import TilesEstimate
from hf_any3d_survey.tiles.places import places_of
from hf_any3d_survey.tiles.reading import TileFacts, look_at, read_tile, refuse_without_points, told

_MESH_POINTS = 20_000


@dataclass
class TilesJudgment:
    """Judgment of a model on labeled files.

    Attributes:
        names: Name of each code, of the model's classes and of others.
        comparison: Counts of true and predicted codes; true ones that the model has not learned do not count.
        files: A row for each file, with its figures or its `error`.
        estimate: Counts by place, or by tile where all are of one place; None if nothing could be judged.
        scans: Scores of the files, with the numbers of their places.
    """

    names: dict[int, str]
    comparison: LabelComparison
    files: list[dict[str, Any]] = field(default_factory=list)
    estimate: TilesEstimate | None = None
    scans: ScanScores | None = None

    def figures(self) -> dict[str, Any]:
        """Return the figures of `LabelComparison`, with intervals of 95 % where there are several places or tiles."""
        figures = self.comparison.figures(self.names)
        if self.estimate is None or not figures["classes"]:
            return figures
        # The comparison lists the classes that occur, the estimate all that were learned.
        number_of = {name: number for number, name in enumerate(self.estimate.classes)}
        shown = [number_of[row["name"]] for row in figures["classes"]]
        intervals = self.estimate.intervals(numbers=shown)
        figures[self.estimate.count_name] = len(self.estimate.matrices)
        # One place: its figures say nothing of others, and no interval is made up.
        if intervals is None:
            return figures
        for row, number in zip(figures["classes"], shown, strict=True):
            row["iou_low"], row["iou_high"] = intervals[number].tolist()
        figures["mean_iou_low"], figures["mean_iou_high"] = intervals[-1].tolist()
        return figures


def judge_tiles(
    config: LocalFeaturesConfig,
    unit: str,
    label: Callable[[PointCloudData], np.ndarray],
    files: Sequence[Path],
    unit_of_files: str | None = None,
    label_field: str | None = None,
    columns: Sequence[str] = (),
) -> TilesJudgment:
    """Compare the answers of a model with the labels of files.

    Args:
        config: Configuration of the model.
        unit: That of its processor, by which files are "meters" of places on a map, or objects.
        label: Returns the number of the class of each point (points,) of a cloud.
        files: Labeled files. Those that cannot be read, or have no labels, get an `error`. Words for classes are those
            of the model's classes, or not judged.
        unit_of_files: Unit of files that say none, such as "feet".
        label_field: Column that labels are read from; see `read_point_cloud`.
        columns: Further columns that the model reads.

    Raises:
        ValueError: No file has points; among others, those without are left out with a warning.
    """
    # The code of each class in files, and the class of each code that files may have.
    written = [int(code) for code in config.class_codes or range(len(_class_names(config)))]
    # Models saved before classes could be merged have one code for each.
    members = config.learned_codes or [[code] for code in written]
    learned = {int(code): number for number, codes in enumerate(members) for code in codes}
    names = dict(zip(written, _class_names(config), strict=True))
    judgment = TilesJudgment(names, LabelComparison())
    tiles: list[TileFacts] = []
    matrices: list[np.ndarray] = []
    digests: list[str] = []
    errors: list[NoPointsError] = []
    for path in files:
        try:
            cloud = read_tile(path, label_field, unit=unit_of_files, columns=columns, is_place=unit == "meters")
            # Labels become codes of the classes that words name.
            if cloud.labels is not None and cloud.label_names is not None:
                numbers = renumbered(cloud.labels, cloud.label_names, list(names.values()))
                # The last one is that of no class, which is -1.
                cloud = replace(cloud, labels=np.array([*names, NO_LABEL])[numbers], label_names=None)
            # Judged by area, as it is learned: points are drawn evenly on the surface.
            if cloud.is_mesh:
                cloud = cloud.sample_surface(_MESH_POINTS, 0)
            tile = look_at(path, cloud)
            digest = checksum_of_points(cloud.points)
            # Errors of the model are about this file, too, such as a missing color.
            with file_errors(path):
                # Told below, with what else does not count.
                cloud, _ = split_withheld(cloud)
                answers = label(cloud)
        except NoPointsError as error:
            told([f"{error}; skipped"])
            errors.append(error)
            continue
        # A bad file does not end the others; the command counts it in its exit code.
        except PointCloudError as error:
            judgment.files.append({"file": str(path), "error": str(error)})
            continue
        # Codes that the model does not know have names in LAS at least.
        if tile.table is not None:
            judgment.names = ASPRS_CLASSES | names
        if tile.not_counted:
            told([left_out_words(tile.not_counted, tile.points, path)])
        own = _compare(answers, cloud, written, learned)
        judgment.comparison.merge(own)
        judgment.files.append({"file": str(path), **own.figures(judgment.names)})
        tiles.append(tile)
        matrix = np.zeros((len(written),) * 2, np.int64)
        for (true, predicted), count in own.pairs.items():
            matrix[written.index(true), written.index(predicted)] += count
        matrices.append(matrix)
        digests.append(digest)
    refuse_without_points(files, errors)
    if tiles:
        # Objects all lie around the origin, and are apart; tiles of one place stay together.
        places = places_of(tiles) if unit == "meters" else np.arange(len(tiles))
        counts = np.stack(matrices)
        scores = ScanScores.of_points(matrices, _class_names(config)).named(
            [tile.path.name for tile in tiles], digests
        )
        for scan, place in zip(scores.scans, places.tolist(), strict=True):
            scan["place"] = place
        judgment.scans = scores
        kind = "tile"
        if len(np.unique(places)) > 1:
            counts = np.stack([counts[places == place].sum(axis=0) for place in np.unique(places)])
            kind = "site"
        judgment.estimate = TilesEstimate(counts, _class_names(config), "its answers", kind)
    return judgment


def _class_names(config: LocalFeaturesConfig) -> list[str]:
    named: Any = config.id2label
    return [named[number] for number in sorted(named)]


def _compare(
    answers: np.ndarray, cloud: PointCloudData, written: Sequence[int], learned: dict[int, int]
) -> LabelComparison:
    """Count true and predicted codes of a cloud."""
    assert cloud.labels is not None
    # The same points that are learned, by their flags
    counts = points_that_count(cloud)
    answers = answers[counts]
    present, place = np.unique(cloud.labels[counts], return_inverse=True)
    ignored = {code for code in present.tolist() if code not in learned}
    # Codes of one class, such as heights of vegetation, become the one that the class has in files.
    joined = np.array([written[learned[code]] if code in learned else code for code in present.tolist()])
    true = joined[place.reshape(-1)]
    own = LabelComparison(ignored)
    # Answers are of the very points of the file, so that none has to be looked for.
    everywhere = Matches(np.arange(len(true)), True, 0.0)
    return own.add(np.asarray(written)[answers], true, everywhere)
