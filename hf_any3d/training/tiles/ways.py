"""The ways to learn from labeled tiles, and the one place that chooses between them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Array2D, ClassLabel, Dataset, DatasetDict, Features, List

from hf_any3d.training.few_scans.training import Learned
from hf_any3d.training.program import figures, train
from hf_any3d.training.tasks import Segmentation
from hf_any3d.training.tiles.labels import Classes, ClassRule
from hf_any3d.training.tiles.reading import look_at, places_of, read_tile, tile_files
from hf_any3d.training.tiles.training import LEAST_POINTS, Tiles, TilesArguments, learn_tiles

FEATURES, TRAINED = "features", "trained"
MOST_BYTES = 4 << 30
"""Size of all files above which a network is trained: looking at a tile takes some seconds a million points, which
would be more than ten minutes for these, and features of surroundings gain nothing from further tiles."""
OF_TILES = {setting.name for setting in fields(TilesArguments)}
"""Names of the options of the way of features."""
_BLOCK = {"block_size": 20.0, "num_points": 4096, "up_axis": "z"}


def learn_labeled_files(paths: Sequence[str | Path], settings: Mapping[str, Any], way: str | None = None) -> Learned:
    """Learn to label points from labeled files, and save model, card and metrics.json.

    Args:
        paths: Files, and folders of them.
        settings: Values by name, of `TilesArguments` or of `Segmentation`.
        way: "features", or "trained" for a network whose weights see the points themselves; None for what the
            settings ask for, or else the size of the files.
    """
    foreign = sorted(settings.keys() - OF_TILES)
    if way is None and not foreign:
        size = sum(path.stat().st_size for path in tile_files(paths))
        way = TRAINED if size > MOST_BYTES else FEATURES
    if way in (None, FEATURES):
        if foreign:
            raise ValueError(f"--{foreign[0]} has no effect on features of surroundings; expected --way trained")
        return learn_tiles(Tiles.from_settings(settings), paths)
    rows = labeled_rows(paths, ClassRule.parse(settings.get("ignore"), settings.get("merge")))
    of_training = {name: value for name, value in settings.items() if name not in OF_TILES - {"output_dir", "seed"}}
    report = train(Segmentation.from_settings({**_BLOCK, **of_training, "data_dir": str(paths[0])}), rows)
    return Learned(report, figures(report))


def labeled_rows(paths: Sequence[str | Path], rule: ClassRule) -> DatasetDict:
    """Return a row for each file, for trainings: `points` in meters and `labels`, -100 where none is learned.

    The last place is the validation split, if there are several.
    """
    clouds = [read_tile(path) for path in tile_files(paths)]
    tiles = [look_at(path, cloud) for path, cloud in zip(tile_files(paths), clouds, strict=True)]
    are_las = all(tile.is_las for tile in tiles)
    classes, _ = Classes.among(sum((tile.codes for tile in tiles), Counter()), rule, are_las, LEAST_POINTS)
    features = Features({"points": Array2D((None, 3), "float32"), "labels": List(ClassLabel(names=classes.names))})
    place, _ = places_of(tiles)
    splits: dict[str, dict[str, list[np.ndarray]]] = {}
    for cloud, number in zip(clouds, place, strict=True):
        split = "validation" if number and number == place.max() else "train"
        columns = splits.setdefault(split, {"points": [], "labels": []})
        assert cloud.labels is not None
        # Points that are not learned are in the scan all the same.
        columns["points"].append(cloud.points.astype(np.float32) * np.float32(cloud.meters_per_unit or 1.0))
        columns["labels"].append(classes.number(cloud.labels))
    return DatasetDict({split: Dataset.from_dict(columns, features=features) for split, columns in splits.items()})
