"""A few labeled objects: how well models of their surroundings find the parts of further ones.

    python -m studies.tiles_objects

Generated parts of one category at a time; the control takes the label of the nearest labeled place in the box.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy.spatial import cKDTree

from hf_any3d.data.files import PointCloudData
from hf_any3d.data.generated import parts
from hf_any3d.evaluation.segmentation import class_ious
from hf_any3d.modeling.local_features import LocalFeaturesConfig
from hf_any3d.processing.local_features import OBJECT_EDGES, LocalFeaturesProcessor
from hf_any3d.training.tiles.network import Rows, fit_network, logits_of

SIZES, TESTED, COUNT, STEPS = (1, 2, 5, 10), 10, 3, 400


def main() -> None:
    """Print the mean IoU of parts by the number of labeled objects."""
    torch.set_num_threads(1)
    categories = list(parts.CATEGORIES)[1 : 1 + COUNT]
    counts = {"train_objects": COUNT * max(SIZES), "validation_objects": COUNT, "test_objects": COUNT * TESTED}
    splits = parts.load(**counts, categories=categories)
    processor = LocalFeaturesProcessor(unit="diagonal", edges=OBJECT_EDGES, up_axis="y")
    names = splits["train"].features["label"].names
    for category, name in enumerate(names):
        learned, judged = (_rows(splits[split], category, processor) for split in ("train", "test"))
        classes = np.unique(np.concatenate([rows.labels for rows in learned]))
        line = []
        for size in SIZES:
            rows = _numbered(Rows.joined(learned[:size]), classes)
            test = _numbered(Rows.joined(judged), classes)
            config = LocalFeaturesConfig(
                in_channels=3 + rows.features.shape[1], members=2, id2label=dict(enumerate(map(str, classes)))
            )
            model = fit_network(rows, config, seed=0, steps=STEPS)
            places = [number for number, feature in enumerate(processor.names()) if feature.startswith("place in")]
            nearest = cKDTree(rows.features[:, places]).query(test.features[:, places])[1]
            answers = (logits_of(model, test.features)[0].argmax(axis=1), rows.labels[nearest])
            line.append(" and ".join(f"{_mean_iou(answer, test.labels, len(classes)):.3f}" for answer in answers))
        print(f"| {name} | {' | '.join(line)} |", flush=True)


def _rows(split: object, category: int, processor: LocalFeaturesProcessor) -> list[Rows]:
    found = []
    for number, row in enumerate(split.with_format("numpy")):  # pyright: ignore[reportAttributeAccessIssue]
        if int(row["label"]) == category:
            cloud = PointCloudData(np.asarray(row["points"]))
            features = processor.describe(cloud).neighborhoods(np.arange(len(cloud))).features(slice(None))
            labels = np.asarray(row["labels"])
            found.append(Rows(features, labels, *(np.full(len(labels), value) for value in (number, number, 0))))
    return found


def _numbered(rows: Rows, classes: np.ndarray) -> Rows:
    return Rows(rows.features, np.searchsorted(classes, rows.labels), rows.tiles, rows.places, rows.copies)


def _mean_iou(answer: np.ndarray, truth: np.ndarray, count: int) -> float:
    matrix = np.zeros((count, count))
    np.add.at(matrix, (truth, answer), 1)
    return float(np.nanmean(class_ious(matrix)))


if __name__ == "__main__":
    main()
