"""Features of many clouds as a map: what is alike lies close together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hf_any3d.feature_map_page import feature_map_page
from hf_any3d.label_colors import label_colors
from hf_any3d.whole_files import whole_file, write_text

METHODS = ("auto", "scikit-learn", "openTSNE")


def project_features(
    features: np.ndarray,
    *,
    perplexity: float = 25.0,
    metric: str = "cosine",
    seed: int = 42,
    method: str = "auto",
) -> np.ndarray:
    """Lay features out in a plane by t-SNE.

    Near neighbours stay near; distances between groups and their sizes mean nothing.

    Args:
        features: (clouds, width).
        perplexity: How many neighbours a cloud is meant to have.
        metric: How features are compared: "cosine", "euclidean" …
        seed: Governs the start.
        method: "scikit-learn", "openTSNE", faster for many thousands, or "auto" for the latter where installed.

    Returns:
        (clouds, 2) float32.

    Raises:
        ValueError: If the features are no such array or not finite, or too few for the perplexity.
        ImportError: If the library is missing.

    Source: van der Maaten and Hinton, Visualizing Data using t-SNE.
    """
    features = np.asarray(features, dtype=np.float32)
    if features.ndim != 2 or not np.isfinite(features).all():
        raise ValueError(f"features have shape {features.shape}; expected finite numbers (clouds, width)")
    if not 0 < perplexity < len(features):
        raise ValueError(f"perplexity: {perplexity}; expected more than 0 and less than {len(features)}, the clouds")
    if method not in METHODS:
        raise ValueError(f"method: {method!r}; expected one of {', '.join(METHODS)}")
    if method == "auto":
        method = "openTSNE" if find_spec("openTSNE") else "scikit-learn"
    try:
        if method == "openTSNE":
            from openTSNE import TSNE
        else:
            from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(f"t-SNE needs {method}: pip install 'hf-any3d[visuals]'") from error
    settings = {"perplexity": perplexity, "metric": metric, "random_state": seed}
    if method == "openTSNE":
        return np.asarray(TSNE(**settings).fit(features), dtype=np.float32)
    # A start from the principal components keeps more of the whole than a random one.
    return TSNE(init="pca", **settings).fit_transform(features).astype(np.float32)


def same_class_share(features: np.ndarray, labels: np.ndarray) -> float:
    """How often the cloud with the most similar features, by cosine, is of the same class.

    A figure for what a map shows, taken before the map distorts it.

    Args:
        features: (clouds, width), at least two.
        labels: (clouds,) class numbers.
    """
    unit = np.asarray(features, dtype=np.float64)
    unit = unit / np.maximum(np.linalg.norm(unit, axis=1, keepdims=True), np.finfo(np.float64).tiny)
    labels, hits = np.asarray(labels), 0
    for start in range(0, len(unit), 1024):
        rows = np.arange(start, min(start + 1024, len(unit)))
        similarity = unit[rows] @ unit.T  # (rows, clouds)
        similarity[np.arange(len(rows)), rows] = -np.inf
        hits += int((labels[similarity.argmax(axis=1)] == labels[rows]).sum())
    return hits / len(unit)


def write_feature_map(
    path: str | os.PathLike,
    places: np.ndarray,
    labels: np.ndarray,
    names: Sequence[str],
    *,
    texts: Sequence[str] | None = None,
    heading: str = "",
) -> Path:
    """Show a map, coloured by class.

    Args:
        path: Where to write: `.png` for a picture, `.html` for a page where classes can be hidden and clouds tell
            their names. The file is complete or not there.
        places: (clouds, 2), as `project_features` gives them.
        labels: (clouds,) class numbers from 0.
        names: Names of the classes; those that occur are listed.
        texts: What each cloud is called, for pages.
        heading: A line above.

    Raises:
        ValueError: If shapes do not fit, a label has no name, or the path has another ending.
        ImportError: If matplotlib is missing, for `.png`.
    """
    path, places, labels = Path(path), np.asarray(places, dtype=np.float64), np.asarray(labels)
    if places.ndim != 2 or places.shape[1] != 2 or labels.shape != places.shape[:1] or not len(places):
        raise ValueError(f"places have shape {places.shape}, labels {labels.shape}; expected (clouds, 2), (clouds,)")
    if labels.min() < 0 or labels.max() >= len(names):
        raise ValueError(f"labels run from {labels.min()} to {labels.max()}; there are {len(names)} names")
    if texts is not None and len(texts) != len(places):
        raise ValueError(f"texts: {len(texts)} for {len(places)} clouds; expected one for each")
    if path.suffix.lower() == ".html":
        return write_text(path, feature_map_page(places, labels, names, texts or (), heading))
    if path.suffix.lower() == ".png":
        return _plot(path, places, labels, names, heading)
    raise ValueError(f"{path}: file type {path.suffix!r}; expected one of .html, .png")


def _plot(path: Path, places: np.ndarray, labels: np.ndarray, names: Sequence[str], heading: str) -> Path:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing a map needs matplotlib: pip install 'hf-any3d[visuals]'") from error
    figure = Figure(figsize=(8.5, 6.5), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    palette, present = label_colors(len(names)), np.unique(labels)
    size = float(np.clip(9000 / len(places), 4, 40))
    for number in present:
        # Hues come close to each other when there are many classes; shapes take turns too.
        shape = "osD^v"[number % 5]
        rows = labels == number
        axes.scatter(*places[rows].T, s=size, color=palette[number], marker=shape, linewidths=0, label=names[number])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cccccc")
    if heading:
        axes.set_title(heading, fontsize=11)
    columns = 1 if len(present) <= 25 else 2
    figure.legend(loc="outside right center", ncols=columns, fontsize=9, frameon=False, markerscale=1.3)
    with whole_file(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return path
