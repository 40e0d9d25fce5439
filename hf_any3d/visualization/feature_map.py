"""A map of the features of many clouds, with similar ones close together."""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import numpy as np

from hf_any3d.atomic_files import atomic_write, write_text
from hf_any3d.visualization.web_page import CloudView, label_colors, viewer_page

METHODS = ("auto", "scikit-learn", "openTSNE")


def project_features(
    features: np.ndarray,
    *,
    perplexity: float = 25.0,
    metric: str = "cosine",
    seed: int = 42,
    method: str = "auto",
) -> np.ndarray:
    """Embed features in a plane by t-SNE.

    Near neighbors stay near; distances between groups and sizes of groups have no meaning.

    Args:
        features: (clouds, width).
        perplexity: Effective number of neighbors of a cloud.
        metric: Metric of features: "cosine", "euclidean" …
        seed: Random seed.
        method: "scikit-learn", "openTSNE", faster for many thousands, or "auto" for the latter if installed.

    Returns:
        (clouds, 2) float32.

    Raises:
        ValueError: The features are no such array or not finite, or too few for the perplexity.
        ImportError: The library is missing.

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
            from openTSNE import TSNE  # pyright: ignore[reportMissingImports] optional
        else:
            from sklearn.manifold import TSNE
    except ImportError as error:
        raise ImportError(f"t-SNE needs {method}: pip install 'hf-any3d[visuals]'") from error
    settings = {"perplexity": perplexity, "metric": metric, "random_state": seed}
    if method == "openTSNE":
        return np.asarray(TSNE(**settings).fit(features), dtype=np.float32)
    # Principal components preserve more of the global structure than a random start.
    return TSNE(init="pca", **settings).fit_transform(features).astype(np.float32)


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
    """Write a map, colored by class.

    Args:
        path: File to write, atomically: `.png` for a picture, `.html` for a page where classes can be hidden and
            clouds show their names.
        places: (clouds, 2), the result of `project_features`.
        labels: (clouds,) class numbers from 0.
        names: Names of the classes; those that occur are listed.
        texts: Name of each cloud, for pages.
        heading: A line above the map.

    Raises:
        ValueError: Shapes do not fit, a label has no name, or the path has another suffix.
        ImportError: matplotlib is missing, for `.png`.
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


def feature_map_page(
    places: np.ndarray, labels: np.ndarray, names: Sequence[str], texts: Sequence[str], heading: str
) -> str:
    """Return the text of a page with a dot for each cloud, colored by class; for arguments see `write_feature_map`.

    A click on a class hides it, hovering over a dot shows its class and name, the wheel zooms and dragging moves the
    map. The page is self-contained.
    """
    places = np.asarray(places, dtype=np.float64)
    view = CloudView(places, labels=labels, texts=texts or None)
    return viewer_page([view], names=names, label_name="class", title=heading or "features")


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
        # With many classes hues are similar, so marker shapes alternate too.
        marker = "osD^v"[number % 5]
        rows = labels == number
        axes.scatter(*places[rows].T, s=size, color=palette[number], marker=marker, linewidths=0, label=names[number])
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_color("#cccccc")
    if heading:
        axes.set_title(heading, fontsize=11)
    columns = 1 if len(present) <= 25 else 2
    figure.legend(loc="outside right center", ncols=columns, fontsize=9, frameon=False, markerscale=1.3)
    with atomic_write(path) as unfinished:
        figure.savefig(unfinished, format="png")
    return path
