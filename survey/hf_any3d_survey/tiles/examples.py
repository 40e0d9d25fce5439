"""Points of tiles that are learned: drawn of each tile and of its copies, and described by their surroundings."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from hf_any3d.data.classes.class_rule import Classes
from hf_any3d.data.files import PointCloudData, file_errors
from hf_any3d.evaluation.labels import points_that_count
from hf_any3d.modeling.layers.losses import IGNORED
from hf_any3d.processing.point_clouds import UP_AXES
from hf_any3d_survey.local_features.fitting import Rows
from hf_any3d_survey.processor import RETURNS, LocalFeaturesProcessor
from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.reading import TileFacts
from hf_any3d_survey.tiles.relief import relief
from hf_any3d_survey.tiles.tile_set import TileSet

_THINNED, _LEAST_DENSITY = 4, 0.25
_SCALES = (0.75, 1.35)
"""Factors of half of the copies: buildings and trees of other places have other sizes."""
_OBJECT_POINTS = 20_000


@dataclass(frozen=True)
class Examples:
    """Rows of all tiles that are learned.

    Attributes:
        rows: Features and classes of points.
        labeled: (tiles, classes) labeled points of each tile, of meshes those drawn on the surface, by which rows of
            a draw are weighted up to all points in the estimate.
        seen: Condition of a scan -> its least and largest value; None for objects.
    """

    rows: Rows
    labeled: np.ndarray
    seen: dict[str, list[float]] | None


def take_examples(tiles: TileSet, processor: LocalFeaturesProcessor) -> Examples:
    """Read the tiles one by one, and draw and describe points of each."""
    parts = []
    conditions: list[dict[str, float]] = []
    labeled = np.zeros((len(tiles), len(tiles.classes.names)), np.int64)
    for number, (tile, place) in enumerate(zip(tiles.tiles, tiles.places.tolist(), strict=True)):
        rows, labeled[number], more = rows_of(
            tiles.open(tile), tile, number, place, tiles.classes, processor, tiles.arguments
        )
        parts.append(rows)
        conditions += more
    values = {name: [of_copy[name] for of_copy in conditions] for name in conditions[0]}
    seen = {name: [min(found), max(found)] for name, found in values.items()} or None
    return Examples(Rows.joined(parts), labeled, seen)


def rows_of(
    cloud: PointCloudData,
    tile: TileFacts,
    number: int,
    place: int,
    classes: Classes,
    processor: LocalFeaturesProcessor,
    arguments: TilesArguments,
) -> tuple[Rows, np.ndarray, list[dict[str, float]]]:
    """Describe labeled points of a tile, `cloud`, and of its copies.

    Meshes are learned by points drawn evenly on their surface, which have the labels of faces or nearest vertices.

    Returns:
        The rows, the number of labeled points of each class (classes,), and the conditions of the copies.
    """
    generator = np.random.default_rng([arguments.seed, number])
    if cloud.is_mesh:
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
        part = _copied(cloud, kept, copy, processor.up_axis, generator)
        with file_errors(tile.path):
            scan = processor.describe(part)
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
    width, depth = np.ptp(tile.bounds, axis=0)[:2] * (tile.meters or 1.0) * tile.ground_scale
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


def _copied(
    cloud: PointCloudData, kept: np.ndarray, copy: _Copy, up_axis: str, generator: np.random.Generator
) -> PointCloudData:
    """Return the points `kept` of a cloud as a copy has them, with all that features are computed of."""
    names = ("colors", "normals", "intensity", *RETURNS)
    arrays = {name: values[kept] for name in names if (values := getattr(cloud, name)) is not None}
    further = None if cloud.further is None else {name: own[kept] for name, own in cloud.further.items()}
    copied = PointCloudData(cloud.points[kept], **arrays, up_axis=cloud.up_axis, further=further)
    unit = cloud.meters_per_unit or 1.0
    height = cloud.meters_per_height or unit
    if copy.has_relief:
        # A tile on hills, above which its things keep their heights
        up = UP_AXES.index(up_axis)
        on_ground = unit * (cloud.ground_scale or 1.0)
        hills = relief(np.delete(copied.points, up, axis=1).astype(np.float64) * on_ground, generator)
        points = copied.points.copy()
        points[:, up] += hills / height
        copied = replace(copied, points=points)
    # Coordinates stay, and their unit is scaled: the processor converts to meters anyway.
    units = {"meters_per_unit": unit * copy.scale, "meters_per_height": height * copy.scale}
    return replace(copied, **units, ground_scale=cloud.ground_scale)
