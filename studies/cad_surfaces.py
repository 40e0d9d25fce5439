"""Learn the bundled classifier's head from surfaces as CAD models have them, and judge it on other shapes.

    python -m studies.cad_surfaces --shares 0,0.3,0.8 --sh3d FOLDER

Some of the copies that the head learns from have no bottom, nothing but what can be seen from outside, walls inside,
or more points per area on one side than on the other. It is judged on a quarter of the training shapes, three times
over, and on shapes of the same collections that are not embedded, each as it is and changed in this way. Nothing was
adopted: `results/cad_surfaces.md`.
"""

from __future__ import annotations

import argparse
import time
from itertools import product
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from scipy.spatial import ConvexHull, QhullError

from examples import quickstart, train_default_model as default_training
from hf_any3d import ActForPointCloudClassification, load_point_dataset
from hf_any3d.data import build_transform, validation_split
from hf_any3d.data.frames.axes import turn_up_axis
from hf_any3d.modeling.act.up_direction import quarter_turns
from hf_any3d.modeling.layers.boxes import UP_AXES
from hf_any3d.pipelines import default_model
from studies.generated_shapes import normalized

FOLDS = (0, 1, 2)
POINTS = 1024
LEAST_POINTS = 300
"""A change that leaves fewer points is not made."""
HEADINGS = quarter_turns()[UP_AXES.index("y")].numpy()


def seen_from_outside(points: np.ndarray) -> np.ndarray:
    """Return which points `(points, 3)` can be seen from one of 14 places around them.

    Source: Katz, Tal and Basri, "Direct visibility of point sets" (SIGGRAPH 2007).
    """
    seen = np.zeros(len(points), bool)
    for place in product((-1.0, 0.0, 1.0), repeat=3):
        if np.count_nonzero(place) not in (1, 3):
            continue
        rays = points - 3 * np.array(place) / np.linalg.norm(place)
        lengths = np.linalg.norm(rays, axis=1, keepdims=True)
        flipped = rays + 2 * (100 * lengths.max() - lengths) * rays / lengths
        try:
            corners = ConvexHull(np.concatenate([flipped, np.zeros((1, 3))])).vertices
        except QhullError:  # all points in one plane
            return np.ones(len(points), bool)
        seen[corners[corners < len(points)]] = True
    return seen


def as_modeled(points: np.ndarray, normals: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return points `(points, 3)` of an upright shape as another modeler might have built its surfaces."""
    low = points[:, 1].min()
    kept = np.ones(len(points), bool)
    if generator.random() < 0.4:
        is_low = points[:, 1] < low + 0.03 * np.ptp(points[:, 1])
        kept &= ~(is_low & (np.abs(normals[:, 1]) > 0.8))
    if generator.random() < 0.3:
        outer = kept & seen_from_outside(points)
        if np.count_nonzero(outer) >= LEAST_POINTS:
            kept = outer
    if np.count_nonzero(kept) >= LEAST_POINTS:
        points = points[kept]
    if generator.random() < 0.35:
        points = np.concatenate([points, *walls_inside(points, generator)])
    if generator.random() < 0.4:
        weights = np.ones(len(points))
        for _ in range(3):
            along = points @ generator.normal(size=3)
            weights[along > np.quantile(along, generator.uniform(0.2, 0.8))] *= generator.uniform(0.3, 3)
        points = points[generator.choice(len(points), 2 * POINTS, p=weights / weights.sum())]
    return points[generator.choice(len(points), POINTS, replace=len(points) < POINTS)]


def walls_inside(points: np.ndarray, generator: np.random.Generator) -> list[np.ndarray]:
    """Return points on up to three rectangles along the axes, within the bounding box."""
    walls = []
    for _ in range(generator.integers(1, 4)):
        low, high = np.sort(generator.uniform(points.min(axis=0), points.max(axis=0), (2, 3)), axis=0)
        wall = generator.uniform(low, high, (int(generator.integers(60, 300)), 3))
        axis = generator.integers(3)
        wall[:, axis] = low[axis]
        walls.append(wall)
    return walls


def draw_copies(rows: Dataset, share: float) -> np.ndarray:
    """Return the copies that `examples.train_default_model` draws, a share of them with other surfaces."""
    generator = np.random.default_rng(default_training.SEED)
    change = build_transform(default_training.AUGMENTATION)
    turn = build_transform({"rotate": {"axis": "y"}})
    columns = rows.with_format("numpy")
    clouds = []
    for number in range(default_training.COPIES):
        for cloud, normals in zip(columns["points"][:], columns["normals"][:], strict=True):
            if generator.random() < share:
                cloud = as_modeled(cloud, normals, generator)
            if number % 2:
                cloud = turn(cloud, generator)
            cloud = change(cloud, generator)
            clouds.append(turn_up_axis(cloud, "y", "z") if number % 3 == 2 else cloud)
    return np.stack(clouds).astype(np.float32)


def accuracy(model: ActForPointCloudClassification, clouds: list[np.ndarray], labels: np.ndarray) -> float:
    """Return the share of right labels in percent, with means over four headings as in the pipeline."""
    scores = torch.zeros(len(clouds), model.config.num_labels)
    for heading in HEADINGS:
        shown = np.stack([normalized(cloud[:POINTS] @ heading.T) for cloud in clouds])
        with torch.no_grad():
            scores += model.classifier(default_training.features_of(model, shown)).softmax(dim=-1)
    return 100 * float(np.mean(scores.argmax(dim=-1).numpy() == labels))


def judge(model: ActForPointCloudClassification, rows: Dataset) -> tuple[float, float]:
    """Return the accuracies on shapes as they are, and with other surfaces."""
    columns = rows.with_format("numpy")
    clouds = list(np.asarray(columns["points"][:], np.float64))
    generator = np.random.default_rng(5)
    changed = [as_modeled(*shape, generator) for shape in zip(clouds, columns["normals"][:], strict=True)]
    labels = np.asarray(columns["label"][:])
    return accuracy(model, clouds, labels), accuracy(model, changed, labels)


def not_embedded(folder: Path) -> Dataset:
    """Return the shapes of the collections that the package does not have."""
    embedded = load_point_dataset("shapes")
    known = {*embedded["train"]["name"], *embedded["test"]["name"]}
    parts = [Dataset.from_parquet(str(folder / f"{split}.parquet")) for split in ("train", "test")]
    return concatenate_datasets(parts).filter(lambda name: name not in known, input_columns="name")


def main(arguments: list[str] | None = None) -> None:
    """Print a row for each share and fold."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shares", default="0,0.3", help="shares of copies with other surfaces")
    parser.add_argument("--sh3d", type=Path, required=True, help="folder with train.parquet and test.parquet")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    rows = quickstart.without_files(load_point_dataset("shapes")["train"])
    further = not_embedded(options.sh3d)
    encoder = ActForPointCloudClassification.from_pretrained(default_model()).act
    print(f"| share | fold | held out | changed | {len(further)} not embedded | changed | CPU seconds |")
    print("|---|---|---|---|---|---|---|")
    for share in map(float, options.shares.split(",")):
        for fold in FOLDS:
            start = time.process_time()
            parts = validation_split(rows, 0.25, seed=fold, group_column="group")
            model = default_training.build_model(encoder, rows.features["label"].names)
            features = default_training.features_of(model, draw_copies(parts["train"], share))
            labels = torch.from_numpy(np.asarray(parts["train"]["label"])).repeat(default_training.COPIES)
            count = int(default_training.OTHERS_SHARE * len(features))
            things = (default_training.THINGS, default_training.SOLIDS)
            others = default_training.features_of(model, default_training.draw_others(parts["train"], count, *things))
            default_training.learn_head(model.classifier, features, labels, others, default_training.TRAINING["steps"])
            cells = [*judge(model, parts["validation"]), *judge(model, further)]
            seconds = time.process_time() - start
            print(
                f"| {share:g} | {fold} | " + " | ".join(f"{c:.1f}" for c in cells) + f" | {seconds:.0f} |", flush=True
            )


if __name__ == "__main__":
    main()
