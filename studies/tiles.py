"""A few labeled tiles of airborne scans: how well models of them label places that they have not seen.

    python -m studies.tiles --tiles FOLDER --more FILE --output DIR              # leave one place out, with controls
    python -m studies.tiles --colored FILE --output DIR                           # with and without color, one tile
    python -m studies.tiles --ground FOLDER --output DIR                          # ground alone, samples of the ISPRS
    python -m studies.tiles --surface FOLDER --output DIR                         # its surface, without a model
    python -m studies.tiles --report OTHERS.json --output DIR                     # adds rows that others measured

Places that are left out are judged as they are, and with hills, a slope and low points added, which the classes do
not change. The surface is compared with those of `pysmrf` and `cloth-simulation-filter` where these are installed.

Results: `results/tiles.md`. Runs are stored in the output folder and not repeated.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.ndimage import minimum_filter
from scipy.spatial import cKDTree
from sklearn.ensemble import ExtraTreesClassifier

from hf_any3d.data.files import PointCloudData, read_point_cloud
from hf_any3d.data.las_classes import CURRENT
from hf_any3d.evaluation.segmentation import class_ious
from hf_any3d.modeling.layers.losses import IGNORED
from hf_any3d.modeling.local_features import LocalFeaturesConfig
from hf_any3d.modeling.local_features.fitting import Rows, fit_network, logits_of, weights_of
from hf_any3d.modeling.local_features.ground_surface import GroundSurface
from hf_any3d.modeling.local_features.neighborhoods import spacing_of
from hf_any3d.processing.local_features import RETURNS, LocalFeaturesProcessor
from hf_any3d.training.tiles.labels import Classes, ClassRule
from hf_any3d.training.tiles.reading import look_at, places_of, read_tile, tile_files
from hf_any3d.training.tiles.training import TilesArguments, rows_of
from studies.tiles_encoders import EncoderProcessor

THREE, FIVE = ("vegetation=3,4,5",), ()
JUDGED = 20_000
"""Points of a tile by which models are judged."""


@dataclass(frozen=True)
class Setting:
    """Features, classes and head of a run; the default is what `hf-any3d train` does."""

    merge: tuple[str, ...] = THREE
    returns: bool = True
    intensity: bool = False
    colors: bool = False
    copies: bool = True
    head: str = "network"
    features: str = "surroundings"
    encoder: str | None = None
    ground: str = "uncut"


SETTINGS = {
    "three classes": Setting(),
    "ground by windows": Setting(ground="windows"),
    "one density": Setting(copies=False),
    "extra trees on the same features": Setting(head="trees"),
    "without returns": Setting(returns=False),
    "with intensity": Setting(intensity=True),
    "control: extra trees on 23 numbers": Setting(copies=False, head="trees", features="23 numbers"),
    "five classes": Setting(merge=FIVE),
    "control: frozen random Point Transformer V3": Setting(encoder="random Point Transformer V3", features="encoder"),
    "with the packaged encoder": Setting(encoder="packaged encoder"),
    "the packaged encoder alone": Setting(encoder="packaged encoder", features="encoder"),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=Path, help="Folder of labeled tiles.")
    parser.add_argument("--more", type=Path, nargs="*", default=[], help="Further labeled files.")
    parser.add_argument("--colored", type=Path, help="A labeled file whose points have colors.")
    parser.add_argument("--ground", type=Path, help="Folder of NAME-utm.pcd and NAME-utm-ground.pcd.")
    parser.add_argument("--surface", type=Path, help="Such a folder; the surface of the ground decides.")
    parser.add_argument("--report", type=Path, nargs="*", default=[], help="JSON of others: {row: {place: mIoU}}.")
    parser.add_argument("--settings", nargs="*", default=list(SETTINGS), choices=list(SETTINGS))
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    parser.add_argument("--output", type=Path, default=Path("outputs/tiles"))
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    if arguments.tiles is not None:
        files = tile_files([arguments.tiles, *arguments.more])
        for name in arguments.settings:
            for seed in arguments.seeds if SETTINGS[name].head == "network" else arguments.seeds[:1]:
                path = arguments.output / f"{name.replace(' ', '_').replace(':', '')}_{seed}.json"
                if not path.is_file():
                    path.write_text(json.dumps(leave_one_place_out(files, SETTINGS[name], seed)))
                print(name, seed, path.read_text())
    if arguments.colored is not None:
        print(json.dumps(with_and_without_color(arguments.colored, arguments.seeds), indent=1))
    if arguments.ground is not None:
        print(json.dumps(ground_alone(arguments.ground), indent=1))
    if arguments.surface is not None:
        print(json.dumps(surface_alone(arguments.surface), indent=1))
    for path in arguments.report:
        for row, places in json.loads(path.read_text()).items():
            print(f"| {row} | " + " | ".join(f"{place} {value:.3f}" for place, value in places.items()) + " |")


def leave_one_place_out(files: Sequence[Path], setting: Setting, seed: int) -> dict[str, Any]:
    """Learn all places but one, and judge that one: IoU of each class by place, and seconds."""
    clouds = [read_tile(path) for path in files]
    tiles = [look_at(path, cloud) for path, cloud in zip(files, clouds, strict=True)]
    classes, _ = Classes.among(
        sum((tile.codes for tile in tiles), type(tiles[0].codes)()), ClassRule.parse(None, setting.merge), CURRENT, 500
    )
    place, _ = places_of(tiles)
    features = ["xyz", *(RETURNS if setting.returns else ())]
    features += ["intensity"] * setting.intensity + ["rgb"] * setting.colors
    processor = LocalFeaturesProcessor(features=features, ground=setting.ground)
    if setting.encoder is not None:
        processor = EncoderProcessor(setting.encoder, features, alone=setting.features == "encoder")
    start = time.process_time()
    asked = TilesArguments(seed=seed)
    if setting.features != "23 numbers":
        learned = [
            rows_of(tile, number, int(place[number]), classes, processor, asked)[0]
            for number, tile in enumerate(tiles)
        ]
    else:
        learned = [
            _simple_rows(cloud, number, int(place[number]), classes, asked.points, seed)
            for number, cloud in enumerate(clouds)
        ]
    seconds = {"features": time.process_time() - start}
    judged = {
        name: [
            _judged_rows(cloud, number, int(place[number]), classes, processor, setting, change)
            for number, cloud in enumerate(clouds)
        ]
        for name, change in CHANGES.items()
    }
    found: dict[str, dict[str, Any]] = {name: {} for name in CHANGES}
    start = time.process_time()
    for held in np.unique(place):
        rows = Rows.joined([part for part, own in zip(learned, place, strict=True) if own != held])
        if not setting.copies:
            rows = rows.part(rows.copies == 0)
        model = _fit(rows, processor, classes, setting, seed)
        name = "+".join(
            sorted({tile.path.stem.split("_")[0] for tile, own in zip(tiles, place, strict=True) if own == held})
        )
        for change, of_tiles in judged.items():
            truth = Rows.joined([part for part, own in zip(of_tiles, place, strict=True) if own == held])
            matrix = np.zeros((len(classes.names),) * 2)
            np.add.at(matrix, (truth.labels, model(truth.features)), 1)
            ious, has = class_ious(matrix), matrix.sum(axis=1) > 0
            found[change][name] = {
                "mean IoU": float(ious[has].mean()),
                **{classes.names[n]: float(ious[n]) for n in np.flatnonzero(has)},
                "ground called building": _share(matrix, classes.names, "ground", "building"),
            }
    seconds["fits"] = time.process_time() - start
    means = {
        change: float(np.mean([values["mean IoU"] for values in places.values()])) for change, places in found.items()
    }
    return {"mean": means, "places": found, "processor seconds": seconds}


def _share(matrix: np.ndarray, names: Sequence[str], true: str, called: str) -> float:
    """Return the share of the points of a class that are called another one; 0 where one of both is missing."""
    if true not in names or called not in names:
        return 0.0
    row = matrix[names.index(true)]
    return float(row[names.index(called)] / max(row.sum(), 1))


def _raised(degrees: float, heights: Callable[[np.ndarray], np.ndarray]) -> Callable[[PointCloudData], PointCloudData]:
    """Return a change that adds heights (points,) of places (points, 2) in meters, `degrees` steep at most."""

    def change(cloud: PointCloudData) -> PointCloudData:
        unit = cloud.meters_per_unit or 1.0
        places = cloud.points[:, :2].astype(np.float64) * unit
        places -= places.min(axis=0)
        points = cloud.points.copy()
        points[:, 2] += np.tan(np.radians(degrees)) * heights(places) / (cloud.meters_per_height or unit)
        return replace(cloud, points=points)

    return change


def _hills(places: np.ndarray) -> np.ndarray:
    """Waves of some 60 and 80 m whose steepest slope is about 1."""
    x, y = places.T * (2 * np.pi / 60)
    return 60 / (2 * np.pi) / 1.3 * (np.sin(x + 1) + 0.6 * np.sin((0.5 * x + y) / 1.4))


def _with_low_points(share: float) -> Callable[[PointCloudData], PointCloudData]:
    """Return a change that adds points without a class, 5 to 80 m below others."""

    def change(cloud: PointCloudData) -> PointCloudData:
        generator = np.random.default_rng(0)
        count = max(1, int(share * len(cloud)))
        every = np.append(np.arange(len(cloud)), generator.choice(len(cloud), count, replace=False))
        names = ("points", "labels", "intensity", "colors", *RETURNS)
        arrays = {name: values[every] for name in names if (values := getattr(cloud, name)) is not None}
        unit = cloud.meters_per_height or cloud.meters_per_unit or 1.0
        arrays["points"][len(cloud) :, 2] -= generator.uniform(5, 80, count) / unit
        arrays["labels"][len(cloud) :] = NOISE
        lengths = {"meters_per_unit": cloud.meters_per_unit, "meters_per_height": cloud.meters_per_height}
        return PointCloudData(**arrays, offset=cloud.offset, **lengths)

    return change


NOISE = 7
CHANGES: dict[str, Callable[[PointCloudData], PointCloudData]] = {
    "as it is": lambda cloud: cloud,
    "hills of 35°": _raised(35, _hills),
    "slope of 30°": _raised(30, lambda places: places @ np.array([0.8, 0.6])),
    "0.1 % low points": _with_low_points(0.001),
    "1 % low points": _with_low_points(0.01),
}
"""What is done to the place that is judged."""


def _fit(
    rows: Rows, processor: LocalFeaturesProcessor, classes: Classes, setting: Setting, seed: int
) -> Callable[[np.ndarray], np.ndarray]:
    if setting.head == "trees":
        trees = ExtraTreesClassifier(80, max_depth=18, min_samples_leaf=3, n_jobs=1, random_state=seed)
        trees.fit(rows.features, rows.labels, sample_weight=weights_of(rows, len(classes.names)))
        return lambda features: trees.classes_[trees.predict_proba(features).argmax(axis=1)]
    config = LocalFeaturesConfig(
        in_channels=3 + rows.features.shape[1], hidden_sizes=(64,), members=2, num_labels=len(classes.names)
    )
    groups = [RETURNS] * setting.returns + [("rgb",)] * setting.colors
    # Features of an encoder come after these, and alone they have no such columns.
    may_miss = [] if setting.features == "encoder" else [processor.channels_of(names) for names in groups]
    model = fit_network(rows, config, may_miss, seed)
    return lambda features: logits_of(model, features)[0].argmax(axis=1)


def _judged_rows(
    cloud: PointCloudData,
    number: int,
    place: int,
    classes: Classes,
    processor: LocalFeaturesProcessor,
    setting: Setting,
    change: Callable[[PointCloudData], PointCloudData] = CHANGES["as it is"],
) -> Rows:
    """Describe labeled points of a tile, drawn evenly, after a change that adds no points before others."""
    assert cloud.labels is not None
    labels = classes.number(cloud.labels)
    drawn = np.random.default_rng(number).permutation(np.flatnonzero(labels != IGNORED))[:JUDGED]
    if setting.features != "23 numbers":
        changed = change(cloud)
        scan = processor.describe(replace(changed))
        features = scan.neighborhoods(np.arange(len(changed))).features(drawn)
    else:
        features = _simple_numbers(change(cloud), drawn)
    return Rows(features, labels[drawn], *(np.full(len(drawn), value) for value in (number, place, 0)))


def _simple_rows(cloud: PointCloudData, number: int, place: int, classes: Classes, count: int, seed: int) -> Rows:
    assert cloud.labels is not None
    labels = classes.number(cloud.labels)
    drawn = np.random.default_rng([seed, number]).permutation(np.flatnonzero(labels != IGNORED))[:count]
    features = _simple_numbers(cloud, drawn)
    return Rows(features, labels[drawn], *(np.full(len(drawn), value) for value in (number, place, 0)))


def _simple_numbers(cloud: PointCloudData, drawn: np.ndarray) -> np.ndarray:
    """Return the 23 numbers of a simple classifier: heights above lowest points, shapes of neighbors, returns."""
    points = cloud.points.astype(np.float64) * (cloud.meters_per_unit or 1.0)
    some = points[drawn]
    columns: list[np.ndarray] = []
    for cell in (5.0, 20.0):
        cells = np.floor(points[:, :2] / cell).astype(int)
        cells -= cells.min(axis=0)
        lowest = np.full(cells.max(axis=0) + 1, np.inf)
        np.minimum.at(lowest, tuple(cells.T), points[:, 2])
        columns.append(some[:, 2] - minimum_filter(lowest, 3)[tuple(cells[drawn].T)])
    for returns in (cloud.return_number, cloud.number_of_returns):
        columns.append(np.ones(len(drawn)) if returns is None else returns[drawn])
    tree = cKDTree(points)
    for count in (8, 24, 64):
        distances, index = tree.query(some, k=count)
        near = points[index] - some[:, None]
        apart = near - near.mean(axis=1, keepdims=True)
        values, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", apart, apart) / count)
        small, middle, large = values.clip(min=1e-8).T
        heights = near[:, :, 2]
        columns += [(large - middle) / large, (middle - small) / large, small / (large + middle + small)]
        columns += [np.abs(axes[:, 2, 0]), distances[:, -1], np.ptp(heights, axis=1), -heights.min(axis=1)]
    return np.stack(columns, axis=1).astype(np.float32)


def with_and_without_color(path: Path, seeds: Sequence[int]) -> dict[str, Any]:
    """Learn three quarters of a tile and judge the fourth: IoU of each class over all, and their means by seed."""
    cloud = read_tile(path)
    assert cloud.labels is not None
    tile = look_at(path, cloud)
    classes, _ = Classes.among(tile.codes, ClassRule.parse(None, THREE), CURRENT, 500)
    labels = classes.number(cloud.labels)
    flat = cloud.points[:, :2]
    quarter = (flat > np.median(flat, axis=0)) @ np.array([1, 2])
    found: dict[str, Any] = {}
    for name, setting in (("without colors", Setting()), ("with colors", Setting(colors=True))):
        processor = LocalFeaturesProcessor(features=["xyz", *RETURNS, *["rgb"] * setting.colors])
        scan = processor.describe(replace(cloud))
        drawn = np.random.default_rng(0).permutation(np.flatnonzero(labels != IGNORED))
        # Nearly all is ground; of the others, all are learned and judged.
        is_ground = labels[drawn] == classes.names.index("ground")
        drawn = np.sort(np.concatenate([drawn[is_ground][: 4 * JUDGED], drawn[~is_ground]]))
        features = scan.neighborhoods(np.arange(len(cloud))).features(drawn)
        rows = Rows(features, labels[drawn], quarter[drawn], quarter[drawn], np.zeros(len(drawn), np.int64))
        for seed in seeds:
            matrix = np.zeros((len(classes.names),) * 2)
            for held in range(4):
                answer = _fit(rows.part(rows.places != held), processor, classes, setting, seed)
                truth = rows.part(rows.places == held)
                np.add.at(matrix, (truth.labels, answer(truth.features)), 1)
            ious = dict(zip(classes.names, class_ious(matrix).tolist(), strict=True))
            found[f"{name}, seed {seed}"] = {"mean": float(np.mean(list(ious.values()))), **ious}
    return found


def ground_alone(folder: Path) -> dict[str, Any]:
    """Learn ground on all samples but one and judge that one: total error, share of points on the wrong side."""
    samples = _samples(folder)
    names, clouds = list(samples), list(samples.values())
    processor = LocalFeaturesProcessor()
    classes = Classes(["other", "ground"], [1, 2], {0: 0, 1: 1})
    setting, found = Setting(returns=False), {}
    every = [_judged_rows(cloud, n, n, classes, processor, setting) for n, cloud in enumerate(clouds)]
    for held, name in enumerate(names):
        rows = Rows.joined([part for number, part in enumerate(every) if number != held])
        answer = _fit(rows, processor, classes, setting, 0)(every[held].features)
        found[name] = float((answer != every[held].labels).mean())
    return {"total error": found, "mean": float(np.mean(list(found.values())))}


def _samples(folder: Path) -> dict[str, PointCloudData]:
    """Read samples whose labels are 1 for what hands called ground."""
    clouds = {}
    for name in sorted(path.name.removesuffix("-ground.pcd") for path in folder.glob("*-ground.pcd")):
        points, ground = (read_point_cloud(folder / f"{name}{end}.pcd") for end in ("", "-ground"))
        own, of_ground = (_places(cloud) for cloud in (points, ground))
        labels = np.isin(own, of_ground).astype(np.int64)
        clouds[name] = replace(points, labels=labels, meters_per_unit=1.0)
    return clouds


def surface_alone(folder: Path) -> dict[str, Any]:
    """Call ground what lies on the surface: total errors in percent, and processor seconds, of each filter."""
    filters = {"uncut": _on(GroundSurface.below), "windows": _on(GroundSurface.by_windows)}
    if find_spec("pysmrf"):
        # Its default, and the largest width that helps on these samples
        filters |= {f"pysmrf, windows of {width} cells": partial(_smrf, width=width) for width in (5, 18)}
    if find_spec("CSF"):
        filters["cloth-simulation-filter"] = _cloth
    found: dict[str, Any] = {name: {} for name in filters}
    for name, cloud in _samples(folder).items():
        points = cloud.points.astype(np.float64) + (0 if cloud.offset is None else cloud.offset)
        for of_filter, is_ground in filters.items():
            start = time.process_time()
            wrong = is_ground(points) != (cloud.labels == 1)
            found[of_filter][name] = {"error": 100 * float(wrong.mean()), "seconds": time.process_time() - start}
    means = {name: float(np.mean([row["error"] for row in rows.values()])) for name, rows in found.items()}
    return {"mean": means, "samples": found}


def _on(find: Callable[[np.ndarray, float], GroundSurface]) -> Callable[[np.ndarray], np.ndarray]:
    """Return a filter: near the surface, the further the steeper that is."""

    def is_ground(points: np.ndarray) -> np.ndarray:
        surface = find(points, spacing_of(points))
        slope = np.hypot(*np.gradient(surface.heights[1], surface.cell))
        cells = ((points[:, :2] - surface.corner) / surface.cell).astype(int)
        away = np.abs(surface.heights_above(points)[:, 1])
        return away < np.minimum(0.5 + 1.25 * slope[tuple(cells.T)], 2.5)

    return is_ground


def _smrf(points: np.ndarray, width: int) -> np.ndarray:
    import pysmrf

    return ~np.asarray(pysmrf.smrf(*points.T, windows=width)[3], bool)


def _cloth(points: np.ndarray) -> np.ndarray:
    import CSF

    cloth, ground, others = CSF.CSF(), CSF.VecInt(), CSF.VecInt()
    cloth.setPointCloud(points)
    cloth.do_filtering(ground, others, False)
    is_ground = np.zeros(len(points), bool)
    is_ground[list(ground)] = True
    return is_ground


def _places(cloud: PointCloudData) -> np.ndarray:
    """Return a number for each place, (points,), by its centimeters."""
    points = cloud.points.astype(np.float64) + (0 if cloud.offset is None else cloud.offset)
    steps = np.round(points * 100).astype(np.int64)
    return (steps[:, 0] * 1_000_003 + steps[:, 1]) * 1_000_003 + steps[:, 2]


if __name__ == "__main__":
    main()
