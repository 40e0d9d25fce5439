"""Ground and classes of an inventory, on places that nobody has labeled for it, beside other programs.

    python -m survey.studies.surfaces --ground FOLDER                  # samples of the ISPRS: total errors
    python -m survey.studies.surfaces --heights FILE ...               # heights above the class 2 that hands called so
    python -m survey.studies.surfaces --tiles FOLDER --more FILE       # leave one place out: IoU of three classes

`--ground` takes pairs NAME-utm.pcd and NAME-utm-ground.pcd, and compares `pysmrf`, `cloth-simulation-filter` and
`fastgc` where these are installed; `--fastgc PROGRAM` names that of another environment. Each runs as it does by
default, but for what is told, in the same run and on one thread.

Results: `results/inventory.md`.
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import laspy
import numpy as np
import torch
from scipy.interpolate import LinearNDInterpolator
from transformers import pipeline

import hf_any3d  # noqa: F401  registers the pipeline
from hf_any3d.data.classes.class_rule import Classes, ClassRule
from hf_any3d.data.classes.las_classes import CURRENT
from hf_any3d.data.files import PointCloudData, read_point_cloud
from hf_any3d.evaluation.segmentation import class_ious
from hf_any3d_survey.local_features import LocalFeaturesConfig
from hf_any3d_survey.local_features.fitting import Rows, fit_network
from hf_any3d_survey.processor import RETURNS, LocalFeaturesProcessor
from hf_any3d_survey.tiles.arguments import TilesArguments
from hf_any3d_survey.tiles.examples import rows_of
from hf_any3d_survey.tiles.places import places_of
from hf_any3d_survey.tiles.reading import look_at, read_tile, tile_files

JUDGED = 20_000
"""Points of a tile by which models are judged."""


def main(argv: Sequence[str] | None = None) -> None:
    """Run what is asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ground", type=Path)
    parser.add_argument("--fastgc", help="Program of fastgc.")
    parser.add_argument("--heights", type=Path, nargs="*", default=[])
    parser.add_argument("--tiles", type=Path)
    parser.add_argument("--more", type=Path, nargs="*", default=[])
    parser.add_argument("--seeds", type=int, nargs="*", default=[0, 1, 2])
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    if arguments.ground is not None:
        compare_ground(arguments.ground, arguments.fastgc)
    if arguments.heights:
        compare_heights(arguments.heights)
    if arguments.tiles is not None:
        for seed in arguments.seeds:
            leave_one_place_out(tile_files([arguments.tiles, *arguments.more]), seed)


def compare_ground(folder: Path, fastgc: str | None) -> None:
    """Print the share of points on the wrong side, in percent, and processor seconds a million points."""
    inventory = pipeline("point-cloud-inventory")
    filters: dict[str, Callable[[PointCloudData], np.ndarray]] = {
        "inventory": lambda cloud: inventory(cloud)["classes"] == 2
    }
    if find_spec("pysmrf"):
        filters |= {
            f"pysmrf, windows of {width} cells": lambda cloud, width=width: _smrf(_on_map(cloud), width)
            for width in (5, 18)
        }
    if find_spec("CSF"):
        filters["cloth-simulation-filter"] = lambda cloud: _cloth(_on_map(cloud))
    if fastgc:
        filters["fastgc, ALS"] = partial(_fastgc, fastgc)
    samples = read_samples(folder)
    for name, is_ground in filters.items():
        errors = []
        seconds = points = 0.0
        for cloud in samples.values():
            start = time.process_time()
            errors.append(100 * float((is_ground(cloud) != (cloud.labels == 1)).mean()))
            seconds += time.process_time() - start
            points += len(cloud)
        row = " | ".join(f"{error:.1f}" for error in errors)
        print(f"| {name} | {row} | {np.mean(errors):.1f} | {seconds / points * 1e6:.1f} |", flush=True)


def compare_heights(files: Sequence[Path]) -> None:
    """Print how far heights and class 2 lie from the ground of labeled scans, in percent, by scans without labels.

    Columns: found class 2 more than half a meter from the surface; true ground that is not found; and, among points
    that stand two meters above a triangulation of true class 2, those whose height is off by more than a meter, and
    the same where the surface is not guessed.
    """
    inventory = pipeline("point-cloud-inventory")
    for path in files:
        cloud = read_point_cloud(path)
        is_true = cloud.labels == 2
        seen = inventory.look(replace(cloud, labels=None, label_codes=None))
        points = seen.points[:]
        flat = points[:, :2] - points[:, :2].min(axis=0)
        true_heights = points[:, 2] - LinearNDInterpolator(flat[is_true], points[is_true, 2])(flat)
        stands = (true_heights > 2) & (seen.classes != 7)
        is_off = np.abs(seen.heights - true_heights) > 1
        found = seen.classes == 2
        shares = [
            (np.abs(seen.heights[found]) > 0.5).mean(),
            1 - found[is_true].mean(),
            is_off[stands].mean() if stands.any() else 0.0,
            is_off[stands & ~seen.terrain.guessed_at(points)].mean() if stands.any() else 0.0,
        ]
        print(f"| {path.stem} | {' | '.join(f'{100 * share:.1f}' for share in shares)} |", flush=True)


def read_samples(folder: Path) -> dict[str, PointCloudData]:
    """Read samples whose labels are 1 for what hands called ground."""
    clouds = {}
    for name in sorted(path.name.removesuffix("-ground.pcd") for path in folder.glob("*-ground.pcd")):
        points, ground = (read_point_cloud(folder / f"{name}{end}.pcd") for end in ("", "-ground"))
        own, of_ground = (_places(cloud) for cloud in (points, ground))
        labels = np.isin(own, of_ground).astype(np.int64)
        clouds[name] = replace(points, labels=labels, meters_per_unit=1.0)
    return clouds


def _places(cloud: PointCloudData) -> np.ndarray:
    """Return a number for each place, (points,), by its centimeters."""
    steps = np.round(_on_map(cloud) * 100).astype(np.int64)
    return (steps[:, 0] * 1_000_003 + steps[:, 1]) * 1_000_003 + steps[:, 2]


def _on_map(cloud: PointCloudData) -> np.ndarray:
    return cloud.points.astype(np.float64) + (0 if cloud.offset is None else cloud.offset)


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


def _fastgc(program: str, cloud: PointCloudData) -> np.ndarray:
    """Return what fastgc calls ground, a program of its own, whose seconds are not counted."""
    with tempfile.TemporaryDirectory() as folder:
        header = laspy.LasHeader(point_format=6, version="1.4")
        header.scales = [0.001] * 3
        points = _on_map(cloud)
        header.offsets = np.floor(points.min(axis=0))
        las = laspy.LasData(header)
        las.xyz = points
        las.return_number = las.number_of_returns = np.ones(len(points), np.uint8)
        path = Path(folder, "in", "sample.las")
        path.parent.mkdir()
        las.write(path)
        words = ["--in_path", str(path.parent), "--out_dir", f"{folder}/out", "--sensor_mode", "ALS"]
        subprocess.run([program, *words, "--products", "FAST_GC", "--jobs", "1"], check=True, capture_output=True)
        found = laspy.read(next(Path(folder, "out").rglob("*.la[sz]")))
        # Points may come back in another order.
        place = {
            tuple(row): code for row, code in zip(np.asarray(found.xyz).round(3), found.classification, strict=True)
        }
        return np.array([place.get(tuple(row), 0) == 2 for row in np.asarray(las.xyz).round(3)])


class HeldOut(NamedTuple):
    """Place that a model has not learned.

    Attributes:
        name: Of the place.
        inventory: Pipeline of a model of the other places.
        paths: Its tiles.
        clouds: Their points.
    """

    name: str
    inventory: Any
    paths: list[Path]
    clouds: list[PointCloudData]


def held_out_places(files: Sequence[Path], seed: int) -> Iterator[HeldOut]:
    """Yield each place of some tiles with a model of the others."""
    clouds = [read_tile(path) for path in files]
    tiles = [look_at(path, cloud) for path, cloud in zip(files, clouds, strict=True)]
    codes = sum((tile.codes for tile in tiles), type(tiles[0].codes)())
    classes, _ = Classes.among(codes, ClassRule.parse(None, ("vegetation=3,4,5",)), CURRENT, 500)
    places = places_of(tiles)
    processor = LocalFeaturesProcessor(features=["xyz", *RETURNS], optional=RETURNS)
    asked = TilesArguments(seed=seed)
    learned = []
    for number, (cloud, tile) in enumerate(zip(clouds, tiles, strict=True)):
        learned.append(rows_of(cloud, tile, number, int(places[number]), classes, processor, asked)[0])
    for held in np.unique(places):
        rows = Rows.joined([part for part, place in zip(learned, places, strict=True) if place != held])
        config = LocalFeaturesConfig(
            in_channels=3 + rows.features.shape[1],
            hidden_sizes=(64,),
            members=2,
            id2label=dict(enumerate(classes.names)),
            class_codes=classes.codes,
        )
        model = fit_network(rows, config, processor.may_miss, seed)
        inventory = pipeline("point-cloud-inventory", model=model, feature_extractor=processor)
        own = np.flatnonzero(places == held).tolist()
        name = "+".join(sorted({tiles[number].path.stem.split("_")[0] for number in own}))
        yield HeldOut(name, inventory, [files[number] for number in own], [clouds[number] for number in own])


def leave_one_place_out(files: Sequence[Path], seed: int) -> None:
    """Print the mean IoU of ground, vegetation and building of each place, by a model of the others."""
    found = {}
    for place in held_out_places(files, seed):
        matrix = np.zeros((4, 4))
        for number, cloud in enumerate(place.clouds):
            labels = _of_three(cloud.labels)
            answers = _of_three(place.inventory(cloud)["classes"])
            drawn = np.random.default_rng(number).permutation(np.flatnonzero(labels < 3))[:JUDGED]
            np.add.at(matrix, (labels[drawn], answers[drawn]), 1)
        ious = class_ious(matrix)[matrix.sum(axis=1) > 0]
        found[place.name] = float(ious.mean())
        print(f"seed {seed}, {place.name}: {found[place.name]:.3f}", flush=True)
    print(f"seed {seed}: mean {np.mean(list(found.values())):.4f}", flush=True)


def _of_three(codes: np.ndarray) -> np.ndarray:
    """Return 0, 1 and 2 for ground, vegetation of all heights, and building, and 3 for others, which are wrong."""
    return np.select([codes == 2, np.isin(codes, (3, 4, 5)), codes == 6], [0, 1, 2], 3)


if __name__ == "__main__":
    main()
