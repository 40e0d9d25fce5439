"""Doubts of an inventory as a detector of wrong answers, on scans as they are and as other sensors would see them.

    python -m survey.studies.doubt --tiles FOLDER FILE --truth FOLDER

`--tiles` are labeled tiles, each seen by a network of the other places; `--truth` has places/, ground/ and trees/. An
answer is right with a mean IoU of 0.75 or more, ground errors of 8 % at most, a tenth of the heights of what stands
2 m up off by a meter at most, and less than 100 m² of buildings where none stands. Limits are chosen without the place
that is judged.

Results: `results/inventory.md`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.interpolate import griddata
from transformers import pipeline

import hf_any3d  # noqa: F401  registers the pipeline
from hf_any3d.data.files import PointCloudData
from hf_any3d_survey.inventory.doubt import CONDITIONS
from hf_any3d_survey.inventory.place import Place
from hf_any3d_survey.tiles.reading import tile_files
from survey.studies import scenes
from survey.studies.surfaces import held_out_places, read_samples

GROUND, TREE, BUILDING, THING = 2, 5, 6, 1
CHOSEN = ("hidden ground", "roofs on slopes", "closed crowns")
"""Conditions whose limits are chosen; those of the others are what they are."""
_WIDTH = 350.0  # meters, of what is judged of a scan
_QUANTILES = (*np.linspace(0.4, 0.98, 15), 0.985, 0.99, 1.0)
_COST = 1.4  # of a right answer that is doubted, where a wrong one that is not costs 1


class Case(NamedTuple):
    """A scan with its truth, and what is known of the answer about it.

    Attributes:
        place: What is left out together.
        kind: How it was changed.
        is_wrong: True if the answer is wrong.
        numbers: As of `measure_tile`.
    """

    place: str
    kind: str
    is_wrong: bool
    numbers: Mapping[str, float]


def main(argv: Sequence[str] | None = None) -> None:
    """Judge all scans and their changes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=Path, nargs="+", required=True)
    parser.add_argument("--truth", type=Path, required=True)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    cases = []
    for name, inventory, cloud, truth in scans(tile_files(arguments.tiles), arguments.truth):
        cases += list(cases_of(name, inventory, cloud, truth))
        print(name, [(case.kind, case.is_wrong) for case in cases if case.place == name], flush=True)
    judge(cases)


def scans(tiles: Sequence[Path], folder: Path) -> Iterator[tuple[str, Any, PointCloudData, np.ndarray]]:
    """Yield names, pipelines, scans and their true classes (points,), 0 where they are not known."""
    for place in held_out_places(tiles, seed=0):
        cloud = place.clouds[0]
        yield place.name, place.inventory, cloud, _three_of(cloud.labels)
    inventory = pipeline("point-cloud-inventory")
    for path in sorted((folder / "places").iterdir()):
        columns = ("Veg",) if path.stem == "rockies_side" else ()
        cloud = inventory.open(path, columns=columns)
        truth = _three_of(cloud.labels)
        if columns:
            truth = np.where(cloud.further["Veg"] == 1, GROUND, TREE)
        yield path.stem, inventory, cloud, truth
    for name, cloud in read_samples(folder / "ground").items():
        yield name, inventory, cloud, np.where(cloud.labels == 1, GROUND, THING)
    for path in sorted((folder / "trees").iterdir()):
        cloud = inventory.open(path, columns=("VegCls",))
        yield path.stem, inventory, cloud, np.where(cloud.further["VegCls"] == 2, TREE, 0)
    for kind, draw in scenes.SCENES.items():
        cloud = draw(60)
        yield kind, inventory, cloud, _three_of(cloud.labels)


def _three_of(labels: np.ndarray) -> np.ndarray:
    return np.select([labels == 2, np.isin(labels, (3, 4, 5)), labels == 6], [GROUND, TREE, BUILDING], 0)


def cases_of(name: str, inventory: Any, cloud: PointCloudData, truth: np.ndarray) -> Iterator[Case]:
    """Yield the scan, and its changes."""
    unit = cloud.meters_per_unit or 1.0
    middle = (cloud.points.min(axis=0) + cloud.points.max(axis=0)) / 2
    near = (np.abs(cloud.points - middle)[:, :2] < _WIDTH / 2 / unit).all(axis=1)
    heights = _heights(cloud, truth)
    cloud.further = {"truth": truth.astype(np.float32), "height": heights.astype(np.float32)}
    cloud = scenes.rows_of(cloud, np.flatnonzero(near))
    changes: dict[str, Callable[[PointCloudData], PointCloudData]] = {
        "as it is": lambda scan: scan,
        "no returns": scenes.without_returns,
        "photogrammetry": partial(scenes.by_photogrammetry, cell=0.4 / unit),
        "sparse": partial(scenes.thinned, density=0.3 * unit**2),
        "steep": partial(scenes.steepened, slope=0.6),
        "noise": scenes.with_noise,
        "void": scenes.with_water,
        "water": partial(scenes.with_water, level=0.0),
    }
    if len(cloud) < 45_000:
        changes["dense"] = scenes.densified
    if np.isfinite(heights).all():
        changes["heights"] = lambda scan: scenes.as_heights(scan, scan.further["height"] / unit)
    for kind, change in changes.items():
        changed = change(cloud)
        if kind == "water":
            is_wet = changed.points[:, 2] != cloud.points[:, 2]
            for column, value in (("truth", GROUND), ("height", 0)):
                changed.further[column] = np.where(is_wet, value, changed.further[column])
        try:
            seen = inventory.look(changed)
        except ValueError:
            continue
        place = Place(min_height=1e9)
        place.add(0, seen)
        area = sum(thing.area for thing in place.things())
        is_wrong = _is_wrong(place.answer_of(0).classes, seen.heights, changed.further, area)
        yield Case(name, kind, is_wrong, seen.measured)


def _heights(cloud: PointCloudData, truth: np.ndarray) -> np.ndarray:
    """Return heights (points,) in meters above the points of the ground; NaN where there are none."""
    points = cloud.points.astype(np.float64)
    is_ground = truth == GROUND
    if not is_ground.any():
        return np.full(len(points), np.nan)
    flat = points[:, :2] - points[:, :2].mean(axis=0)
    below = griddata(flat[is_ground], points[is_ground, 2], flat, "linear")
    nearest = griddata(flat[is_ground], points[is_ground, 2], flat, "nearest")
    unit = cloud.meters_per_height or cloud.meters_per_unit or 1.0
    return (points[:, 2] - np.where(np.isfinite(below), below, nearest)) * unit


def _is_wrong(classes: np.ndarray, heights: np.ndarray, truth: Mapping[str, np.ndarray], buildings: float) -> bool:
    """Return whether an answer is wrong; `buildings` are square meters."""
    codes, true_heights = truth["truth"], truth["height"]
    own = _three_of(classes)
    is_known = codes > 0
    if (codes == GROUND).any() and ((own == GROUND) != (codes == GROUND))[is_known].mean() > 0.08:
        return True
    if not (codes == THING).any():
        present = [code for code in (GROUND, TREE, BUILDING) if (codes == code).mean() > 0.002]
        shares = [_iou(own == code, codes == code, is_known) for code in present]
        if shares and np.mean(shares) < 0.75:
            return True
        if BUILDING not in present and buildings >= 100:
            return True
    stands = is_known & (codes != GROUND) & (true_heights > 2)
    return bool(stands.sum() > 50 and (np.abs(heights - true_heights)[stands] > 1).mean() > 0.1)


def _iou(own: np.ndarray, true: np.ndarray, is_known: np.ndarray) -> float:
    return float((own & true & is_known).sum() / ((own | true) & is_known).sum())


def judge(cases: Sequence[Case]) -> None:
    """Print how many answers are told and silent, right and wrong, by limits that the place has not chosen."""
    told = np.zeros(len(cases), bool)
    places = np.array([case.place for case in cases])
    for place in np.unique(places):
        limits = choose([case for case in cases if case.place != place])
        for number in np.flatnonzero(places == place):
            told[number] = _is_told(cases[number].numbers, limits)
    wrong = np.array([case.is_wrong for case in cases])
    kinds = np.array([case.kind for case in cases])
    print("| kind | wrong and told | wrong and silent | right and told | right and silent |\n|---|---|---|---|---|")
    for kind in ["all", *dict.fromkeys(kinds)]:
        own = (kinds == kind) | (kind == "all")
        counts = [
            (own & wrong & told).sum(),
            (own & wrong & ~told).sum(),
            (own & ~wrong & told).sum(),
            (own & ~wrong & ~told).sum(),
        ]
        print(f"| {kind} | " + " | ".join(map(str, counts)) + " |")
    print({name: round(limit, 3) for name, limit in choose(cases).items()})


def choose(cases: Sequence[Case]) -> dict[str, float]:
    """Choose limits, one after the other, for as many wrong and as few right answers as can be to be told."""
    limits = dict.fromkeys(CHOSEN, np.inf)
    wrong = np.array([case.is_wrong for case in cases])
    for _ in range(4):
        for name in CHOSEN:
            values = np.array([case.numbers[name] for case in cases])
            others = np.array([_is_told(case.numbers, limits | {name: np.inf}) for case in cases])
            best = -np.inf
            for limit in (np.inf, *np.unique(np.quantile(values, _QUANTILES))):
                is_told = others | (values > limit)
                score = is_told[wrong].mean() - _COST * is_told[~wrong].mean()
                if score > best + 1e-9:
                    best, limits[name] = score, float(limit)
    return limits


def _is_told(numbers: Mapping[str, float], limits: Mapping[str, float]) -> bool:
    for name, condition in CONDITIONS.items():
        value, limit = numbers[name], limits.get(name, condition.limit)
        if (value < limit) if condition.is_least else (value > limit):
            return True
    return False


if __name__ == "__main__":
    main()
