"""Learn to label points from a few tiles: features of surroundings, a small network, and how sure it is."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from hf_any3d.data.class_rule import Classes, ClassRule, codes_without_class
from hf_any3d.data.files import PointCloudData, PointCloudError, file_errors
from hf_any3d.data.files.column_names import is_label_name
from hf_any3d.data.las_classes import CURRENT
from hf_any3d.data.options import one_of
from hf_any3d.data.units import LENGTHS, check_projected
from hf_any3d.evaluation.classification import share_at_most
from hf_any3d.evaluation.labels import points_that_count
from hf_any3d.model_card.run_report import RunReport, Stopwatch, count_parameters, peak_memory
from hf_any3d.model_card.saving import write_run_card
from hf_any3d.modeling.config_checks import check_settings
from hf_any3d.modeling.layers.losses import IGNORED
from hf_any3d.modeling.layers.unknown_score import REFUSED_SHARE, UnknownScore
from hf_any3d.processing.point_clouds import UP_AXES
from hf_any3d.training import program
from hf_any3d.training.arguments import argument
from hf_any3d.training.few_scans.linear_head import fit_temperature, whitening
from hf_any3d.training.few_scans.training import Learned
from hf_any3d.training.requests import FilesRequest
from hf_any3d.training.trainer import replacing_model
from hf_any3d.utils.atomic_files import release_claims
from hf_any3d.utils.messages import listed
from hf_any3d_survey.local_features import LocalFeaturesConfig, LocalFeaturesForPointCloudSegmentation
from hf_any3d_survey.local_features.fitting import (
    BATCH,
    LARGE_BATCH,
    OBJECT_STEPS,
    STEPS,
    Rows,
    fit_network,
    keep_rows,
    logits_of,
)
from hf_any3d_survey.local_features.neighborhoods import EDGES
from hf_any3d_survey.processor import OBJECT_EDGES, RETURNS, LocalFeaturesProcessor
from hf_any3d_survey.tiles.confidence import TilesEstimate
from hf_any3d_survey.tiles.reading import (
    POINTS,
    TileFacts,
    look_at,
    places_of,
    read_tile,
    refuse_without_points,
    tile_files,
    told,
    told_codes,
    twins_of,
    units_of,
    usable_measures,
    what_is_labeled,
    with_codes_of,
    with_common_words,
    with_learned_codes,
    with_one_table,
)
from hf_any3d_survey.tiles.relief import relief

HELD_OUT = {"tile": "held-out tiles", "object": "held-out objects"}
FOLDS = 5
"""Folds of the estimate at most: each costs a training."""
STATED_FROM = 3
"""Places from which on a level of "none of these" is stated."""
LEAST_POINTS, LEAST_SHARE = 20, 0.0002
"""Labeled points of a class, and their share, below which it is left out: of a few points nothing is learned, and
they would weigh as much as a common class."""
_THINNED, _LEAST_DENSITY = 4, 0.25
_SCALES = (0.75, 1.35)
"""Factors of half of the copies: buildings and trees of other places have other sizes."""
_WIDTHS, _MEMBERS = (64,), 2
_UNKNOWN_ROWS, _UNKNOWN_WIDTH = 512, 16
_OBJECT_POINTS = 20_000


@dataclass
class TilesArguments:
    """Settings of learning from a few labeled tiles; those not given follow from the tiles."""

    output_dir: str = argument("trainer_output", help="Directory to write the model to.")
    ignore: str | None = argument(
        None,
        help="Codes of points that are neither learned nor judged, such as 0,1, or none; by default, of LAS, those "
        "that name no object, such as 0, 1, 7, 12 and 18. Negative ones never count.",
    )
    label_field: str | None = argument(
        None,
        help="Name of the column, property, field, array or extra dimension with the class of each point; by default "
        "a usual one, such as label.",
    )
    merge: list[str] | None = argument(
        None,
        help="Classes to join, such as 'vegetation=3,4,5', or 'other=2,3:64' with the code that files get. By default "
        "that is the last code if all are of one family, and in LAS 1, unclassified, for others. Several may follow.",
    )
    unit: str | None = argument(
        None,
        help="Of scans of places, the unit of files that say none: meters, feet or us-feet; diagonal for objects, "
        "whose size is that of their bounding box. By default meters for formats of scanners and clouds larger than "
        "20 units, else, and for meshes, diagonal.",
    )
    edges: list[float] | None = argument(
        None, help="Edges of the voxels by which surroundings are measured, the smallest first."
    )
    returns: bool = argument(True, help="Use return numbers, if all tiles have them.")
    intensity: bool = argument(True, help="Use intensities, if all tiles have them.")
    colors: bool = argument(True, help="Use colors, if all tiles have them.")
    may_lack: str | None = argument(
        None,
        help="Of returns, intensity and colors, those that some tiles lack, or those to label: the model learns with "
        "and without them, such as returns,intensity. By default it uses what all tiles have, and needs it.",
    )
    features: list[str] | None = argument(
        None,
        help="Names of further columns that are learned from, such as reflectance,deviation: extra dimensions of LAS, "
        "properties of PLY, fields of PCD, columns of text. Files to label need them, too.",
    )
    normals: bool = argument(True, help="Of objects, use directions of faces or normals, if all objects have them.")
    upright: bool = argument(
        True, help="Objects stand the same way; false for objects that lie in any direction, of which none is used."
    )
    points: int = argument(12_000, help="Points that are learned of a tile, and of each of its thinned copies.")
    folds: int = argument(FOLDS, help="Folds of the estimate at most; places stay whole.")
    seed: int = argument(42, help="Seed of weights, draws and folds.")
    up_axis: str | None = argument(None, help="Axis that points up; by default the one that all files say, else z.")
    license: str | None = argument(None, help="License in the model card, as the hub writes it.")

    def __post_init__(self):
        check_settings(self, {"unit": (None, *LENGTHS, "diagonal"), "up_axis": (None, "x", "y", "z")})
        self.features = [name.strip() for text in self.features or () for name in text.split(",") if name.strip()]
        for name in self.features:
            # Whatever tells the answer at training is not there where the answer is wanted.
            is_chosen = self.label_field is not None and name.lower() == self.label_field.lower()
            if is_chosen or (self.label_field is None and is_label_name(name)):
                raise ValueError(
                    f"--features {name}: a column of labels; expected others, or --label_field with its name"
                )
        for name in self.lacked:
            one_of("--may_lack", name, ("returns", "intensity", "colors"))
        if self.folds < 2 or self.points < 1:
            raise ValueError(f"--folds {self.folds} --points {self.points}; expected at least 2 and 1")

    @property
    def lacked(self) -> list[str]:
        """Measures that scans may lack."""
        return [name.strip() for name in (self.may_lack or "").split(",") if name.strip()]

    @property
    def unit_of_files(self) -> str | None:
        """Unit that is given for files that say none."""
        return self.unit if self.unit in LENGTHS else None


@dataclass
class Tiles(FilesRequest):
    """Request to learn tiles."""

    arguments: TilesArguments

    def learn(self, paths: Sequence[str | Path]) -> Learned:
        """Learn from files and folders, see `learn_tiles`."""
        return learn_tiles(self, paths)


@dataclass(frozen=True)
class Examples:
    """Rows of all tiles, with what is needed to learn them."""

    rows: Rows
    tiles: list[TileFacts]
    classes: Classes
    processor: LocalFeaturesProcessor
    labeled: np.ndarray  # (tiles, classes) labeled points of each, of meshes those drawn on the surface
    twins: np.ndarray  # (tiles,) number of the group of each, whose tiles are copies or share ground
    labels_of: str = POINTS  # or of faces

    @property
    def kind(self) -> str:
        """Kind of a file, "tile" or "object"."""
        return "tile" if self.processor.unit == "meters" else "object"


def learn_tiles(request: Tiles, paths: Sequence[str | Path]) -> Learned:
    """Learn from the labeled files of folders and files, and save model, card and metrics.json."""
    stopwatch = Stopwatch()
    arguments = request.arguments
    rule = ClassRule.parse(arguments.ignore, arguments.merge)
    # Files are listed before the folder is claimed, so that a mistyped path leaves no empty folder behind.
    files = tile_files(paths)
    program.claim_output(Path(arguments.output_dir))
    with stopwatch.part("data"):
        # Every file is read once to know what all have, and again for its rows: all at once may not fit into memory.
        tiles, labels_of, remarks = _look_at_all(files, rule, arguments)
        rule = replace(rule, words=tiles[0].words or ())
        classes, more = _classes(tiles, rule)
        remarks += more
        processor, more = _processor(tiles, arguments)
        remarks += more
        if processor.unit == "meters":
            remarks += units_of(tiles)
        twins, of_twins = twins_of(tiles, processor.unit == "meters")
        remarks += of_twins
        # All objects lie around the origin.
        places, more = (twins, []) if processor.unit == "diagonal" else places_of(tiles)
        # All remarks at once, before the minutes that follow.
        told([*remarks, *more])
    with stopwatch.part("features"):
        parts = []
        conditions: list[dict[str, float]] = []
        # (tiles, classes), by which rows of a draw are weighted up to all points in the estimate
        labeled = np.zeros((len(tiles), len(classes.names)), np.int64)
        for number, tile in enumerate(tiles):
            place = int(places[number])
            rows, labeled[number], more = rows_of(tile, number, place, classes, processor, arguments, labels_of)
            parts.append(rows)
            conditions += more
        examples = Examples(Rows.joined(parts), tiles, classes, processor, labeled, twins, labels_of)
    values = {name: [of_copy[name] for of_copy in conditions] for name in conditions[0]}
    seen = {name: [min(found), max(found)] for name, found in values.items()} or None
    config = LocalFeaturesConfig(
        # The coordinates come first, as for every model, though the network does not read them.
        in_channels=3 + len(processor.names()),
        hidden_sizes=_WIDTHS,
        members=_MEMBERS,
        class_codes=classes.codes,
        learned_codes=classes.members(rule),
        seen=seen,
        id2label=dict(enumerate(classes.names)),
        label2id={name: number for number, name in enumerate(classes.names)},
    )
    # The estimate comes before the model that is kept: its temperature and unknown score are of places held out.
    with stopwatch.part("estimate"):
        judged = _judge(examples, config, arguments)
    with stopwatch.part("training"):
        steps, batch = (STEPS, BATCH) if examples.kind == "tile" else (OBJECT_STEPS, LARGE_BATCH)
        model = fit_network(examples.rows, config, examples.processor.may_miss, arguments.seed, steps, batch=batch)
        if examples.kind == "tile":
            keep_rows(model, examples.rows, arguments.seed)
        if judged is not None:
            # Without a place held out, nothing tells how far the scores can be trusted, and they stay as they are.
            model.config.temperature = judged.temperature
            _add_unknown_score(model, examples, judged, arguments.seed)
    report = _save(model, examples, judged, stopwatch, paths, arguments)
    release_claims()
    return Learned(report, _lines(examples, judged, model, paths))


def _look_at_all(
    files: Sequence[Path], rule: ClassRule, arguments: TilesArguments
) -> tuple[list[TileFacts], str, list[str]]:
    """Read the labeled files, leave out unusable ones with a remark, and decide between points and faces."""
    found: list[TileFacts] = []
    remarks: list[str] = []
    errors: list[PointCloudError] = []
    for path in files:
        try:
            cloud = read_tile(
                path,
                arguments.label_field,
                unit=arguments.unit_of_files,
                columns=arguments.features or (),
                is_place=arguments.unit != "diagonal",
            )
        except PointCloudError as error:
            # A damaged or unlabeled file among many is told, and the others are learned.
            remarks.append(f"left out: {error}")
            errors.append(error)
            continue
        if arguments.unit != "diagonal":
            with file_errors(path):
                # Degrees in place of meters would make every height a wall.
                check_projected(cloud)
        found.append(look_at(path, cloud))
    refuse_without_points(files, errors)
    if arguments.features and not found:
        # Most likely a name that no file has
        raise errors[0]
    # Decided over all files: faces are learned only if all have labels of faces.
    labels_of = what_is_labeled(found)
    found, more = with_one_table([with_codes_of(tile, labels_of) for tile in with_common_words(found)])
    remarks += more
    tiles: list[TileFacts] = []
    for tile in with_learned_codes(found, rule):
        # Codes such as 0 and 1 of LAS say that nobody has classified a point.
        if tile.codes:
            tiles.append(tile)
        else:
            codes = ", ".join(map(str, sorted(tile.left_out))) or "none that counts"
            what = labels_of.removesuffix("s")
            remarks.append(f"left out: {tile.path}: no {what} has a class that says something; it has codes {codes}")
    if not tiles:
        told(remarks)
        raise ValueError(
            f"{files[0].parent}: none of {len(files)} files has labeled points; expected a class for each"
        )
    return tiles, labels_of, remarks + told_codes(tiles, rule)


def _classes(tiles: Sequence[TileFacts], rule: ClassRule) -> tuple[Classes, list[str]]:
    codes = sum((tile.codes for tile in tiles), Counter())
    # A part may be a few large faces, on which any number of points is drawn.
    least = 1 if all(tile.is_mesh for tile in tiles) else max(LEAST_POINTS, int(LEAST_SHARE * codes.total()))
    # Codes are those of LAS in all files or in none.
    classes, rare = Classes.among(codes, rule, tiles[0].table and CURRENT, least)
    # A handful of points of a class is more often a slip of the hand than a class.
    remarks = [f"classes: left out, with fewer than {least} points: {', '.join(rare)}"] if rare else []
    remarks += codes_without_class(classes, rule)
    if len(classes.names) < 2:
        only = ", ".join(classes.names) or "none"
        raise ValueError(
            f"one class ({only}) in {len(tiles)} file{'s' * (len(tiles) > 1)}; expected two or more to tell apart "
            "(--ignore, --merge)"
        )
    differences = []
    for number, name in enumerate(classes.names):
        # Whoever labeled the other files may not have looked for this class, and called its points something else.
        holders = [tile.path.name for tile in tiles if number in map(classes.numbers.get, tile.codes)]
        if len(holders) < len(tiles):
            shown = listed(holders, 3)
            differences.append(f"classes differ: {name} is in {len(holders)} of {len(tiles)} files ({shown})")
    # Some surveys put all vegetation into one class, others into three by height.
    heights = {"low vegetation", "medium vegetation", "high vegetation"} & {*classes.names}
    if len(heights) > 1 and any("vegetation" in remark for remark in differences):
        differences.append(
            "classes: heights of vegetation are not told apart in all tiles; --merge vegetation=3,4,5 joins them"
        )
    return classes, remarks + differences


def _processor(tiles: Sequence[TileFacts], arguments: TilesArguments) -> tuple[LocalFeaturesProcessor, list[str]]:
    """Return the processor for what all tiles have."""
    # In meters features compare heights of all scans; objects are compared by shares of their own size.
    unit = "meters" if arguments.unit_of_files else arguments.unit or _unit_of(tiles)
    wanted = [
        name
        for name, is_wanted in (
            ("returns", arguments.returns),
            ("intensity", arguments.intensity),
            ("rgb", arguments.colors),
            ("normals", arguments.normals and unit == "diagonal"),
        )
        if is_wanted
    ]
    # What a tile lacks cannot be learned from the others: the network would see a zero that means "unknown" there.
    may_lack = ["rgb" if name == "colors" else name for name in arguments.lacked]
    measures, remarks = usable_measures(tiles, wanted, may_lack)
    features = ["xyz"]
    optional: list[str] = []
    for name in measures:
        of_measure = RETURNS if name == "returns" else [name]
        features += of_measure
        if name in may_lack:
            optional += of_measure
    edges = arguments.edges or (EDGES if unit == "meters" else OBJECT_EDGES)
    # One axis for all: files that contradict each other say nothing.
    said = {tile.up_axis for tile in tiles}
    up_axis = arguments.up_axis or (said.pop() if len(said) == 1 else None) or "z"
    las = next((tile.path for tile in tiles if tile.is_las), None)
    if las is not None and up_axis != "z":
        raise ValueError(f"--up_axis {up_axis}: in {las.name}, as in all LAS, z is the elevation; expected z")
    return LocalFeaturesProcessor(
        edges=edges,
        unit=unit,
        features=features,
        up_axis=up_axis,
        upright=arguments.upright,
        columns=arguments.features or (),
        optional=optional,
    ), remarks


def _unit_of(tiles: Sequence[TileFacts]) -> str:
    """Return "meters" for scans of places, and "diagonal" for objects, which have sizes of their own."""
    are_places = [
        tile.is_las or (not tile.is_mesh and (tile.meters is not None or np.ptp(tile.bounds, axis=0).max() > 20))
        for tile in tiles
    ]
    return "meters" if all(are_places) else "diagonal"


def rows_of(
    tile: TileFacts,
    number: int,
    place: int,
    classes: Classes,
    processor: LocalFeaturesProcessor,
    arguments: TilesArguments,
    labels_of: str = POINTS,
) -> tuple[Rows, np.ndarray, list[dict[str, float]]]:
    """Describe labeled points of a tile and of its copies.

    Meshes are learned by points drawn evenly on their surface, which have the labels of faces or nearest vertices.

    Returns:
        The rows, the number of labeled points of each class (classes,), and the conditions of the copies.
    """
    # What is wrong with the file was said when it was looked at.
    with warnings.catch_warnings(action="ignore"):
        columns = arguments.features or ()
        cloud = read_tile(
            tile.path,
            arguments.label_field,
            tile.words,
            arguments.unit_of_files,
            columns,
            is_place=arguments.unit != "diagonal",
        )
    generator = np.random.default_rng([arguments.seed, number])
    if cloud.is_mesh:
        if labels_of == POINTS:
            # So that samples take the label of the nearest vertex
            cloud = replace(cloud, face_labels=None)
        # Large faces would be few points otherwise, and small ones many.
        cloud = cloud.sample_surface(_OBJECT_POINTS, generator)
    assert cloud.labels is not None
    # By the codes that are learned of this very file
    labels = classes.number(cloud.labels, tile.codes)
    labels[~points_that_count(cloud)] = IGNORED
    parts = []
    conditions = []
    for number_of_copy, copy in enumerate(_copies(tile, processor)):
        kept = np.arange(len(cloud))
        if copy.share < 1:
            # Sorted, since neighbors in the file are neighbors in memory.
            kept = np.sort(generator.choice(len(cloud), max(1, int(copy.share * len(cloud))), replace=False))
        drawn = _drawn(labels[kept], arguments.points, generator)
        # A thinned copy of a small tile may have nothing to learn, or no surroundings.
        if not len(drawn) or len(kept) < processor.min_points:
            continue
        # All that features are computed of; anything else of a cloud is left behind.
        names = ("points", "colors", "normals", "intensity", *RETURNS)
        arrays = {name: values[kept] for name in names if (values := getattr(cloud, name)) is not None}
        further = None if cloud.further is None else {name: own[kept] for name, own in cloud.further.items()}
        part = replace(PointCloudData(**arrays, up_axis=cloud.up_axis, further=further), **_units(cloud, 1.0))
        if copy.has_relief:
            # A tile on hills, above which its things keep their heights
            up = UP_AXES.index(processor.up_axis)
            unit = part.meters_per_unit or 1.0
            hills = relief(np.delete(part.points, up, axis=1).astype(np.float64) * unit, generator)
            points = part.points.copy()
            points[:, up] += hills / (part.meters_per_height or unit)
            part = replace(part, points=points)
        with file_errors(tile.path):
            scan = processor.describe(replace(part, **_units(part, copy.scale)))
            features = scan.neighborhoods(np.arange(len(kept))).features(drawn)
        conditions.append(scan.conditions)
        own = labels[kept][drawn]
        parts.append(Rows(features, own, *(np.full(len(own), value) for value in (number, place, number_of_copy))))
    counts = np.bincount(labels[labels != IGNORED], minlength=len(classes.names))
    return Rows.joined(parts), counts, conditions


@dataclass(frozen=True)
class _Copy:
    """A copy of a tile that is learned: its share of the points, its scale, and whether hills are added."""

    share: float = 1.0
    scale: float = 1.0
    has_relief: bool = False


def _copies(tile: TileFacts, processor: LocalFeaturesProcessor) -> list[_Copy]:
    """Return the copies of a tile that are learned, the tile itself first.

    A network that has seen one density alone fails at others: learned from 25 points a square meter and judged at 0.3,
    half of the IoU is lost.
    """
    if processor.unit == "diagonal":
        return [_Copy(), _Copy(share=0.5)]
    # Density is counted over the bounding box, which is enough to know how often a tile can be halved.
    width, depth = np.ptp(tile.bounds, axis=0)[:2] * (tile.meters or 1.0)
    density = tile.points / max(width * depth, 1.0)
    copies = []
    share = 1.0
    while not copies or density * share >= _LEAST_DENSITY:
        scale = _SCALES[len(copies) // 2 % len(_SCALES)]
        # Each density once as it is, and once a little larger or smaller, as houses and trees of other places are;
        # half of the latter stand on hills: more of them would cost accuracy where the ground is flat.
        copies += [_Copy(share), _Copy(share, scale, has_relief=len(copies) % 4 == 0)]
        share /= _THINNED
    return copies


def _drawn(labels: np.ndarray, count: int, generator: np.random.Generator) -> np.ndarray:
    """Draw labeled points, half of them evenly and half by class, so that small classes are seen."""
    usable = generator.permutation(np.flatnonzero(labels != IGNORED))
    if len(usable) <= count:
        return np.sort(usable)
    # The first half has the shares of the tile, which the estimate and the temperature need.
    evenly = usable[: count // 2]
    rest = usable[count // 2 :]
    present = np.unique(labels[rest])
    by_class = [rest[labels[rest] == label][: count // 2 // len(present)] for label in present]
    return np.sort(np.concatenate([evenly, *by_class]))


def _units(cloud: PointCloudData, scale: float) -> dict[str, float]:
    """Return the units of a cloud, `scale` times as long."""
    # Coordinates stay, and their unit is scaled: the processor converts to meters anyway.
    unit = cloud.meters_per_unit or 1.0
    return {"meters_per_unit": unit * scale, "meters_per_height": (cloud.meters_per_height or unit) * scale}


@dataclass(frozen=True)
class Judged:
    """Judgment of models on tiles that they had not learned.

    Attributes:
        estimate: IoUs.
        temperature: Divisor of the logits that calibrates them.
        terms: Terms (rows,) of the unknown score, by their fields in the config.
        folds: (rows,) fold of each row.
    """

    estimate: TilesEstimate
    temperature: float
    terms: dict[str, torch.Tensor]
    folds: np.ndarray


def _judge(examples: Examples, config: LocalFeaturesConfig, arguments: TilesArguments) -> Judged | None:
    """Judge by folds of whole places; tiles of one place alone are folds of their own. None for a single tile."""
    rows = examples.rows
    places = len(np.unique(rows.places))
    # Tiles of one place show the same street, so that one of them tells too much about the next. Those that share
    # ground would tell of the very same points.
    unit = rows.places if places > 1 else examples.twins[rows.tiles]
    numbers = np.unique(unit)
    count = len(numbers)
    if count < 2:
        return None
    folds = _folds(unit, min(count, arguments.folds), arguments.seed)
    # Judged as they are; thinned copies are learned only.
    is_whole = rows.copies == 0
    steps, batch = (_FOLD_STEPS, BATCH) if examples.kind == "tile" else (OBJECT_STEPS, LARGE_BATCH)
    may_miss = examples.processor.may_miss
    kept_logits = []
    kept_labels = []
    kept_folds = []
    terms: dict[str, list[torch.Tensor]] = {}
    # (units, true classes, answered classes), weighted points
    matrices = np.zeros((count, len(examples.classes.names), len(examples.classes.names)))
    for fold in np.unique(folds):
        held = rows.part((folds == fold) & is_whole)
        kept = np.flatnonzero(folds != fold)
        # A fold without labeled points, or whose others show a single class, tells nothing.
        if not len(held.labels) or len(np.unique(rows.labels[kept])) < 2:
            continue
        model = fit_network(rows, config, may_miss, arguments.seed, steps, batch=batch, kept=kept)
        # Held-out points are measured against what this fold's model has learned, as later scans will be.
        _set_known(model, rows, kept, arguments.seed)
        logits, standard = logits_of(model, held.features)
        for name, values in model.unknown_terms(torch.from_numpy(standard), torch.from_numpy(logits)).items():
            terms.setdefault(name, []).append(values.detach())
        of_unit = np.searchsorted(numbers, held.places if places > 1 else examples.twins[held.tiles])
        # Half of the rows were drawn by class; weighted, the confusion is that of all points.
        drawn = np.zeros_like(examples.labeled)
        # (tiles, classes), the number of rows that were drawn of each
        np.add.at(drawn, (held.tiles, held.labels), 1)
        weights = examples.labeled[held.tiles, held.labels] / drawn[held.tiles, held.labels]
        np.add.at(matrices, (of_unit, held.labels, logits.argmax(axis=1)), weights)
        kept_logits.append(logits)
        kept_labels.append(held.labels)
        kept_folds.append(np.full(len(logits), fold))
    if not kept_logits:
        return None
    logits = np.concatenate(kept_logits)
    labels = np.concatenate(kept_labels)
    name = examples.kind if places == 1 or examples.kind == "object" else "place"
    how = f"{len(kept_logits)} trainings that each left out whole {name}s"
    if places == 1:
        how += "; all tiles are of one place, so that others will be worse"
    else:
        how += f"; the interval is for further {name}s of the same kind"
    matrices = matrices[matrices.sum(axis=(1, 2)) > 0]
    estimate = TilesEstimate(matrices, examples.classes.names, how, name)
    # Points of a place say much the same, so that few of each are enough.
    temperature = fit_temperature(logits.astype(np.float64)[::20], labels[::20])
    joined = {name: torch.cat(values) for name, values in terms.items()}
    return Judged(estimate, temperature, joined, np.concatenate(kept_folds))


_FOLD_STEPS = 600


def _folds(units: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Assign units, such as places, to folds of about equal numbers of rows."""
    numbers, sizes = np.unique(units, return_counts=True)
    order = np.random.default_rng(seed).permutation(len(numbers))
    filled = np.zeros(count)
    fold_of = {}
    # The largest first, each to the emptiest fold, as in packing; the permutation decides among equal ones.
    for place in sorted(order, key=lambda place: -sizes[place]):
        fold = int(filled.argmin())
        fold_of[numbers[place]] = fold
        filled[fold] += sizes[place]
    return np.array([fold_of[unit] for unit in units])


def _set_known(model: LocalFeaturesForPointCloudSegmentation, rows: Rows, kept: np.ndarray, seed: int) -> None:
    """Let the model know the points that it has learned, `kept`, by which it sees how unlike them others are."""
    generator = np.random.default_rng(seed)
    # Enough for a covariance of a hundred features
    count = len(kept)
    some = kept[generator.choice(count, min(count, 20_000), replace=False)]
    standard = model.local_features.standardize(torch.from_numpy(rows.features[some])).numpy()
    # The directions in which points of a class differ most from those of others.
    features = standard.astype(np.float64)
    # After this, points of one class differ equally in all directions, so what still varies tells classes apart.
    white = whitening(features, rows.labels[some])
    spread = np.cov((features @ white).T)
    values, directions = np.linalg.eigh(spread)
    kept = directions[:, np.argsort(-values)[:_UNKNOWN_WIDTH]]
    directions = white @ kept
    # Rows that are stored with the model, to which distances are taken
    known = generator.choice(len(some), min(len(some), _UNKNOWN_ROWS), replace=False)
    score = UnknownScore(len(known), standard.shape[1], 0, directions.shape[1])
    score.projection = torch.from_numpy(directions).float()
    score.features = score.project(torch.from_numpy(standard[known]))
    model.unknown_score = score
    model.config.unknown.rows, model.config.unknown.width = len(known), directions.shape[1]


def _add_unknown_score(
    model: LocalFeaturesForPointCloudSegmentation, examples: Examples, judged: Judged, seed: int
) -> None:
    """Calibrate the unknown score by points of tiles that were held out."""
    _set_known(model, examples.rows, np.arange(len(examples.rows.labels)), seed)
    config = model.config
    for name, values in judged.terms.items():
        # Terms are of different sizes; by mean and deviation of held-out points each counts alike.
        usual = float(values.mean())
        deviation = max(float(values.std()), 1e-3)
        setattr(config.unknown, name, [usual, max(usual, deviation) if name == "surprise" else deviation])
    # The level that no fold exceeds by more than the share: points of a place are alike, so that it is places that
    # have to be counted.
    sums = torch.zeros(len(judged.folds))
    for name, values in judged.terms.items():
        usual, deviation = getattr(config.unknown, name)
        sums += (values - usual) / deviation
    levels = [np.quantile(sums[judged.folds == fold].numpy(), 1 - REFUSED_SHARE) for fold in np.unique(judged.folds)]
    config.unknown.threshold = float(max(levels))
    # A share is promised only where enough places were held out to have seen it.
    is_stated = judged.estimate.unit != "tile" and len(judged.estimate.matrices) >= STATED_FROM
    config.unknown.share = REFUSED_SHARE if is_stated else None


def _save(
    model: LocalFeaturesForPointCloudSegmentation,
    examples: Examples,
    judged: Judged | None,
    stopwatch: Stopwatch,
    paths: Sequence[str | Path],
    arguments: TilesArguments,
) -> RunReport:
    """Write everything; metrics.json last, which marks the run as complete."""
    processor = examples.processor
    names = [Path(path).name for path in paths]
    places = len(np.unique(examples.rows.places))
    counts = dict(zip(examples.classes.names, examples.labeled.sum(axis=0).tolist(), strict=True))
    # The name of the split in report and card, since no test files were given
    held_out = HELD_OUT[examples.kind]
    estimates = {} if judged is None else {held_out: judged.estimate}
    report = RunReport(
        data={
            "name": names[0] if len(names) == 1 else f"{len(names)} files",
            "rows": {"train": len(examples.tiles)},
            "validation": held_out,
            "points": sum(tile.points for tile in examples.tiles),
            "features": [*processor.features, *processor.columns],
            "augmentation": ["thinned and scaled copies"],
            "places": places,
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
            "way": "features of surroundings with a small network",
            "edges": processor.edges,
            "unit": processor.unit,
            "labels of": examples.labels_of,
            "seed": arguments.seed,
            "class codes": dict(zip(examples.classes.names, examples.classes.codes, strict=True)),
        },
    )
    folder = Path(arguments.output_dir)
    sure = f"Unknown: a single {examples.kind} was learned, and none was held out."
    if judged is not None:
        sure = judged.estimate.section()
    with replacing_model(folder) as new:
        model.save_pretrained(new)
        processor.save_pretrained(new)
        write_run_card(model, report, processor.num_points, sure, new, arguments.license, folder)
    return report


def _lines(
    examples: Examples,
    judged: Judged | None,
    model: LocalFeaturesForPointCloudSegmentation,
    paths: Sequence[str | Path],
) -> list[str]:
    config = model.config
    processor = examples.processor
    tiles = examples.tiles
    places = len(np.unique(examples.rows.places))
    counts = [
        sum(tile.codes[code] for tile in tiles for code in codes) for codes in examples.classes.members(ClassRule())
    ]
    shown = ", ".join(f"{name} {count:,}" for name, count in zip(examples.classes.names, counts, strict=True))
    origins = f"{len(tiles)} {examples.kind}{'s' * (len(tiles) > 1)}"
    if examples.kind == "tile":
        origins += f" of {places} place{'s' * (places != 1)}"
    # Labels of points are those of vertices in a mesh.
    labeled = "vertices" if examples.labels_of == POINTS and tiles[0].is_mesh else examples.labels_of
    origin = ", ".join(str(path) for path in list(paths)[:2]) + (", …" if len(paths) > 2 else "")
    lines = [
        f"{origin}: {origins}; labeled {labeled}: {shown}",
        f"way: {len(processor.names())} features of each point's surroundings, of boxes {3 * processor.edges[0]:g} to "
        f"{3 * processor.edges[-1]:g} {'m' if processor.unit == 'meters' else 'sixteenths of the diagonal'} wide, "
        f"with a small network; read: {', '.join([*processor.features, *processor.columns])}",
    ]
    if judged is None:
        why = f"as no {examples.kind} could be held out; with a second one it is estimated"
        return [*lines, f"mean IoU: unknown, {why}"]
    lines += judged.estimate.lines()
    unit = "place" if examples.kind == "tile" else "object"
    if config.unknown.share is None:
        lines.append(f"none of these: never said, as its level takes {STATED_FROM} {unit}s")
    else:
        # The level is that of the worst fold, so that each of them stands for one place.
        folds = len(np.unique(judged.folds))
        of_fold = f"each {unit}" if folds == len(judged.estimate.matrices) else f"each of {folds} groups of {unit}s"
        lines.append(
            f"none of these: with none_of_these, said of at most {100 * config.unknown.share:.0f} % of the points of "
            f"{of_fold} that was held out; at most {100 * share_at_most(0, folds):.0f} % of further {unit}s like "
            "these exceed that, with a confidence of 95 %"
        )
    return lines
