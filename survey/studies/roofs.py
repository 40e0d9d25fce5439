"""Blocks of roofs: how many are buildings, by a model of their shapes that has not learned the place.

    python -m survey.studies.roofs --tiles FOLDER FILE --without FILE …                   # leave one place out
    python -m survey.studies.roofs … --fit survey/hf_any3d_survey/inventory/roofs.json    # and learn from all

Blocks are those of labeled tiles as a network of the other places sees them, of scans of places without a building,
and of generated places (`scenes.py`), each as it is, with no returns and as photogrammetry would see it. A building
that is lost counts as four blocks that are none.

Results: `results/inventory.md`.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers import pipeline

import hf_any3d  # noqa: F401  registers the pipeline
from hf_any3d.data.files import PointCloudData
from hf_any3d.data.generated.stands import KINDS
from hf_any3d_survey.inventory.blocks import BlockCells, keys_of
from hf_any3d_survey.inventory.roofs import (
    BLOCK_COLUMNS,
    LEAST_PROBABILITY,
    RoofModel,
    describe_blocks,
    describe_cells,
)
from hf_any3d_survey.tiles.reading import tile_files
from survey.studies.scenes import SCENES, by_photogrammetry, thinned, without_returns, wood
from survey.studies.surfaces import held_out_places

LEAST_AREA = 10.0  # square meters, as of the command
SEEDS = range(1, 7)
# Columns whose numbers count beyond what roofs have, and their bounds: 36 to 63°, and rises of 0.45 to 1.05
_BOUNDS = {"steepness": (0.8, 1.4), "terrain": (0.45, 1.05)}
# Weight of a building that is lost, of square roots of areas, and of a place at most; and the penalty of coefficients
_LOST, _WEIGHT, _MOST, _RIDGE = 4.0, 0.25, 60.0, 1.0


class Blocks(NamedTuple):
    """Blocks of one scan.

    Attributes:
        place: What is left out together.
        kind: How the scan was changed.
        hectares: Its area.
        numbers: (blocks, columns) of `BLOCK_COLUMNS`.
        are_buildings: (blocks,) by the labels of most of their points.
        areas: (blocks,) in square meters.
    """

    place: str
    kind: str
    hectares: float
    numbers: np.ndarray
    are_buildings: np.ndarray
    areas: np.ndarray


def main(argv: Sequence[str] | None = None) -> None:
    """Judge the model with each place left out, and learn it from all."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiles", type=Path, nargs="+", required=True)
    parser.add_argument("--without", type=Path, nargs="*", default=[], help="Scans of places without a building.")
    parser.add_argument("--fit", type=Path)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    found = list(all_blocks(tile_files(arguments.tiles), arguments.without))
    judge(found)
    if arguments.fit is not None:
        save(fit(found), arguments.fit)


def all_blocks(tiles: Sequence[Path], without: Sequence[Path]) -> Iterator[Blocks]:
    """Yield the blocks of tiles, of scans without a building, and of generated places."""
    for place in held_out_places(tiles, seed=0):
        for cloud in place.clouds:
            yield from changed_blocks(place.inventory, cloud, place.name)
    inventory = pipeline("point-cloud-inventory")
    for path in without:
        cloud = inventory.open(path)
        cloud.labels = np.zeros(len(cloud), np.int64)
        yield from changed_blocks(inventory, cloud, path.stem)
    for seed in SEEDS:
        for kind, draw in SCENES.items():
            yield from changed_blocks(inventory, draw(seed), f"generated {kind}")
        yield from changed_blocks(inventory, wood(seed, list(KINDS)[seed]), "generated wood")


def changed_blocks(inventory: Any, cloud: PointCloudData, place: str) -> Iterator[Blocks]:
    """Yield the blocks of a scan as it is, and as other sensors would have seen it."""
    cell = 0.4 / (cloud.meters_per_unit or 1.0)
    changes = {"as it is": cloud, "no returns": without_returns(cloud)}
    # What has fewer points is no denser than its cells.
    if place.startswith("generated"):
        changes["sparse"] = thinned(cloud, 0.8)
    if len(cloud) < 300_000:
        changes["photogrammetry"] = by_photogrammetry(cloud, cell)
    for kind, changed in changes.items():
        blocks = blocks_of(inventory, changed, place, kind)
        if blocks is not None:
            yield blocks


def blocks_of(inventory: Any, cloud: PointCloudData, place: str, kind: str) -> Blocks | None:
    """Return the blocks of a scan that are large enough, None if there are none."""
    seen = inventory.look(cloud)
    roofs = np.flatnonzero(seen.classes == 6)
    hectares = len(np.unique(keys_of(seen.points[:] / 2))) * 4e-4
    if not len(roofs):
        return Blocks(place, kind, hectares, np.zeros((0, len(BLOCK_COLUMNS))), np.zeros(0, bool), np.zeros(0))
    cells = BlockCells()
    cells.add(seen.points[roofs], seen.heights[roofs], seen.scores[roofs])
    cells.add_shapes(*describe_cells(seen))
    blocks = cells.blocks()
    block_of = cells.of_keys(keys_of(seen.points[roofs]))
    labels = cloud.labels[roofs]
    # Of generated places, and of those without a building, all points are known.
    is_whole = place.startswith("generated") or not np.isin(cloud.labels, (2, 6)).any()
    known = np.isin(labels, (2, 3, 4, 5, 6)) | is_whole
    count = np.bincount(block_of[known], minlength=len(blocks))
    buildings = np.bincount(block_of[known], labels[known] == 6, len(blocks))
    areas = np.array([len(block.cells) for block in blocks], np.float64)
    kept = (areas >= LEAST_AREA) & (count > 0.3 * np.bincount(block_of, minlength=len(blocks)))
    is_building = buildings > 0.5 * count
    return Blocks(place, kind, hectares, describe_blocks(blocks)[kept], is_building[kept], areas[kept])


def fit(found: Sequence[Blocks]) -> RoofModel:
    """Learn the model by Newton's method; roofs of a place weigh no more than some, however many there are."""
    numbers = np.concatenate([blocks.numbers for blocks in found])
    truth = np.concatenate([blocks.are_buildings for blocks in found])
    low, high = np.quantile(numbers, (0.01, 0.99), axis=0)
    for name, bounds in _BOUNDS.items():
        low[BLOCK_COLUMNS.index(name)], high[BLOCK_COLUMNS.index(name)] = bounds
    model = RoofModel(0.0, low, np.maximum(high, low + 1e-3), np.zeros(len(low)))
    weights = _weights(found)
    terms = np.column_stack([np.ones(len(numbers)), model.scaled(numbers)])
    ridge = np.diag([1e-6, *[_RIDGE] * len(low)])
    values = np.zeros(terms.shape[1])
    for _ in range(20):
        shares = 1 / (1 + np.exp(-terms @ values))
        curvature = terms.T @ (terms * (weights * shares * (1 - shares))[:, None]) + ridge
        values += np.linalg.solve(curvature, terms.T @ (weights * (truth - shares)) - ridge @ values)
    return model._replace(base=float(values[0]), linear=values[1:])


def _weights(found: Sequence[Blocks]) -> np.ndarray:
    """Return the weights of blocks (blocks,)."""
    places = np.concatenate([[blocks.place] * len(blocks.areas) for blocks in found])
    truth = np.concatenate([blocks.are_buildings for blocks in found])
    weights = np.sqrt(np.concatenate([blocks.areas for blocks in found]))
    for place in np.unique(places):
        for side in (False, True):
            own = (places == place) & (truth == side)
            total = weights[own].sum()
            weights[own] *= min(_WEIGHT * total, _MOST) / max(total, 1e-9) * (_LOST if side else 1)
    return weights


def judge(found: Sequence[Blocks]) -> None:
    """Print roofs of each place before and after a model of the other places has judged them."""
    print("| place | kind | buildings kept | other roofs, m² a hectare | kept of these |")
    print("|---|---|---|---|---|")
    for place in dict.fromkeys(blocks.place for blocks in found):
        model = fit([blocks for blocks in found if blocks.place != place])
        for kind in dict.fromkeys(blocks.kind for blocks in found if blocks.place == place):
            own = [blocks for blocks in found if blocks.place == place and blocks.kind == kind]
            hectares = sum(blocks.hectares for blocks in own)
            areas = np.concatenate([blocks.areas for blocks in own])
            truth = np.concatenate([blocks.are_buildings for blocks in own])
            kept = np.concatenate([model(blocks.numbers) for blocks in own]) >= LEAST_PROBABILITY
            share = areas[truth & kept].sum() / areas[truth].sum() if truth.any() else np.nan
            before, after = areas[~truth].sum() / hectares, areas[~truth & kept].sum() / hectares
            print(f"| {place} | {kind} | {share:.3f} | {before:.1f} | {after:.1f} |", flush=True)


def save(model: RoofModel, path: Path) -> None:
    """Write the coefficients as JSON, a row for each column."""
    rows = zip(BLOCK_COLUMNS, np.stack(model[1:], axis=1).round(4).tolist(), strict=True)
    lines = [f'  "base": {round(model.base, 4)}', *(f"  {json.dumps(name)}: {json.dumps(row)}" for name, row in rows)]
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
