"""Make the metric in which features of the packaged encoder are compared, and judge it on classes it has not seen.

    python -m studies.packaged_metric --kicad FOLDER            # make the file that comes with the package
    python -m studies.packaged_metric --kicad FOLDER --judge    # paired draws, with and without it

It is the mean of three covariances within classes: of 24 generated classes, of the electronic parts, and of solids of
which each is a class of its own, in stretched, turned, noisy copies. Results: `results/packaged_metric.md`. To judge
it on the parts, a metric of every second class is made, and judged on the others.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from hf_any3d.modeling.point_encoders.packaged_metric import PACKAGED_METRIC
from hf_any3d.training.few_scans.linear_head import Metric, fit_head
from hf_any3d.training.few_scans.solids import draw_solid
from studies.few_scans import COPIES, stored_features
from studies.few_scans_draws import SETS, Draw, Shapes, draw, parts
from studies.generated_shapes import normalized
from studies.generated_shapes.surfaces import turned
from studies.runs import mean_gain

SEED = 11
SOLIDS, CHANGED = 160, 6
"""Solids, and changed copies of each."""
KEPT = 0.85
"""Share of the covariance in what is inverted; the rest is a multiple of the identity."""
JUDGED_SHOTS = (1, 2, 5, 10)


def changed_solids() -> Shapes:
    """Draw solids, each with copies as another scan of it might be."""
    points = []
    for number in range(SOLIDS):
        generator = np.random.default_rng([SEED, number])
        dense = draw_solid(generator, 4096)
        heading = generator.uniform(0, 360)
        for _ in range(CHANGED):
            cloud = dense[generator.choice(len(dense), 1024, replace=False)] * np.exp(generator.uniform(-0.2, 0.2, 3))
            cloud = turned(cloud, heading + generator.uniform(-15, 15))
            noise = generator.uniform(0, 0.02) * np.abs(cloud).max()
            points.append(normalized(cloud + noise * generator.normal(size=cloud.shape)))
    labels = np.repeat(np.arange(SOLIDS), CHANGED)
    names = tuple(map(str, range(SOLIDS)))
    return Shapes(np.stack(points).astype(np.float32), labels, labels, names, np.ones(len(labels), bool))


def covariance_within(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the covariance `(width, width)` of rows within their classes, with a trace of the width."""
    _, numbers = np.unique(labels, return_inverse=True)
    means = np.stack([rows[numbers == number].mean(axis=0) for number in range(numbers.max() + 1)])
    apart = rows - means[numbers]
    covariance = apart.T @ apart
    return covariance * (len(covariance) / np.trace(covariance))


def make_metric(sources: list[tuple[np.ndarray, np.ndarray]]) -> Metric:
    """Make a metric from features `(shapes, width)` and labels of several sets, which count the same."""
    every = np.concatenate([features for features, _ in sources])
    mean, scale = every.mean(axis=0), every.std(axis=0)
    within = np.mean([covariance_within((rows - mean) / scale, labels) for rows, labels in sources], axis=0)
    values, directions = np.linalg.eigh(KEPT * within + (1 - KEPT) * np.eye(len(within)))
    return Metric(mean, scale, directions / np.sqrt(values) @ directions.T)


def store(metric: Metric, path: Path) -> None:
    """Write a metric, of whose symmetric matrix one half is enough."""
    matrix = torch.from_numpy(metric.matrix)
    rows, columns = torch.triu_indices(*matrix.shape)
    tensors = {"mean": torch.from_numpy(metric.mean), "scale": torch.from_numpy(metric.scale)}
    tensors["triangle"] = matrix[rows, columns]
    made = {"made by": "python -m studies.packaged_metric --kicad FOLDER"}
    save_file({name: tensor.float().contiguous() for name, tensor in tensors.items()}, path, metadata=made)


@dataclass(frozen=True)
class Judged:
    """A set, its features, and a metric that has seen none of its classes."""

    name: str
    shapes: Shapes
    features: np.ndarray
    metric: Metric


def judged_sets(
    features: dict[str, np.ndarray], shapes: dict[str, Shapes], sources: list[tuple[np.ndarray, np.ndarray]]
) -> Iterator[Judged]:
    """Yield the sets: embedded and generated classes, and both halves of the parts by the metric of the other one."""
    labels = shapes["parts"].labels
    for name in ("embedded", "generated"):
        yield Judged(name, shapes[name], features[name], make_metric([*sources, (features["parts"], labels)]))
    for half in (0, 1):
        own = labels % 2 == half
        whole = shapes["parts"]
        some = Shapes(whole.points[own], labels[own] // 2, whole.groups[own], whole.names[half::2], whole.pool[own])
        metric = make_metric([*sources, (features["parts"][~own], labels[~own])])
        yield Judged(f"parts {half + 1}", some, features["parts"][own], metric)


def accuracies(judged: Judged, division: Draw) -> tuple[float, float]:
    """Return the accuracy of a head on standardized features, and of one in the metric."""
    rows, test = judged.features[division.train], judged.features[division.test]
    count, right = int(division.labels.max()) + 1, []
    for metric in (None, judged.metric):
        head = fit_head(rows, division.labels, count, 1.0, metric)
        right.append(float((head.logits(test).argmax(axis=1) == division.test_labels).mean()))
    return right[0], right[1]


def main(arguments: list[str] | None = None) -> None:
    """Make the metric, or judge it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kicad", type=Path, required=True, help="folder of the electronic parts")
    parser.add_argument("--features", type=Path, default=Path("outputs/few_scans"), help="folder of stored features")
    parser.add_argument("--output", type=Path, default=PACKAGED_METRIC, help="file to write")
    parser.add_argument("--judge", action="store_true", help="judge it on classes that it has not seen")
    parser.add_argument("--draws", type=int, default=24, help="draws to judge by")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.features.mkdir(parents=True, exist_ok=True)
    shapes = {"choice": SETS["choice"](), "solids": changed_solids(), "parts": parts(options.kicad)}
    if options.judge:
        shapes |= {name: SETS[name]() for name in ("embedded", "generated")}
    features = {
        name: stored_features(name, some, "encoder", COPIES, options.features).astype(np.float64)
        for name, some in shapes.items()
    }
    sources = [(features[name], shapes[name].labels) for name in ("choice", "solids")]
    if not options.judge:
        store(make_metric([*sources, (features["parts"], shapes["parts"].labels)]), options.output)
        return
    print("| set | scans a class | standardized | in the metric | difference |\n|---|---|---|---|---|")
    for judged in judged_sets(features, shapes, sources):
        for shots in JUDGED_SHOTS:
            found = 100 * np.array(
                [accuracies(judged, draw(judged.shapes, shots, number)) for number in range(options.draws)]
            )
            plain, own = found.mean(axis=0)
            cells = f"{plain:.1f} | {own:.1f} | {mean_gain(found[:, 1] - found[:, 0])}"
            print(f"| {judged.name} | {shots} | {cells} |", flush=True)


if __name__ == "__main__":
    main()
