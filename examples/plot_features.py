"""Plot a t-SNE map of a model's features of a dataset's clouds, colored by class.

    python examples/plot_features.py outputs/quickstart/model --dataset shapes --output features.png features.html

The model may be anything that `pipeline("point-cloud-feature-extraction")` opens: an encoder before or after
fine-tuning, with a head or without. The program also prints how often the cloud with the most similar features is of
the same class.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from datasets import Dataset
from transformers import pipeline

import hf_any3d  # noqa: F401  registers models and pipelines
from hf_any3d.data import load_point_dataset
from hf_any3d.visualization.show import METHODS, project_features, write_feature_map

FEATURES = ("pooled", "class_token", "tokens")


def extract_features(model: str, rows: Dataset, feature: str, batch_size: int) -> np.ndarray:
    """Extract the features of all rows, `(clouds, width)`.

    Args:
        model: Directory or hub name.
        rows: Rows with a column of points.
        feature: "pooled", "class_token", or "tokens" for the mean of all tokens.
        batch_size: Clouds per batch.
    """
    extract = pipeline("point-cloud-feature-extraction", model=model)
    answers = extract(rows, batch_size=batch_size)
    return np.stack([answer[feature].mean(axis=0) if feature == "tokens" else answer[feature] for answer in answers])


def same_class_share(features: np.ndarray, labels: np.ndarray) -> float:
    """Return the share of clouds whose nearest neighbor, by cosine of the features, has the same class.

    It measures the features themselves, without the distortion of a map.

    Args:
        features: (clouds, width), at least two.
        labels: (clouds,) class numbers.
    """
    unit = np.asarray(features, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    labels, hits = np.asarray(labels), 0
    # A matrix of all pairs would not fit into memory for large datasets.
    for start in range(0, len(unit), 1024):
        rows = np.arange(start, min(start + 1024, len(unit)))
        similarity = unit[rows] @ unit.T  # (rows, clouds)
        # A cloud is not its own neighbor.
        similarity[np.arange(len(rows)), rows] = -np.inf
        hits += int((labels[similarity.argmax(axis=1)] == labels[rows]).sum())
    return hits / len(unit)


def main(arguments: list[str] | None = None) -> None:
    """Read the command line and draw the map."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="directory or hub name")
    parser.add_argument("--dataset", default="shapes", help="name in the catalog, or of a hub repository")
    parser.add_argument("--data-dir", help="folder of the dataset's files")
    parser.add_argument("--options", type=json.loads, default={}, help="JSON object with options of the dataset")
    parser.add_argument("--split", default="test")
    parser.add_argument("--max-samples", type=int, help="number of rows, drawn by the seed; all by default")
    parser.add_argument("--feature", choices=FEATURES, default="pooled", help="tokens means their mean")
    parser.add_argument("--perplexity", type=float, default=25.0, help="number of neighbors per cloud, roughly")
    parser.add_argument("--metric", default="cosine")
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--method", choices=METHODS, default="auto", help="auto uses openTSNE if it is installed")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--title", help="title of the map")
    parser.add_argument("--output", type=Path, nargs="+", default=[Path("features.png")], help=".png or .html files")
    given = parser.parse_args(arguments)
    if wrong := [path for path in given.output if path.suffix.lower() not in (".png", ".html")]:
        parser.error(f"--output: {wrong[0]} has type {wrong[0].suffix!r}; expected .png or .html")

    rows = load_point_dataset(given.dataset, data_dir=given.data_dir, split=given.split, **given.options)
    if given.max_samples is not None and given.max_samples < len(rows):
        rows = rows.shuffle(seed=given.seed).select(range(given.max_samples))
    features = extract_features(given.model, rows, given.feature, given.batch_size)
    labels = np.asarray(rows["label"][:])
    places = project_features(
        features, perplexity=given.perplexity, metric=given.metric, seed=given.seed, method=given.method
    )
    share = same_class_share(features, labels)
    model = "/".join(Path(given.model).parts[-2:])
    heading = given.title or f"{model}, {given.dataset} {given.split}; most similar of same class: {100 * share:.1f} %"
    texts = list(map(str, rows["name"][:])) if "name" in rows.column_names else None
    for path in given.output:
        write_feature_map(path, places, labels, rows.features["label"].names, texts=texts, heading=heading)
        print(path)
    print(f"{len(rows)} clouds; the most similar one is of the same class for {100 * share:.1f} %")


if __name__ == "__main__":
    main()
