"""A few objects whose faces are labeled: how well models of their surfaces find the parts of further ones.

    python -m studies.tiles_objects --output DIR

Generated objects as meshes of some thousand faces, one category at a time, turned about the vertical: 1, 2, 5 and 10
are learned as `hf-any3d train` does, and others are judged. Controls: the largest class, and the label of the nearest
labeled place. The network also labels each face by the nearest point on the surface, and `--no-normals` learns
without directions of faces. Results: `results/labeled_objects.md`.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import trimesh
from scipy.spatial import KDTree

from hf_any3d.data.files import PointCloudData, write_point_cloud
from hf_any3d.data.generated import parts
from hf_any3d.evaluation.segmentation import class_ious
from hf_any3d.modeling.local_features import LocalFeaturesConfig
from hf_any3d.modeling.local_features.fitting import OBJECT_STEPS, Rows, fit_network, logits_of
from hf_any3d.processing.local_features import OBJECT_EDGES, LocalFeaturesProcessor, with_marks
from hf_any3d.training.tiles.labels import Classes
from hf_any3d.training.tiles.reading import FACES, look_at, read_tile
from hf_any3d.training.tiles.training import TilesArguments, rows_of

SIZES, POOL, JUDGED, DRAWS = (1, 2, 5, 10), 12, 8, 3
CATEGORIES = ("chair", "lamp", "mug", "plane")
METHODS = ("learned", "learned, nearest point", "nearest place", "largest class")
_EDGE = 0.06  # longest edge of a face, as a share of the diagonal
_SAMPLES, _RESAMPLED = 16_384, 2000


def main(argv: Sequence[str] | None = None) -> None:
    """Print a table of mean IoUs with intervals, and store what it is made of."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--categories", nargs="*", default=CATEGORIES, choices=list(parts.CATEGORIES))
    parser.add_argument("--output", type=Path, default=Path("outputs/tiles_objects"))
    parser.add_argument("--no-normals", action="store_true", help="learn without directions of faces")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    arguments.output.mkdir(parents=True, exist_ok=True)
    for category in arguments.categories:
        start = time.process_time()
        found = judge(category, arguments.output, not arguments.no_normals)
        (arguments.output / f"{category}.json").write_text(json.dumps(found))
        for method in METHODS:
            cells = [_cell(np.array(found[method][str(size)])) for size in SIZES]
            print(f"| {category}, {method} | {' | '.join(cells)} |", flush=True)
        print(f"{category}: {time.process_time() - start:.0f} processor seconds", flush=True)


def judge(category: str, folder: Path, normals: bool = True) -> dict[str, dict[str, list[list[float]]]]:
    """Return method -> size -> (draws, judged objects) mean IoU of faces."""
    measured = ["xyz", "normals"] if normals else ["xyz"]
    processor = LocalFeaturesProcessor(unit="diagonal", edges=OBJECT_EDGES, up_axis="y", features=measured)
    left_out = [processor.channels_of(("normals",))] if normals else []
    names = parts.PARTS[category]
    classes = Classes(list(names), list(range(len(names))), {number: number for number in range(len(names))})
    pool = [_learned(category, number, classes, processor, folder) for number in range(POOL)]
    judged = [_judged(category, POOL + number, processor) for number in range(JUDGED)]
    places = [number for number, name in enumerate(processor.names()) if name.startswith("place in")]
    found: dict[str, dict[str, list[list[float]]]] = {method: {} for method in METHODS}
    for size in SIZES:
        for draw in range(DRAWS):
            # More objects are those of the smaller draw and others.
            chosen = np.random.default_rng(draw).permutation(POOL)[:size]
            rows = Rows.joined([pool[number] for number in chosen])
            config = LocalFeaturesConfig(
                in_channels=3 + rows.features.shape[1], members=2, id2label=dict(enumerate(names))
            )
            model = fit_network(rows, config, left_out, draw, OBJECT_STEPS)
            whole = rows.part(rows.copies == 0)
            tree = KDTree(whole.features[:, places])
            largest = np.bincount(whole.labels).argmax()
            of_method: dict[str, list[float]] = {method: [] for method in METHODS}
            for features, of_points, nearest, truth in judged:
                answers = (
                    logits_of(model, features)[0].argmax(axis=1),
                    logits_of(model, of_points)[0].argmax(axis=1)[nearest],
                    whole.labels[tree.query(features[:, places])[1]],
                    np.full(len(truth), largest),
                )
                for method, answer in zip(METHODS, answers, strict=True):
                    of_method[method].append(_mean_iou(answer, truth, len(names)))
            for method, values in of_method.items():
                found[method].setdefault(str(size), []).append(values)
    return found


def labeled_mesh(category: str, seed: int) -> PointCloudData:
    """Draw an object with small faces, y up, turned about y; its faces have the numbers of parts."""
    generator = np.random.default_rng([seed, 2])
    drawn = parts.CATEGORIES[category](generator.uniform, lambda count: int(generator.integers(count)))
    diagonal = np.linalg.norm(np.ptp(np.concatenate([mesh.vertices for _, mesh in drawn]), axis=0))
    vertices, faces, labels = [], [], []
    count = 0
    for name, mesh in drawn:
        points, corners = trimesh.remesh.subdivide_to_size(mesh.vertices, mesh.faces, _EDGE * diagonal)[:2]
        vertices.append(points)
        faces.append(corners + count)
        labels.append(np.full(len(corners), parts.PARTS[category].index(name)))
        count += len(points)
    angle = generator.uniform(0, 2 * np.pi)
    turn = np.array([[np.cos(angle), 0, np.sin(angle)], [0, 1, 0], [-np.sin(angle), 0, np.cos(angle)]])
    points = (np.concatenate(vertices) @ turn.T).astype(np.float32)
    return PointCloudData(points, faces=np.concatenate(faces), face_labels=np.concatenate(labels), up_axis="y")


def _learned(category: str, number: int, classes: Classes, processor: LocalFeaturesProcessor, folder: Path) -> Rows:
    path = folder / f"{category}_{number}.ply"
    write_point_cloud(path, labeled_mesh(category, number))
    tile = look_at(path, read_tile(path))
    return rows_of(tile, number, number, classes, processor, TilesArguments(), FACES)[0]


def _judged(
    category: str, number: int, processor: LocalFeaturesProcessor
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return an object as the pipeline describes it.

    Returns:
        Features of its faces; features of points on its surface, and which of them is nearest to each face; and the
        true labels of the faces.
    """
    mesh = labeled_mesh(category, number)
    assert mesh.faces is not None and mesh.face_labels is not None
    cloud, marks = with_marks(mesh.sample_surface(_SAMPLES, 0), mesh)
    scan = processor.describe(cloud, marks=marks)
    of_faces = np.arange(_SAMPLES, _SAMPLES + len(mesh.faces))
    around = scan.neighborhoods(np.arange(len(cloud)))
    centers = mesh.points[mesh.faces].mean(axis=1)
    nearest = np.asarray(KDTree(cloud.points[:_SAMPLES]).query(centers)[1])
    return around.features(of_faces), around.features(np.arange(_SAMPLES)), nearest, mesh.face_labels


def _mean_iou(answer: np.ndarray, truth: np.ndarray, count: int) -> float:
    matrix = np.zeros((count, count))
    np.add.at(matrix, (truth, answer), 1)
    return float(np.nanmean(class_ious(matrix)))


def _cell(values: np.ndarray) -> str:
    """Return mean and interval of (draws, judged objects): both are drawn again with replacement."""
    generator = np.random.default_rng(0)
    draws, objects = values.shape
    rows = generator.integers(draws, size=(_RESAMPLED, draws))
    columns = generator.integers(objects, size=(_RESAMPLED, objects))
    means = values[rows[:, :, None], columns[:, None, :]].mean(axis=(1, 2))
    low, high = np.percentile(means, (2.5, 97.5))
    return f"{values.mean():.3f} ({low:.3f} to {high:.3f})"


if __name__ == "__main__":
    main()
